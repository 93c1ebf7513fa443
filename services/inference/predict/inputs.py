"""The images of a request: a raw body, files of a form, or URIs. Nothing larger than its limit is ever held."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import anyio
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from services.contracts.errors import CallerError, Overloaded, PayloadTooLarge, UnsupportedMediaType
from services.contracts.predictions import PredictByUri
from services.inference.predict.sources import fetch_image
from services.runtime.settings import Settings, check_source_allowed

FORM_FIELD = "images"
ENVELOPE_BYTES = 1024 * 1024
"""The framework's own limit comes this much later than ours, whose message says more."""
RAW_NAME = "image"
"""What an image that came as the bare body is called in the response."""
_ACCEPTED = "send multipart/form-data with `images` files, an image as the body (image/*), or application/json"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a request, not read yet."""

    name: str
    """File name or URI as it was sent."""
    read: Callable[[], Awaitable[bytes]]
    """Its bytes. Raises a `CallerError` for an image that cannot be had, `ObjectStoreUnavailable` to try later."""

    async def read_until(self, deadline: float, allowed_s: float) -> bytes:
        """As `read`, and `Overloaded` at the deadline, a time of the event loop's clock, to which `allowed_s` were
        allowed."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self.read()
        except TimeoutError as error:
            raise Overloaded(f"{self.name!r} could not be read within {allowed_s:g} s: try again") from error


@asynccontextmanager
async def images_of(
    request: Request, settings: Settings, fetches: anyio.CapacityLimiter
) -> AsyncGenerator[list[ImageInput], None]:
    """The request's images in their order, at least one. They can be read until the block ends.

    `fetches` bounds the threads that read URIs.

    Raises:
        UnsupportedMediaType: the body is none of the three forms.
        PayloadTooLarge: more bytes or images than allowed; reading stops there.
        CallerError: no image, or a broken form.
        RequestValidationError: the JSON does not have the expected form.
    """
    kind = parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")
    if kind == "multipart/form-data":
        form = await read_form(request, settings)
        try:
            yield _form_images(form, settings)
        finally:
            await form.close()
    elif kind == "application/json":
        yield _uri_images(await _read_body(request, settings.max_request_bytes), settings, fetches)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        body = await _read_body(request, settings.max_upload_bytes)
        if not body:
            raise CallerError(f"the body is empty: {_ACCEPTED}")
        yield [ImageInput(RAW_NAME, partial(_already_read, body))]
    else:
        raise UnsupportedMediaType(f"content type {kind or 'missing'!r} is not supported: {_ACCEPTED}")


async def _already_read(data: bytes) -> bytes:
    return data


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks. Raises `PayloadTooLarge` as soon as it is known to be longer than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(int(declared), limit)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(size, limit)
        yield chunk


def _too_large(size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body has {size} bytes or more: at most {limit} are accepted", {"max_bytes": limit, "size_bytes": size}
    )


async def _read_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in _limited(request, limit):
        body += chunk
    return bytes(body)


# --- forms ---


async def read_form(request: Request, settings: Settings) -> FormData:
    """The form; files of more than 1 MiB lie in temporary files until it is closed.

    Raises:
        PayloadTooLarge: more bytes or files than allowed; reading stops there.
        CallerError: a broken form.
    """
    # One file more than allowed gets through to be counted: the parser's own message would not name the setting.
    parser = MultiPartParser(
        request.headers,
        _limited(request, settings.max_upload_bytes),
        max_files=settings.max_images_per_request + 1,
        max_fields=settings.max_images_per_request,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(f"more than {settings.max_images_per_request}", settings) from error
        raise CallerError(f"the form cannot be read: {error.message}") from error


def _form_images(form: FormData, settings: Settings) -> list[ImageInput]:
    images: list[ImageInput] = []
    for field, value in form.multi_items():
        if field != FORM_FIELD:
            raise CallerError(f"the form has a field {field!r}: send the images as files named `{FORM_FIELD}`")
        if not isinstance(value, UploadFile):
            raise CallerError(f"`{FORM_FIELD}` holds text: send files, each with a file name")
        images.append(ImageInput(value.filename or f"{RAW_NAME}-{len(images) + 1}", value.read))
    _check_count(images, settings)
    return images


def _check_count(images: Sequence[ImageInput], settings: Settings) -> None:
    if not images:
        raise CallerError(f"the request has no image: {_ACCEPTED}")
    if len(images) > settings.max_images_per_request:
        raise _too_many(str(len(images)), settings)


def _too_many(count: str, settings: Settings) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the request has {count} images: send at most {settings.max_images_per_request} at a time",
        {"max_images": settings.max_images_per_request},
    )


# --- URIs ---


def _uri_images(body: bytes, settings: Settings, fetches: anyio.CapacityLimiter) -> list[ImageInput]:
    try:
        wanted = PredictByUri.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(
            [{**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)]
        ) from error
    images = [ImageInput(image.uri, partial(_fetch, image.uri, settings, fetches)) for image in wanted.images]
    _check_count(images, settings)
    return images


async def _fetch(uri: str, settings: Settings, fetches: anyio.CapacityLimiter) -> bytes:
    check_source_allowed(uri, settings)
    return await anyio.to_thread.run_sync(
        fetch_image, uri, settings.max_upload_bytes, limiter=fetches, abandon_on_cancel=True
    )
