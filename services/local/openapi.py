"""The OpenAPI documents as files: `python -m services.local.openapi FOLDER` (`make openapi`)."""

import json
import sys
import tempfile
from pathlib import Path

from services.inference.main import build_app as build_inference
from services.local.app import build_app as build_both
from services.runtime.settings import Settings
from services.training.main import build_app as build_training

APPLICATIONS = {
    "rekindle.json": build_both,
    "training.json": build_training,
    "inference.json": build_inference,
}
"""File name of each application's document."""


def openapi_documents() -> dict[str, str]:
    """Each document as it is committed: JSON, indented, with a newline at the end. Nothing is started or connected."""
    with tempfile.TemporaryDirectory() as home:
        # Whatever the environment says, the documents are those of a default server.
        settings = Settings.model_construct(home=Path(home))
        return {
            name: json.dumps(build(settings).openapi(), indent=2, ensure_ascii=False) + "\n"
            for name, build in APPLICATIONS.items()
        }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in openapi_documents().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
