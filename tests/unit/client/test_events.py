"""Event streams: parsing, and going on after lost connections."""

from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.client.errors import ApiError, Unreachable
from services.client.events import ServerSentEvent, follow, parse_events
from services.client.transport import Patience
from services.contracts.base import utc_now
from services.contracts.jobs import JobEvent, JobEventType, JobState
from tests.unit.client.test_transport import Clock, Server, Transport, problem


def event(seq: int, state: JobState = JobState.TRAINING, kind: JobEventType = JobEventType.EPOCH) -> JobEvent:
    return JobEvent(seq=seq, type=kind, at=utc_now(), attempt=1, state=state, message="", data={})


def last(seq: int) -> JobEvent:
    return event(seq, JobState.SUCCEEDED, JobEventType.STATE)


def lines(*events: JobEvent) -> str:
    return "".join(f"id: {one.seq}\nevent: {one.type}\ndata: {one.model_dump_json()}\n\n" for one in events)


class Broken(httpx2.SyncByteStream):
    """Sends some bytes, then loses the connection."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        raise httpx2.ReadError("connection lost")


def broken_after(*events: JobEvent, rest: str = "") -> httpx2.Response:
    return httpx2.Response(200, stream=Broken(lines(*events) + rest))


def whole(*events: JobEvent) -> httpx2.Response:
    return httpx2.Response(200, text=lines(*events))


def run(server: Server, *, clock: Clock | None = None, after: int = 0, is_over: bool = False) -> list[int]:
    clock = clock or Clock()
    patience = Patience(30, lambda: clock.now_s, clock.sleep)
    transport = Transport("http://server", api_key=None, timeout_s=5, patience=patience, http=server)
    return [one.seq for one in follow(transport, "/events", after, lambda: is_over)]


def test_events_come_until_the_one_that_ends_the_job() -> None:
    assert run(Server(whole(event(1), event(2), last(3)))) == [1, 2, 3]


def test_a_lost_connection_goes_on_with_the_next_event() -> None:
    server = Server(broken_after(event(1), event(2)), whole(event(3), last(4)))
    assert run(server) == [1, 2, 3, 4]
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "2"]


def test_half_an_event_is_asked_for_again() -> None:
    server = Server(broken_after(event(1), rest='id: 2\ndata: {"seq": 2, "ty'), whole(event(2), last(3)))
    assert run(server) == [1, 2, 3]


def test_an_event_that_comes_twice_is_given_once() -> None:
    assert run(Server(broken_after(event(1), event(2)), whole(event(2), event(3), last(4)))) == [1, 2, 3, 4]


def test_a_stream_that_the_server_ends_early_goes_on() -> None:
    server = Server(
        whole(event(1)), whole(), httpx2.ConnectError("restarting"), problem(503, "unavailable"), whole(last(2))
    )
    assert run(server) == [1, 2]


def test_a_job_that_has_ended_before_has_no_events_left() -> None:
    assert run(Server(whole()), after=9, is_over=True) == []


def test_a_job_that_does_not_exist_is_no_reason_to_try_again() -> None:
    server = Server(problem(404, "not_found"))
    with pytest.raises(ApiError):
        run(server)
    assert len(server.requests) == 1


def test_a_server_that_stays_away_is_given_up() -> None:
    clock = Clock()
    with pytest.raises(Unreachable):
        run(Server(whole(event(1)), httpx2.ConnectError("gone")), clock=clock)
    assert clock.now_s <= 30


def test_comments_and_unfinished_events_are_dropped() -> None:
    text = [": ping", "", "id: 1", "data: a", "data: b", "", "id: 2", "data: never finished"]
    assert list(parse_events(text)) == [ServerSentEvent("1", "message", "a\nb")]


@given(st.lists(st.integers(min_value=1, max_value=5), max_size=6), st.integers(min_value=0, max_value=3))
def test_no_event_is_lost_or_repeated_wherever_connections_break(chunks: list[int], overlap: int) -> None:
    """Each connection delivers some events and breaks; the next may send some of them again."""
    total = sum(chunks) + 1
    answers, sent = [], 0
    for size in chunks:
        start = max(0, sent - overlap)
        answers.append(broken_after(*(event(seq) for seq in range(start + 1, sent + size + 1))))
        sent += size
    answers.append(whole(last(total)))
    assert run(Server(*answers)) == list(range(1, total + 1))
