"""One build of an export, the entrypoint of a Ray job.

python -m ray_cluster.export.build --bucket URI --model NAME --version N --format FORMAT --build N

It may be killed at any moment. Exits with 0 when the archive is there, and with 1 otherwise; then what happened stands
in the bucket, unless it was killed.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from ray_cluster.export.tasks import export_task
from ray_cluster.train.driver import connect
from ray_cluster.train.failures import classify
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import RetryLater
from services.contracts.exports import ExportFailure, ExportFormat
from services.contracts.jobs import Failure
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore, open_store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line."""

    bucket_uri: str
    model_name: str
    version: int
    form: ExportFormat
    build: int


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the archive in the Ray cluster that RAY_ADDRESS names, and returns the exit code."""
    arguments = _parse(argv)
    connect()
    store = open_store(arguments.bucket_uri)
    try:
        model = ModelManifest.model_validate_json(
            store.get(names.model_manifest(arguments.model_name, arguments.version))
        )
        ray.get(export_task.remote(arguments.bucket_uri, model, arguments.form))
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error is classified
        failure = classify(error)
        if failure is not None:
            _log.error("the build failed (%s): %s", failure.failure_class, failure.message, exc_info=error)
            _write(store, arguments, failure)
        return 1
    return 0


def _write(store: ObjectStore, arguments: Arguments, failure: Failure) -> None:
    record = ExportFailure(build=arguments.build, failure=failure, finished_at=utc_now())
    key = names.model_export_failure(arguments.model_name, arguments.version, arguments.form, arguments.build)
    try:
        store.put(key, record.model_dump_json().encode(), if_absent=True)
    except RetryLater:
        _log.exception("the failure could not be written")


def _parse(argv: Sequence[str] | None) -> Arguments:
    parser = argparse.ArgumentParser(description="Build one export of a published version.")
    parser.add_argument("--bucket", required=True, help="s3://bucket/prefix or file:///folder")
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", required=True, type=int)
    parser.add_argument("--format", required=True, type=ExportFormat, choices=list(ExportFormat))
    parser.add_argument("--build", required=True, type=int)
    parsed = parser.parse_args(argv)
    return Arguments(parsed.bucket, parsed.model, parsed.version, parsed.format, parsed.build)


if __name__ == "__main__":
    sys.exit(main())
