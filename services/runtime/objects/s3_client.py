"""boto3's S3 client: built once per process and environment, and typed as far as Rekindle uses it."""

# boto3 comes without types; what is used of it is typed here.
# pyright: reportMissingTypeStubs=false

import os
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import NotRequired, Protocol, TypedDict, cast

import boto3
from botocore.config import Config

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
"""Longest silence on a connection, not the longest transfer."""
_CONNECTIONS = 32


class Body(Protocol):
    def read(self) -> bytes: ...


class ResponseMetadata(TypedDict):
    HTTPHeaders: Mapping[str, str]


class Written(TypedDict):
    ETag: str
    ResponseMetadata: ResponseMetadata


class Found(TypedDict):
    ETag: str
    ContentLength: int
    LastModified: datetime
    Metadata: Mapping[str, str]


class Read(Found):
    Body: Body


class ListedObject(TypedDict):
    Key: str
    Size: int
    ETag: str
    LastModified: datetime


class CommonPrefix(TypedDict):
    Prefix: str


class Listed(TypedDict):
    Contents: NotRequired[list[ListedObject]]
    CommonPrefixes: NotRequired[list[CommonPrefix]]
    IsTruncated: NotRequired[bool]
    NextContinuationToken: NotRequired[str]


class DeleteError(TypedDict):
    Key: str
    Code: str
    Message: NotRequired[str]


class Deleted(TypedDict):
    Errors: NotRequired[list[DeleteError]]


class UploadCreated(TypedDict):
    UploadId: str


class S3Client(Protocol):
    """The part of boto3's client that Rekindle calls. Arguments are named as in S3's API."""

    def get_object(self, **arguments: object) -> Read: ...
    def head_object(self, **arguments: object) -> Found: ...
    def head_bucket(self, **arguments: object) -> object: ...
    def put_object(self, **arguments: object) -> Written: ...
    def list_objects_v2(self, **arguments: object) -> Listed: ...
    def delete_objects(self, **arguments: object) -> Deleted: ...
    def create_multipart_upload(self, **arguments: object) -> UploadCreated: ...
    def upload_part(self, **arguments: object) -> Written: ...
    def complete_multipart_upload(self, **arguments: object) -> Written: ...
    def abort_multipart_upload(self, **arguments: object) -> object: ...
    def generate_presigned_url(self, operation: str, **arguments: object) -> str: ...


class _Meta(Protocol):
    endpoint_url: str


class _ClientWithMeta(S3Client, Protocol):
    meta: _Meta


class _Shared:
    """The process's clients. A client is safe between threads; after a fork the child starts with none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clients: dict[tuple[tuple[str, str], ...], S3Client] = {}


_shared = _Shared()
os.register_at_fork(after_in_child=_shared.__init__)


def shared_client() -> S3Client:
    """The process's client, built at the first call: it costs 0.1 s and several MB, stores are cheap."""
    # boto3 reads the environment itself; where that changes, so must the client.
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _shared.lock:
        if environment not in _shared.clients:
            _shared.clients[environment] = build_client()
        return _shared.clients[environment]


def build_client() -> S3Client:
    """A client for the endpoint, region and credentials that boto3 finds in environment, profile or instance role."""
    session = boto3.Session()
    amazon = _connect(session, custom_endpoint=False)
    custom = _connect(session, custom_endpoint=True)
    return amazon if amazon.meta.endpoint_url == custom.meta.endpoint_url else custom


def _connect(session: boto3.Session, *, custom_endpoint: bool) -> _ClientWithMeta:
    # Other servers may neither know the checksums that botocore adds by default nor be found by bucket.host names.
    checksums = "when_required" if custom_endpoint else "when_supported"
    config = Config(
        ignore_configured_endpoint_urls=not custom_endpoint,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        s3={"addressing_style": "path" if custom_endpoint else "auto"},
        signature_version="s3v4",
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
    )
    return cast("_ClientWithMeta", session.client("s3", config=config))  # pyright: ignore[reportUnknownMemberType]
