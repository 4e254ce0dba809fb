"""Parts of shares from parts of the segment, and from the same parts of other shares."""

from __future__ import annotations

import io
import itertools
import random

import pytest
from blake3 import blake3

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import SegmentName
from vaultfs.mesh.erasure import encode
from vaultfs.mesh.share_format import BLOCK_BYTES, HEADER_BYTES, CodedSegment, Coding
from vaultfs.mesh.share_parts import part_of_segment, part_of_shares


def cut(size: int, coding: Coding) -> tuple[bytes, CodedSegment, list[bytes]]:
    data = random.Random(size).randbytes(size)
    coded = CodedSegment(SegmentName(blake3(data).hexdigest()), size, coding)
    made = [bytearray() for _ in range(coding.total)]
    encode(io.BytesIO(data), coded, {index: share.extend for index, share in enumerate(made)})
    return data, coded, [bytes(share) for share in made]


def reader(data: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return lambda offset, length: data[offset : offset + length]


SIZES = [1, 7, BLOCK_BYTES * 3 - 1, BLOCK_BYTES * 3, BLOCK_BYTES * 3 + 1, BLOCK_BYTES * 7 + 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coding", [Coding(3, 5), Coding(1, 2), Coding(2, 2)], ids=str)
def test_any_part_from_the_segment(size: int, coding: Coding) -> None:
    data, coded, shares = cut(size, coding)
    draw = random.Random(size)
    edges = {0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + BLOCK_BYTES - 1, HEADER_BYTES + BLOCK_BYTES}
    for index, share in enumerate(shares):
        starts = {edge for edge in edges if edge < len(share)} | {draw.randrange(len(share)) for _ in range(5)}
        for start in starts:
            for length in {1, min(70_000, len(share) - start), len(share) - start}:
                part = part_of_segment(coded, index, start, length, reader(data))
                assert part == share[start : start + length], (index, start, length)


def test_only_what_is_needed_is_read() -> None:
    data, coded, shares = cut(BLOCK_BYTES * 7, Coding(3, 5))
    asked: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return data[offset : offset + length]

    assert part_of_segment(coded, 1, HEADER_BYTES + 10, 100, read) == shares[1][HEADER_BYTES + 10 :][:100]
    assert asked == [(BLOCK_BYTES + 10, 100)]
    asked.clear()
    part_of_segment(coded, 4, HEADER_BYTES + BLOCK_BYTES - 1, 2, read)
    assert sum(length for _, length in asked) == 6
    asked.clear()
    part_of_segment(coded, 4, 0, HEADER_BYTES, read)
    assert asked == []


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (HEADER_BYTES, 5), (HEADER_BYTES + 4, 1)])
def test_what_is_not_in_a_share(offset: int, length: int) -> None:
    data, coded, _ = cut(7, Coding(2, 3))
    with pytest.raises(UsageError):
        part_of_segment(coded, 0, offset, length, reader(data))


def test_a_segment_that_was_cut() -> None:
    data, coded, _ = cut(BLOCK_BYTES, Coding(2, 3))
    with pytest.raises(IntegrityError, match="ends before"):
        part_of_segment(coded, 2, HEADER_BYTES, 100, reader(data[: BLOCK_BYTES // 2 + 10]))


@pytest.mark.parametrize("size", SIZES)
def test_any_part_from_any_others(size: int) -> None:
    _, coded, shares = cut(size, Coding(3, 5))
    start = HEADER_BYTES + (coded.share_bytes - HEADER_BYTES) // 3
    for chosen in itertools.combinations(range(5), 3):
        parts = {index: shares[index][start : start + 4096] for index in chosen}
        for index in range(5):
            assert part_of_shares(coded, index, parts) == shares[index][start : start + 4096]


def test_parts_that_do_not_fit() -> None:
    _, coded, shares = cut(5000, Coding(3, 5))
    parts = {index: shares[index][64:100] for index in range(3)}
    with pytest.raises(UsageError, match="from 3 others"):
        part_of_shares(coded, 4, {0: parts[0], 1: parts[1]})
    with pytest.raises(UsageError, match="from 3 others"):
        part_of_shares(coded, 4, parts | {3: shares[3][64:100]})
    with pytest.raises(IntegrityError, match="one length"):
        part_of_shares(coded, 4, parts | {0: b"short"})


def test_one_wrong_byte_shows_in_the_others() -> None:
    _, coded, shares = cut(5000, Coding(3, 5))
    parts = {index: shares[index][64:100] for index in range(3)}
    parts[1] = bytes([parts[1][0] ^ 1]) + parts[1][1:]
    for index in (3, 4):
        assert part_of_shares(coded, index, parts) != shares[index][64:100]
