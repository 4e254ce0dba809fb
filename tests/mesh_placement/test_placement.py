from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.ids import PeerId
from vaultfs.mesh.placement import Placement, Site

from .fabricated import equal_sites, peer, segments, sites

WEIGHTS = [1 << 30, 1 << 30, 2 << 30, 3 << 30, 5 << 30, 8 << 30, 13 << 30, 21 << 30]
MANY = 20_000


def assert_fits(counts: Mapping[Any, int], shares: Mapping[Any, float]) -> None:
    """Pearson's test: the statistic has mean df and variance 2 df, and four deviations are seldom exceeded."""
    assert sum(shares.values()) == pytest.approx(1)
    assert counts.keys() <= shares.keys()
    total = sum(counts.values())
    statistic = sum((counts.get(key, 0) - total * share) ** 2 / (total * share) for key, share in shares.items())
    freedom = len(shares) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    # A hash that spreads better than chance is not random either.
    assert statistic > freedom - 4 * math.sqrt(2 * freedom)


def draw(weights: Mapping[PeerId, int], order: tuple[PeerId, ...]) -> float:
    """The chance that weighted draws without putting back give these, in this order."""
    left = sum(weights.values())
    chance = 1.0
    for drawn in order:
        chance *= weights[drawn] / left
        left -= weights[drawn]
    return chance


@pytest.mark.parametrize("weights", [WEIGHTS, [1 << 40] * 50], ids=["unequal", "equal"])
def test_the_nearest_site_is_each_in_proportion_to_its_weight(weights: list[int]) -> None:
    placement = Placement(sites(weights))
    counts = Counter(placement.sites[placement.ranked_indexes(name)[0]].peer for name in segments(MANY))
    assert_fits(counts, {peer(number): weight / sum(weights) for number, weight in enumerate(weights)})


def test_the_nearest_two_are_drawn_independently() -> None:
    placement = Placement(sites(WEIGHTS))
    weights = {site.peer: site.capacity_bytes for site in placement.sites}
    counts = Counter(tuple(site.peer for site in placement.ranking(name)[:2]) for name in segments(MANY))
    assert_fits(counts, {pair: draw(weights, pair) for pair in itertools.permutations(weights, 2)})


def test_the_order_of_all_sites_is_a_random_one() -> None:
    placement = equal_sites(5)
    counts = Counter(tuple(placement.ranked_indexes(name)) for name in segments(MANY))
    assert_fits(counts, {order: 1 / math.factorial(5) for order in itertools.permutations(range(5))})


def test_segments_are_independent_of_each_other() -> None:
    placement = equal_sites(10)
    nearest = [placement.ranked_indexes(name)[0] for name in segments(MANY + 1)]
    counts = Counter(itertools.pairwise(nearest))
    assert_fits(counts, dict.fromkeys(itertools.product(range(10), repeat=2), 1 / 100))


def test_vaults_with_other_peers_are_spread_otherwise() -> None:
    """No property of the fixed ids: the share of the first of two sites has the right mean and deviation over many."""
    names = segments(400)
    deviations = []
    for number in range(100):
        placement = Placement([Site(peer(2 * number), 3), Site(peer(2 * number + 1), 1)])
        index = placement.indexes[peer(2 * number)]
        count = sum(placement.ranked_indexes(name)[0] == index for name in names)
        deviations.append((count - 300) / math.sqrt(400 * 3 / 16))
    assert abs(sum(deviations) / 100) < 4 / math.sqrt(100)
    assert 0.5 < sum(deviation**2 for deviation in deviations) / 100 < 1.7


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_site_that_joins_takes_its_share_and_nothing_else_moves(replicas: int) -> None:
    before = Placement(sites([1 << 40] * 20))
    after = Placement(sites([1 << 40] * 21))
    names = segments(5000)
    taken = 0
    for name in names:
        old, new = (set(place.chosen(name, replicas)) for place in (before, after))
        assert {site.peer for site in new - old} <= {peer(20)}
        assert len(new) == replicas
        taken += len(new - old)
    expected = len(names) * replicas / 21
    assert abs(taken - expected) < 4 * math.sqrt(expected)


