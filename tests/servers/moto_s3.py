"""moto's S3 server as a process: `python -m tests.servers.moto_s3 -H HOST -p PORT`.

S3 makes conditional writes of a key one after the other. moto looks whether the key is there and writes it later, in
several threads: two `If-None-Match` of the same key could both succeed. So writes are made one at a time here, once
their bodies are there.
"""

import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

CONDITIONAL_WRITES = ("put_object", "_key_response_post")
"""moto's methods; the second one completes uploads in parts."""


def one_at_a_time(method: Callable[..., Any], lock: threading.Lock) -> Callable[..., Any]:
    @wraps(method)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return method(*args, **kwargs)

    return alone


if __name__ == "__main__":
    writes = threading.Lock()
    for name in CONDITIONAL_WRITES:
        setattr(S3Response, name, one_at_a_time(getattr(S3Response, name), writes))
    main(sys.argv[1:])
