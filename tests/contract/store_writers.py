"""Processes that write to a store while a test watches, races or kills them. Started with `spawn`, so importable."""

import os
from io import RawIOBase
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier, Event
from typing import BinaryIO, cast

from services.runtime.objects import open_store

WAIT_S = 120


def race_to_create(uri: str, rounds: int, start: Barrier, won: "SimpleQueue[tuple[int, int]]") -> None:
    """Creates `race/{round}` once a round, together with the others; reports the rounds it won."""
    store = open_store(uri)
    for number in range(rounds):
        start.wait(WAIT_S)
        if store.put(f"race/{number}", str(os.getpid()).encode(), if_absent=True) is not None:
            won.put((number, os.getpid()))


def count_up(uri: str, times: int, start: Barrier) -> None:
    """Adds one to `counter`, `times` times, by compare and swap."""
    store = open_store(uri)
    start.wait(WAIT_S)
    for _ in range(times):
        while True:
            read = store.get_with_etag("counter")
            if store.put("counter", str(int(read.data) + 1).encode(), if_match=read.etag) is not None:
                break


class StallingStream(RawIOBase):
    """Yields `size_bytes`, says so, and then never ends."""

    def __init__(self, size_bytes: int, stalled: Event, never: Event) -> None:
        self.remaining, self.stalled, self.never = size_bytes, stalled, never

    def read(self, size: int = -1, /) -> bytes:
        if self.remaining == 0:
            self.stalled.set()
            self.never.wait(WAIT_S)
        count = min(size, self.remaining)
        self.remaining -= count
        return b"n" * count


def stall_in_stream(uri: str, size_bytes: int, stalled: Event, never: Event) -> None:
    """Writes the start of `big` and then hangs in the middle of the write."""
    open_store(uri).put_stream("big", cast(BinaryIO, StallingStream(size_bytes, stalled, never)))


def write_in_turn(uri: str, size_bytes: int, started: Event) -> None:
    """Replaces `big` by `a`s and by `b`s for ever."""
    store = open_store(uri)
    while True:
        for letter in (b"a", b"b"):
            store.put("big", letter * size_bytes)
            started.set()
