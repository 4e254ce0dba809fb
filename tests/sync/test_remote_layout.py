from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.remotes.keys import is_key
from vaultfs.sync.remote_layout import RemoteHead, head_key, parse_head, parse_segment, segment_key

DIGITS = "0123456789abcdef"
hashes = st.text(DIGITS, min_size=64, max_size=64)
heads = st.builds(RemoteHead, hashes, st.integers(1, 2**63 - 1), hashes)


@given(hashes)
def test_segments_come_back(name: str) -> None:
    key = segment_key(SegmentName(name))
    assert key == f"segments/{name[:2]}/{name}"
    assert is_key(key)
    assert parse_segment(key) == name
    assert parse_head(key) is None


@given(heads)
def test_heads_come_back(head: RemoteHead) -> None:
    key = head_key(head)
    assert is_key(key)
    assert parse_head(key) == head
    assert parse_segment(key) is None


def test_as_it_is_documented() -> None:
    assert segment_key(SegmentName("ab" * 32)) == f"segments/ab/{'ab' * 32}"
    assert head_key(RemoteHead("cd" * 32, 7, "ef" * 32)) == f"heads/{'cd' * 32}/0000000007-{'ef' * 32}"
    assert head_key(RemoteHead("cd" * 32, 12345678901, "ef" * 32)) == f"heads/{'cd' * 32}/12345678901-{'ef' * 32}"


A, D = "ab" * 32, "cd" * 32
NONE_OF_OURS = [
    "",
    "vault.json",
    "segments/",
    "segments/ab",
    f"segments/{A}",
    f"segments/ac/{A}",
    f"segments/ab/{A}.seg",
    f"segments/ab/{A}\n",
    f"segments/ab/{A.upper()}",
    f"segments/ab/{A[:-1]}",
    f"segments/ab/{A}0",
    f"segments/ab/../{A}",
    f"/segments/ab/{A}",
    f"x/segments/ab/{A}",
    f"segments//ab/{A}",
    f"heads/0000000001-{A}",
    f"heads/{D}/1-{A}",
    f"heads/{D}/00000000001-{A}",
    f"heads/{D}/0000000000-{A}",
    f"heads/{D}/-000000001-{A}",
    f"heads/{D}/+000000001-{A}",
    f"heads/{D}/00000_0001-{A}",
    f"heads/{D}/\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661-{A}",
    f"heads/{D}/{2**63}-{A}",
    f"heads/{D}/{10**40}-{A}",
    f"heads/{D}/0000000001-{A}.manifest",
    f"heads/{D}/0000000001-{A}\n",
    f"heads/{D[:-1]}/0000000001-{A}",
    f"heads/../{D}/0000000001-{A}",
    f"heads/{D}/0000000001_{A}",
]


@pytest.mark.parametrize("key", NONE_OF_OURS)
def test_other_names_are_none(key: str) -> None:
    assert parse_segment(key) is None
    assert parse_head(key) is None


names = st.text() | st.text("segmnthad/0123456789abcdef-.\n", max_size=200)


@given(names)
@example("heads/" + "0" * 64 + "/" + "9" * 19 + "-" + "0" * 64)
def test_whatever_is_parsed_has_that_name(key: str) -> None:
    segment, head = parse_segment(key), parse_head(key)
    assert segment is None or segment_key(segment) == key
    assert head is None or head_key(head) == key


@given(st.text(max_size=70))
def test_no_other_text_becomes_a_key(name: str) -> None:
    if len(name) == 64 and set(name) <= set(DIGITS):
        return
    with pytest.raises(IntegrityError):
        segment_key(SegmentName(name))
    with pytest.raises(IntegrityError):
        head_key(RemoteHead("00" * 32, 1, name))
    with pytest.raises(IntegrityError):
        head_key(RemoteHead(name, 1, "00" * 32))


@pytest.mark.parametrize("seq", [0, -1, 2**63])
def test_no_other_number_becomes_a_key(seq: int) -> None:
    with pytest.raises(IntegrityError):
        head_key(RemoteHead("00" * 32, seq, "00" * 32))
