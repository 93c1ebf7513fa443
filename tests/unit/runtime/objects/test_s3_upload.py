"""How a stream is cut into parts."""

import io
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.objects.s3_upload import MAX_PARTS, MIN_PART_BYTES, part_bytes, read_part

TIB = 2**40


@given(st.integers(0, 50 * TIB))
def test_an_announced_size_fits_into_the_parts(size_bytes: int) -> None:
    part = part_bytes(1, size_bytes)

    assert part >= MIN_PART_BYTES
    assert part * MAX_PARTS >= size_bytes
    assert part_bytes(MAX_PARTS, size_bytes) == part


def test_an_unknown_size_may_be_large() -> None:
    sizes = [part_bytes(number, None) for number in range(1, MAX_PARTS + 1)]

    assert sizes[0] == MIN_PART_BYTES
    assert sizes == sorted(sizes)
    assert max(sizes) <= 128 * 2**20
    assert sum(sizes) > 480 * 2**30


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(1, 7))
def test_parts_are_full_though_reads_are_short(data: bytes, size_bytes: int, at_most: int) -> None:
    class Short(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(cast(int, size), at_most))

    stream, parts = Short(data), []
    while part := read_part(stream, size_bytes):
        parts.append(part)

    assert b"".join(parts) == data
    assert all(len(part) == size_bytes for part in parts[:-1])
