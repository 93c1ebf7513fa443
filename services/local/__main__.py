"""`python -m services.local`: the local stack in the foreground, as `rekindle up` runs it."""

import sys

from pydantic import ValidationError

from services.contracts.errors import RekindleError
from services.local.stack import run_stack
from services.runtime.settings import Settings


def main() -> int:
    """Exit status 0 after Ctrl-C or SIGTERM, 1 where the stack could not start."""
    try:
        run_stack(Settings(), _say, ready=lambda url: _say(f"ready at {url} (API description: {url}/docs)"))
    except (RekindleError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _say(line: str) -> None:
    print(f"rekindle: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
