"""Ports for servers that are about to be started."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

LOOPBACK = "127.0.0.1"
FIRST = 20_000
"""Below are the ports that Ray gives its workers where nobody says otherwise."""
END = 30_000
"""From there on are those of Serve's replicas."""
LEAST_COUNT = 1_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL = 32_768


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback address that nobody listens on.

    None of those that the system gives to whoever connects to something: a server may take seconds until it listens,
    and by then one of these may be somebody's. Raises `OSError` where there are not as many.
    """
    candidates = range(FIRST, max(min(first_ephemeral(), END), FIRST + LEAST_COUNT))
    found: list[int] = []
    with ExitStack() as sockets:  # all are held until the last is found, so that they differ
        for port in random.sample(candidates, len(candidates)):
            if len(found) == count:
                break
            probe = sockets.enter_context(socket.socket())
            try:
                probe.bind((LOOPBACK, port))
            except OSError:  # it is another's
                continue
            found.append(port)
    if len(found) < count:
        raise OSError(f"{count} free ports are wanted, and {len(found)} are there from {FIRST} on")
    return found


def first_ephemeral() -> int:
    """The first of the ports that the system gives away by itself."""
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL
