from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.errors import IntegrityError
from vaultfs.mesh import erasure
from vaultfs.mesh.erasure import ShareVerdict, Source, Writer, find_wrong, share_name
from vaultfs.mesh.share_format import HEADER_BYTES, CodedSegment

from .shares import flipped, make_shares, name_of, streams
from .specified import coded_segment, some_segment

SEGMENT = some_segment(1001)
CODED = coded_segment(SEGMENT, "4/7")
SHARES = make_shares(SEGMENT, CODED)
NAMES = tuple(name_of(share) for share in SHARES)


def verdict(shares: list[bytes], attempts: int = 100) -> ShareVerdict:
    return find_wrong(CODED, streams(shares), attempts=attempts)


class Attempts:
    """Counts the decodings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._decode = erasure.decode
        monkeypatch.setattr(erasure, "decode", self)

    def __call__(self, coded: CodedSegment, shares: list[Source], sink: Writer) -> None:
        self.count += 1
        self._decode(coded, shares, sink)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    return Attempts(monkeypatch)


def test_none_is_wrong(attempts: Attempts) -> None:
    assert verdict(SHARES) == ShareVerdict(NAMES, ())
    assert verdict(SHARES[1:6]) == ShareVerdict(NAMES, ())
    assert attempts.count == 2


def test_any_three_of_seven_are_wrong() -> None:
    for count in (1, 2, 3):
        for wrong in itertools.combinations(range(7), count):
            shares = [flipped(share, -1) if at in wrong else share for at, share in enumerate(SHARES)]
            assert verdict(shares) == ShareVerdict(NAMES, wrong)


def test_one_is_left_out_soon(attempts: Attempts) -> None:
    for wrong in range(7):
        attempts.count = 0
        assert verdict([flipped(share, -1) if at == wrong else share for at, share in enumerate(SHARES)]).wrong == (
            wrong,
        )
        assert attempts.count <= 3


def test_one_of_many_is_left_out_soon(attempts: Attempts) -> None:
    segment = some_segment(100)
    coded = coded_segment(segment, "8/10")
    shares = make_shares(segment, coded)
    for wrong in range(10):
        attempts.count = 0
        changed = [flipped(share, -1) if at == wrong else share for at, share in enumerate(shares)]
        assert find_wrong(coded, streams(changed)).wrong == (wrong,)
        assert attempts.count <= 5


def test_one_too_many_are_wrong(attempts: Attempts) -> None:
    with pytest.raises(IntegrityError, match="no 4 of 7 shares"):
        verdict([flipped(share, -1) for share in SHARES[:4]] + SHARES[4:])
    assert attempts.count == 35


@pytest.mark.parametrize("count", [0, 3])
def test_too_few(attempts: Attempts, count: int) -> None:
    with pytest.raises(IntegrityError, match=f"no 4 of {count} shares"):
        verdict(SHARES[:count])
    assert attempts.count == 0


def test_as_many_as_needed_and_no_more(attempts: Attempts) -> None:
    assert verdict(SHARES[3:]) == ShareVerdict(NAMES, ())
    with pytest.raises(IntegrityError, match="no 4 of 4"):
        verdict([*SHARES[:3], flipped(SHARES[3], -1)])
    assert attempts.count == 2


def test_attempts_end(attempts: Attempts) -> None:
    shares = [flipped(SHARES[0], -1), *SHARES[1:3], flipped(SHARES[3], -1), *SHARES[4:6], flipped(SHARES[6], -1)]
    for limit in (0, 1, 2, 3):
        attempts.count = 0
        with pytest.raises(IntegrityError, match="as far as was tried"):
            verdict(shares, limit)
        assert attempts.count == limit
    attempts.count = 0
    assert verdict(shares, 35).wrong == (0, 3, 6)
    assert attempts.count <= 35


def test_more_subsets_than_attempts(attempts: Attempts) -> None:
    segment = some_segment(100)
    coded = coded_segment(segment, "10/20")
    shares = make_shares(segment, coded)
    apart = [flipped(share, -1) if at in {0, 19} else share for at, share in enumerate(shares)]
    # The two windows fail.  A subset at random is without the two in 9 of 38 cases, so 400 fail once in 10**46 runs.
    assert find_wrong(coded, streams(apart), attempts=400).wrong == (0, 19)
    assert 2 < attempts.count <= 400
    attempts.count = 0
    with pytest.raises(IntegrityError):
        find_wrong(coded, streams(flipped(share, -1) for share in shares), attempts=30)
    assert 28 <= attempts.count <= 30  # of 184,756 subsets hardly one is drawn twice


def test_what_is_no_share_at_all(attempts: Attempts) -> None:
    strangers = make_shares(SEGMENT[::-1], coded_segment(SEGMENT[::-1], "4/7"))
    newer = SHARES[3][:7] + b"\x02" + SHARES[3][8:]
    shares = [b"", strangers[1], SHARES[2], newer, SHARES[4], SHARES[5], SHARES[6], b"<html>" * 20]
    assert verdict(shares) == ShareVerdict(NAMES, (0, 1, 3, 7))
    assert attempts.count == 1


def test_shares_cut_and_extended() -> None:
    shares = [SHARES[0][:-1], SHARES[1] + b"\0", SHARES[2][:HEADER_BYTES], *SHARES[3:]]
    assert verdict(shares) == ShareVerdict(NAMES, (0, 1, 2))


def test_shares_of_other_segments_cost_no_attempt(attempts: Attempts) -> None:
    strangers = make_shares(SEGMENT[::-1], coded_segment(SEGMENT[::-1], "4/7"))
    assert verdict([*SHARES[:2], *strangers, *SHARES[2:4]]) == ShareVerdict(NAMES, tuple(range(2, 9)))
    assert attempts.count == 1


def test_two_that_claim_to_be_the_same(attempts: Attempts) -> None:
    forged = flipped(SHARES[2], -1)
    assert verdict([forged, *SHARES]) == ShareVerdict(NAMES, (0,))
    assert verdict([SHARES[2], *SHARES]) == ShareVerdict(NAMES, ())
    assert verdict([forged, SHARES[2], *SHARES[4:], forged]) == ShareVerdict(NAMES, (0, 5))
    attempts.count = 0
    with pytest.raises(IntegrityError):
        verdict([SHARES[2]] * 5)
    assert attempts.count == 0


def test_streams_that_were_read_before() -> None:
    used = streams(SHARES)
    for stream in used:
        stream.read(100)
    assert find_wrong(CODED, used) == ShareVerdict(NAMES, ())


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(range(7)),
    st.integers(0, 3),
    st.lists(st.integers(0, CODED.share_bytes - 1), min_size=3, max_size=3),
)
def test_the_wrong_ones_and_no_others(order: list[int], count: int, positions: list[int]) -> None:
    shares = [SHARES[index] for index in order]
    for at in range(count):
        shares[at] = flipped(shares[at], positions[at])
    assert verdict(shares) == ShareVerdict(NAMES, tuple(range(count)))


def test_names_of_shares() -> None:
    assert tuple(share_name(stream, CODED) for stream in streams(SHARES)) == NAMES
    for other in (SHARES[0][:-1], SHARES[0] + b"\0", b"", flipped(SHARES[0], 5)):
        assert share_name(streams([other])[0], CODED) == name_of(other)


def test_no_more_is_read_than_tells_it_is_too_long() -> None:
    stream = streams([SHARES[0] + bytes(1 << 20)])[0]
    assert share_name(stream, CODED) != NAMES[0]
    assert stream.tell() == CODED.share_bytes + 1
