from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError
from vaultfs.mesh.erasure import decode
from vaultfs.mesh.share_format import BLOCK_BYTES, HEADER_BYTES, CodedSegment, Coding, ShareHeader

from .shares import decoded, flipped, make_shares, rebuilt
from .specified import coded_segment, some_segment

SEGMENT = some_segment(3 * BLOCK_BYTES + 1000)
CODED = coded_segment(SEGMENT, "3/5")
SHARES = make_shares(SEGMENT, CODED)


def refused(shares: list[bytes], match: str) -> None:
    """Neither decoded nor taken for rebuilding."""
    with pytest.raises(IntegrityError, match=match):
        decoded(CODED, shares)
    with pytest.raises(IntegrityError, match=match):
        rebuilt(CODED, shares, [0, 4])


@pytest.mark.parametrize("others", [[0, 1], [3, 4], [0, 4]])
@pytest.mark.parametrize("position", [HEADER_BYTES, HEADER_BYTES + BLOCK_BYTES - 1, HEADER_BYTES + BLOCK_BYTES, -3])
def test_a_share_with_other_data(others: list[int], position: int) -> None:
    refused([flipped(SHARES[2], position), *(SHARES[index] for index in others)], "do not give the segment")


@pytest.mark.parametrize("index", range(5))
def test_a_share_that_is_cut(index: int) -> None:
    others = [SHARES[(index + 1) % 5], SHARES[(index + 3) % 5]]
    for length in (HEADER_BYTES, HEADER_BYTES + BLOCK_BYTES, len(SHARES[0]) - 1):
        refused([*others, SHARES[index][:length]], f"share {index} of the segment .* was cut")
    refused([*others, SHARES[index][: HEADER_BYTES - 1]], "header has 64 bytes, not 63")
    refused([*others, b""], "header has 64 bytes, not 0")


@pytest.mark.parametrize("index", range(5))
def test_a_share_that_is_extended(index: int) -> None:
    others = [SHARES[(index + 1) % 5], SHARES[(index + 3) % 5]]
    refused([SHARES[index] + b"\0", *others], f"share {index} of the segment .* is too long")


def test_padding_that_is_not_zero() -> None:
    assert len(SEGMENT) % 3 == 1  # two bytes of padding, at the end of the last primary block
    right = SHARES[:2]
    assert decoded(CODED, [*right, SHARES[2]]) == SEGMENT
    for position in (-1, -2):
        refused([*right, flipped(SHARES[2], position)], "padding is not zero")
    refused([*right, flipped(SHARES[3], -1)], "padding is not zero")


def test_a_block_that_is_all_padding() -> None:
    segment = b"ab"
    coded = coded_segment(segment, "5/6")
    shares = make_shares(segment, coded)
    assert shares[4][HEADER_BYTES:] == b"\0"
    with pytest.raises(IntegrityError, match="padding is not zero"):
        decoded(coded, [*shares[:2], flipped(shares[2], -1), *shares[3:5]])


def test_a_block_after_one_that_is_padded_in_part() -> None:
    coded = coded_segment(b"abcde", "4/6")
    shares = make_shares(b"abcde", coded)
    assert [share[HEADER_BYTES:] for share in shares[:4]] == [b"ab", b"cd", b"e\0", b"\0\0"]
    for position in (-1, -2):
        with pytest.raises(IntegrityError, match="padding is not zero"):
            decoded(coded, [*shares[:3], flipped(shares[3], position)])


def test_a_share_twice() -> None:
    refused([SHARES[0], SHARES[0], SHARES[1]], "share 0 .* came twice")
    refused([SHARES[4], SHARES[1], flipped(SHARES[4], -1)], "share 4 .* came twice")


def test_one_stream_for_two_shares() -> None:
    stream = io.BytesIO(ShareHeader(CODED, 3).encode() + SHARES[3])
    with pytest.raises(IntegrityError, match=r"share 3 .* came twice"):
        decode(CODED, [stream, stream, io.BytesIO(SHARES[0])], bytearray().extend)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_not_as_many_as_needed(count: int) -> None:
    with pytest.raises(UsageError, match=f"from 3 shares, not {count}"):
        decoded(CODED, SHARES[:count])


def with_header(share: bytes, header: ShareHeader) -> bytes:
    return header.encode() + share[HEADER_BYTES:]


@pytest.mark.parametrize("index", range(5))
def test_two_shares_with_their_headers_exchanged(index: int) -> None:
    other = (index + 2) % 5
    first = with_header(SHARES[index], ShareHeader(CODED, other))
    second = with_header(SHARES[other], ShareHeader(CODED, index))
    refused([first, second, SHARES[(index + 1) % 5]], "wrong")


@pytest.mark.parametrize(
    "coded",
    [
        coded_segment(SEGMENT[::-1], "3/5"),
        dataclasses.replace(CODED, size_bytes=CODED.size_bytes + 1),
        dataclasses.replace(CODED, coding=Coding(3, 6)),
        dataclasses.replace(CODED, coding=Coding(2, 5)),
    ],
)
def test_a_share_of_something_else(coded: CodedSegment) -> None:
    stranger = with_header(SHARES[2], ShareHeader(coded, 2))
    refused([SHARES[0], stranger, SHARES[1]], "share 2 is not one of the segment")


def test_a_share_of_a_newer_format() -> None:
    newer = SHARES[0][:7] + b"\x02" + SHARES[0][8:]
    with pytest.raises(FormatTooNewError):
        decoded(CODED, [newer, *SHARES[1:3]])


def test_shares_of_another_segment_as_if_of_this() -> None:
    strangers = make_shares(SEGMENT[::-1], coded_segment(SEGMENT[::-1], "3/5"))
    refused([with_header(strangers[index], ShareHeader(CODED, index)) for index in (0, 1, 4)], "wrong")


Damage = Callable[[bytes, int], bytes]
DAMAGES: list[Damage] = [
    flipped,
    lambda data, at: data[:at],
    lambda data, at: data + bytes(at + 1),
    lambda data, at: data[:at] + data[at + 1 :],
    lambda data, at: data[:at] + b"\0" + data[at:],
]
SMALL = some_segment(100)
SMALL_CODED = coded_segment(SMALL, "4/6")
SMALL_SHARES = make_shares(SMALL, SMALL_CODED)


@settings(max_examples=300, deadline=None)
@given(
    st.permutations(range(6)),
    st.sampled_from(DAMAGES),
    st.integers(0, SMALL_CODED.share_bytes - 1),
)
def test_no_damage_goes_unnoticed(order: list[int], damage: Damage, position: int) -> None:
    shares = [SMALL_SHARES[index] for index in order[:4]]
    shares[0] = damage(shares[0], position)
    with pytest.raises((IntegrityError, FormatTooNewError)):
        decoded(SMALL_CODED, shares)