def test_what_a_site_that_leaves_held_goes_to_all_others() -> None:
    before = equal_sites(10)
    after = Placement(site for site in before.sites if site.peer != peer(3))
    heirs: Counter[PeerId] = Counter()
    for name in segments(MANY):
        old, new = (place.chosen(name, 2) for place in (before, after))
        if peer(3) not in {site.peer for site in old}:
            assert new == old
        else:
            (heir,) = set(new) - set(old)
            heirs[heir.peer] += 1
    assert_fits(heirs, {site.peer: 1 / 9 for site in after.sites})


def test_a_site_that_offers_more_only_gains() -> None:
    before = Placement(sites([1 << 40] * 10))
    after = Placement(sites([1 << 40] * 9 + [3 << 40]))
    gained = 0
    for name in segments(5000):
        old, new = ({site.peer for site in place.chosen(name, 2)} for place in (before, after))
        assert new - old <= {peer(9)}
        gained += new != old
    assert gained > 0
    assert all(
        [site.peer for site in before.ranking(name) if site.peer != peer(9)]
        == [site.peer for site in after.ranking(name) if site.peer != peer(9)]
        for name in segments(100)
    )


def test_no_zone_twice_while_another_is_left() -> None:
    placement = equal_sites(12, ["home", "office", "club"])
    for name in segments(300):
        for replicas in range(1, 13):
            chosen = placement.chosen(name, replicas)
            assert len(set(chosen)) == replicas
            assert len({site.zone for site in chosen}) == min(replicas, 3)
            # The nearest of each zone, then the nearest of all others.
            nearest = [
                next(site for site in placement.ranking(name) if site.zone == zone)
                for zone in dict.fromkeys(site.zone for site in placement.ranking(name))
            ]
            others = [site for site in placement.ranking(name) if site not in nearest]
            assert chosen == (nearest + others)[:replicas]


def test_an_empty_zone_is_a_zone_of_its_own() -> None:
    placement = Placement([Site(peer(0), 1, "home"), Site(peer(1), 1, "home"), Site(peer(2), 1), Site(peer(3), 1)])
    assert placement.zone_count == 3
    for name in segments(100):
        assert {site.peer for site in placement.chosen(name, 3)} >= {peer(2), peer(3)}


zones = st.sampled_from(["", "a", "b", "c"])
site_lists = st.lists(st.tuples(st.integers(1, 1 << 50), zones), min_size=1, max_size=9).map(
    lambda pairs: [Site(peer(number), weight, zone) for number, (weight, zone) in enumerate(pairs)]
)


@given(site_lists, st.integers(0, 10), st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_in_which_sites_are_given_says_nothing(
    given_sites: list[Site], replicas: int, number: int, chance: random.Random
) -> None:
    name = segments(100)[number]
    shuffled = list(given_sites)
    chance.shuffle(shuffled)
    one, other = Placement(given_sites), Placement(shuffled)
    assert one.sites == other.sites == tuple(sorted(given_sites, key=lambda site: site.peer))
    assert one.ranking(name) == other.ranking(name)
    assert one.chosen(name, replicas) == other.chosen(name, replicas) == one.chosen(name, 10)[:replicas]
    assert len(one.chosen(name, replicas)) == min(replicas, len(given_sites))


@given(site_lists, st.integers(1, 5), st.integers(0, 99))
def test_zones_move_no_more_than_one_copy_for_a_site(given_sites: list[Site], replicas: int, number: int) -> None:
    name = segments(100)[number]
    before = set(Placement(given_sites[:-1]).chosen(name, replicas))
    after = set(Placement(given_sites).chosen(name, replicas))
    assert after - before <= {given_sites[-1]}
    assert len(before - after) <= 1


def test_no_sites() -> None:
    assert Placement([]).chosen(segments(1)[0], 2) == []
    assert Placement([]).ranking(segments(1)[0]) == []


@pytest.mark.parametrize(
    "bad", [[Site(peer(0), 1), Site(peer(0), 2)], [Site(peer(0), 0)], [Site(PeerId(b"short"), 1)]], ids=repr
)
def test_sites_that_make_no_sense(bad: list[Site]) -> None:
    with pytest.raises(ValueError, match=r"a peer is a site twice|a site has an id of 32 bytes"):
        Placement(bad)
