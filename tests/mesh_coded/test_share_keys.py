"""Keys of shares have one form, and say which segments can be put together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.ids import SegmentName
from vaultfs.mesh.replica_keys import Kind, parse_object_key
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import (
    PACKED_BYTES,
    ShareKey,
    pack_shares,
    parse_share_key,
    unpack_shares,
    whole_segments,
)

SEGMENT = SegmentName("ab" * 32)
NAME = "cd" * 32


def key(needed: int = 2, total: int = 3, index: int = 0, size: int = 1000) -> ShareKey:
    return ShareKey(CodedSegment(SEGMENT, size, Coding(needed, total)), index, NAME)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 63), st.integers(1, 128 << 20))
def test_a_key_is_read_as_it_was_written(needed: int, total: int, index: int, size: int) -> None:
    if not (needed <= total and index < total):
        return
    written = key(needed, total, index, size)
    assert parse_share_key(str(written)) == written
    stored = parse_object_key(str(written))
    assert stored is not None
    assert (stored.kind, stored.digest) == (Kind.SHARE, bytes.fromhex(NAME))
    assert stored.largest_bytes == written.coded.share_bytes


@pytest.mark.parametrize(
    "text",
    [
        f"shares/{SEGMENT}/2-3-3-1000-{NAME}",
        f"shares/{SEGMENT}/3-2-0-1000-{NAME}",
        f"shares/{SEGMENT}/0-3-0-1000-{NAME}",
        f"shares/{SEGMENT}/2-65-0-1000-{NAME}",
        f"shares/{SEGMENT}/02-3-0-1000-{NAME}",
        f"shares/{SEGMENT}/2-3-00-1000-{NAME}",
        f"shares/{SEGMENT}/2-3-0-0-{NAME}",
        f"shares/{SEGMENT}/2-3-0-01000-{NAME}",
        f"shares/{SEGMENT}/2-3-0-134217729-{NAME}",
        f"shares/{SEGMENT}/2-3-0-{NAME}",
        f"shares/{SEGMENT}/2-3-0-1000-{NAME.upper()}",
        f"shares/{SEGMENT}/2-3-0-1000-{NAME}\n",
        f"shares/{SEGMENT}x/2-3-0-1000-{NAME}",
        f"share/{SEGMENT}/2-3-0-1000-{NAME}",
        "",
    ],
)
def test_what_is_no_key_of_a_share(text: str) -> None:
    assert parse_share_key(text) is None
    assert parse_object_key(text) is None


def test_segments_that_enough_shares_give_back() -> None:
    enough = [str(key(index=index)) for index in (0, 2)]
    assert whole_segments(enough) == {SEGMENT: 1000}
    assert whole_segments(enough[:1]) == {}
    assert whole_segments([enough[0], enough[0], "segments/x"]) == {}


def test_shares_of_different_codings_do_not_add_up() -> None:
    assert whole_segments([str(key(2, 3, 0)), str(key(2, 4, 1)), str(key(2, 3, 1, 999))]) == {}


def test_keys_are_remembered_as_they_are() -> None:
    shares = [
        ShareKey(CodedSegment(SegmentName(f"{number:064x}"), size, coding), coding.total - 1, f"{number + 1:064x}")
        for number, (size, coding) in enumerate([(1, Coding(1, 1)), (128 << 20, Coding(64, 64)), (7, Coding(4, 7))])
    ]
    data = pack_shares(shares)
    assert len(data) == 3 * PACKED_BYTES
    assert list(unpack_shares(data)) == shares
    assert list(unpack_shares(data + b"cut")) == shares
    assert list(unpack_shares(bytes(PACKED_BYTES))) == []
