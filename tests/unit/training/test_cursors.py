"""Cursors: what comes out is what went in, and nothing else is let in."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import CallerError
from services.training.cursors import decode, encode

TIMES = st.datetimes(timezones=st.just(UTC))
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=80)


@given(TIMES, KEYS)
def test_a_cursor_comes_back_as_it_was(at: datetime, key: str) -> None:
    assert decode(encode(at, key)) == (at, key)


@given(st.text(max_size=200))
def test_any_other_text_is_the_callers_mistake(text: str) -> None:
    try:
        at, key = decode(text)
    except CallerError:
        return
    assert at.tzinfo is not None
    assert "\0" not in key


def test_a_time_that_has_no_utc_form_is_the_callers_mistake() -> None:
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    with pytest.raises(CallerError):
        decode(encode(early, "x"))


@pytest.mark.parametrize("cursor", ["", "%%%", "W10", "bnVsbA", "WyIyMDI2LTExLTAxVDEyOjAwOjAwIiwgIngiXQ"])
def test_what_is_no_cursor_is_named(cursor: str) -> None:
    with pytest.raises(CallerError, match="no cursor"):
        decode(cursor)
