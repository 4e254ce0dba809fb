from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vaultfs.ids import SegmentName
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.plan import RoundSize, ancestors, lacking, newest_last, reconciled, strangers
from vaultfs.sync.remote_layout import RemoteHead

names = st.integers(0, 15).map(lambda number: SegmentName(f"{number:064x}"))
sizes = st.integers(1, 3)
maps = st.dictionaries(names, sizes)


def head(seq: int, digest: int | None = None) -> RemoteHead:
    return RemoteHead("d" * 64, seq, f"{seq if digest is None else digest:064x}")


@given(maps, maps, maps)
def test_what_is_not_there_is_lacking(
    wanted: dict[SegmentName, int], there: dict[SegmentName, int], put: dict[SegmentName, int]
) -> None:
    lack = lacking(wanted.items(), Holdings(there=there, put=put))
    assert lack.unsent.keys().isdisjoint(lack.unconfirmed)
    for name, size in wanted.items():
        assert (name not in lack.unsent and name not in lack.unconfirmed) == (there.get(name) == size)
        assert lack.unsent.get(name, size) == size
        if name in lack.unconfirmed:
            assert put[name] == size
    assert lack.unsent.keys() | lack.unconfirmed.keys() <= wanted.keys()


@given(maps, maps, maps, st.booleans())
def test_after_a_listing(
    there: dict[SegmentName, int], put: dict[SegmentName, int], listed: dict[SegmentName, int], was_listed: bool
) -> None:
    known = {"1": head(1)}
    before = Holdings(was_listed, "h", {"h", "g"}, put, there, known, {head(1).hash})
    after = reconciled(before, listed)
    assert after.is_listed
    assert after.there == listed
    assert after.put.keys() == (there.keys() | put.keys()) - listed.keys()
    assert (after.header, after.offered, after.heads) == ("h", {"h", "g"}, known)
    assert after.whole == set()


def test_an_empty_segment_is_not_there() -> None:
    name = SegmentName("0" * 64)
    assert reconciled(Holdings(), {name: 0}).there == {}


def test_a_full_round() -> None:
    size = RoundSize()
    for _ in range(63):
        size.add(1000, 3)
        assert not size.is_full
    size.add(0, 0)
    assert size.is_full
    for one in ((1 << 30, 1), (0, 1 << 18)):
        size = RoundSize()
        size.add(*one)
        assert size.is_full


def test_newest_last() -> None:
    assert newest_last([head(3), head(1), head(2)]) == [head(1), head(2), head(3)]


def test_strangers() -> None:
    listed = [head(1), head(2), head(2, 98), head(3), head(3, 99), head(4)]
    assert strangers(listed, {head(2).hash, head(3).hash}, 2) == [head(2, 98), head(3, 99), head(4)]
    assert strangers(listed, {each.hash for each in listed}, 1) == []
    assert strangers([head(1)], set(), None) == [head(1)]
    assert strangers([head(1)], set(), 2) == []


class Chain:
    """Manifests that name the one before; counts how often it is asked."""

    def __init__(self, *seqs: int) -> None:
        self.before = {head(new).hash: head(old).hash for old, new in itertools.pairwise(seqs)}
        self.asked: list[str] = []

    def __call__(self, digest: str) -> str | None:
        self.asked.append(digest)
        return self.before.get(digest)


def test_what_our_chain_leads_to_is_ours() -> None:
    chain = Chain(1, 2, 3, 4, 5)
    unknown = [head(3), head(2)]
    assert ancestors(unknown, [(4, head(4).hash)], chain) == [head(3), head(2)]
    assert len(chain.asked) == 2


def test_a_branch_is_not_ours() -> None:
    chain = Chain(1, 2, 4)
    assert ancestors([head(3), head(2)], [(4, head(4).hash)], chain) == [head(2)]


def test_a_chain_ends_where_something_is_missing() -> None:
    chain = Chain(3, 4)
    assert ancestors([head(2)], [(4, head(4).hash)], chain) == []


def test_a_circle_ends() -> None:
    chain = Chain(4, 3, 4)
    assert ancestors([head(1)], [(4, head(4).hash), (3, head(3).hash)], chain) == []


def test_what_is_newer_than_ours_costs_nothing() -> None:
    chain = Chain(1, 2, 3)
    assert ancestors([head(5)], [(3, head(3).hash), (2, head(2).hash)], chain) == []
    assert chain.asked == []


@given(st.integers(2, 12), st.sets(st.integers(1, 12)), st.sets(st.integers(1, 12)))
def test_in_one_chain_everything_older_is_ours(newest: int, known: set[int], unknown: set[int]) -> None:
    chain = Chain(*range(1, newest + 1))
    known = {seq for seq in known | {newest} if seq <= newest}
    unknown = {seq for seq in unknown - known if seq < newest}
    reach = [(seq, head(seq).hash) for seq in sorted(known, reverse=True)]
    found = ancestors([head(seq) for seq in unknown], reach, chain)
    assert set(found) == {head(seq) for seq in unknown if all_between(seq, known, unknown)}


def all_between(seq: int, known: set[int], unknown: set[int]) -> bool:
    """Whether a known one can be reached upwards through unknown ones."""
    above = seq + 1
    while above in unknown:
        above += 1
    return above in known
