from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.mesh.erasure import decode, encode
from vaultfs.mesh.share_format import BLOCK_BYTES

from .shares import Dribble, decoded, make_shares, rebuilt
from .specified import coded_segment, some_segment, specified_share


@st.composite
def codings(draw: st.DrawFn, most: int) -> tuple[int, int]:
    total = draw(st.integers(1, most))
    return draw(st.integers(1, total)), total


def sizes(needed: int) -> st.SearchStrategy[int]:
    """Few bytes, and a few more or less than whole stripes."""
    near = st.builds(lambda n, d: max(1, n * needed * BLOCK_BYTES + d), st.integers(0, 2), st.integers(-70, 70))
    return st.integers(1, 200) | near


@st.composite
def cases(draw: st.DrawFn, most: int) -> tuple[int, int, int, list[int]]:
    needed, total = draw(codings(most))
    chosen = draw(st.permutations(range(total)))[:needed]
    return needed, total, draw(sizes(needed)), chosen


def check_case(case: tuple[int, int, int, list[int]]) -> None:
    needed, total, size_bytes, chosen = case
    segment = some_segment(size_bytes)
    coded = coded_segment(segment, f"{needed}/{total}")
    shares = make_shares(segment, coded)
    assert {len(share) for share in shares} == {coded.share_bytes}
    assert decoded(coded, [shares[index] for index in chosen]) == segment
    wanted = range(total)
    assert rebuilt(coded, [shares[index] for index in chosen], wanted) == dict(enumerate(shares))


@settings(max_examples=60, deadline=None)
@given(cases(9))
def test_any_shares_give_the_segment_and_all_shares(case: tuple[int, int, int, list[int]]) -> None:
    check_case(case)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(cases(64))
def test_any_shares_give_the_segment_and_all_shares_at_length(case: tuple[int, int, int, list[int]]) -> None:
    check_case(case)


@pytest.mark.parametrize("coding", [f"{k}/{n}" for n in range(1, 7) for k in range(1, n + 1)])
def test_every_subset(coding: str) -> None:
    segment = some_segment(29)
    coded = coded_segment(segment, coding)
    shares = make_shares(segment, coded)
    for chosen in itertools.permutations(range(coded.coding.total), coded.coding.needed):
        assert decoded(coded, [shares[index] for index in chosen]) == segment


def test_the_widest_coding() -> None:
    segment = some_segment(64 * 3 + 1)
    for coding in ("32/64", "1/64", "64/64", "63/64"):
        coded = coded_segment(segment, coding)
        shares = make_shares(segment, coded)
        assert decoded(coded, shares[-coded.coding.needed :]) == segment


@settings(max_examples=40, deadline=None)
@given(codings(12), st.integers(1, 200))
def test_shares_are_as_specified(coding: tuple[int, int], size_bytes: int) -> None:
    segment = some_segment(size_bytes)
    coded = coded_segment(segment, f"{coding[0]}/{coding[1]}")
    expected = [specified_share(segment, coded.coding, index) for index in range(coding[1])]
    assert make_shares(segment, coded) == expected


@pytest.mark.parametrize("coding", ["2/3", "3/5"])
@pytest.mark.parametrize("over", [-1, 0, 1, 5])
def test_shares_of_several_stripes_are_as_specified(coding: str, over: int) -> None:
    segment = some_segment(2 * int(coding[0]) * BLOCK_BYTES + over)
    coded = coded_segment(segment, coding)
    expected = [specified_share(segment, coded.coding, index) for index in range(coded.coding.total)]
    assert make_shares(segment, coded) == expected


def test_a_share_does_not_depend_on_how_many_there_are() -> None:
    segment = some_segment(1000)
    few, many = (make_shares(segment, coded_segment(segment, coding)) for coding in ("3/5", "3/9"))
    assert [share[64:] for share in few] == [share[64:] for share in many[:5]]
    assert not {share[:64] for share in few} & {share[:64] for share in many}


def test_some_shares_only() -> None:
    segment = some_segment(3 * BLOCK_BYTES + 10)
    coded = coded_segment(segment, "3/7")
    shares = make_shares(segment, coded)
    made = {index: bytearray() for index in (6, 1, 4)}
    encode(io.BytesIO(segment), coded, {index: share.extend for index, share in made.items()})
    assert made == {index: shares[index] for index in made}
    assert rebuilt(coded, shares[2:5], [5, 0]) == {5: shares[5], 0: shares[0]}


def test_streams_that_give_little() -> None:
    segment = some_segment(1000)
    coded = coded_segment(segment, "2/4")
    shares = make_shares(segment, coded)
    made = bytearray()
    encode(Dribble(segment), coded, {3: made.extend})
    assert made == shares[3]
    got = bytearray()
    decode(coded, [Dribble(shares[3]), Dribble(shares[0], 1)], got.extend)
    assert got == segment


@pytest.mark.parametrize("coding", ["1/1", "3/5"])
@pytest.mark.parametrize("size_bytes", [1, 999, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 5])
def test_a_source_that_is_not_the_segment(coding: str, size_bytes: int) -> None:
    segment = some_segment(size_bytes)
    coded = coded_segment(segment, coding)
    changed = segment[:-1] + bytes([segment[-1] ^ 1])
    for source, message in [(segment[:-1], "ends before"), (segment + b"\0", "damaged"), (changed, "damaged")]:
        with pytest.raises(IntegrityError, match=message):
            encode(io.BytesIO(source), coded, {0: bytearray().extend})


@pytest.mark.parametrize("index", [-1, 3])
def test_a_share_that_there_is_not(index: int) -> None:
    segment = some_segment(10)
    coded = coded_segment(segment, "2/3")
    written = bytearray()
    with pytest.raises(UsageError, match=f"no share {index}"):
        encode(io.BytesIO(segment), coded, {0: written.extend, index: written.extend})
    with pytest.raises(UsageError, match=f"no share {index}"):
        rebuilt(coded, make_shares(segment, coded)[:2], [index])
    assert not written
