"""The hash, the distance and the choice, written a second time from the words of the specification, and vectors.

This second implementation knows no lanes and no doubles: integers, and logarithms to 50 decimal digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext

import pytest
from blake3 import blake3

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.placement import Placement, Site

from .fabricated import equal_sites, peer, segment, segments

SITES = [
    Site(peer(1), 1_000_000_000_000, "home"),
    Site(peer(2), 500_000_000_000, "home"),
    Site(peer(3), 2_000_000_000_000, "home"),
    Site(peer(4), 250_000_000_000, "office"),
    Site(peer(5), 1_000_000_000_000),
]
"""The peers' ids are the SHA-256 hashes of the ASCII strings ``peer 1`` to ``peer 5``."""


SEED_A, SEED_B = 0xCEB36EE4E055A1B4CEDCB6BA0A06DD2F, 0x0DEDBF6BBFF37403AF968E191CB0C08A
"""Of ``peer 1``, whose seed is 2fdd060abab6dcceb4a155e0e46eb3ce8ac0b01c198e96af0374f3bf6bbfed0d."""


@dataclass(frozen=True)
class Vector:
    """A segment, the hash h for each of `SITES`, their numbers (from 1) in the order of the ranking, and the chosen."""

    name: SegmentName
    hashes: tuple[int, ...]
    ranking: tuple[int, ...]
    chosen_of_2: tuple[int, ...]
    chosen_of_4: tuple[int, ...]


VECTORS = [
    Vector(
        SegmentName("0c2294eef12c297876a6ba5b0320c22d54b521eab267ba6cacbe0ccfa43780e5"),
        (0x3A223E2688D1A1E3, 0xE4FE24B19081961F, 0x22DFE1379F5B828F, 0xB9CBED6C6A9B5E15, 0x1A9BB1AF181A56FD),
        (2, 3, 4, 1, 5),
        (2, 4),
        (2, 4, 5, 3),
    ),
    Vector(
        SegmentName("1eb7c1905054f8891502224ee6d5c37c3c6b63fb375dc57d337ad4708ae3c848"),
        (0xF02832B5807A02BA, 0x6AB809E5A9D5EC28, 0x5D0BA17991BB8FEF, 0x31428F0CD04E6207, 0x597DFA41BBE9AF58),
        (1, 3, 5, 2, 4),
        (1, 5),
        (1, 5, 4, 3),
    ),
    Vector(
        SegmentName("b404ea9b04a33bf76cca266426639b52ecbc2d3a52c2fda2df011e033e361b41"),
        (0xC8C7447D60CFF9F6, 0x7B4BF756FAD9B725, 0xA964BD362D2A68ED, 0xD4762467BA8DCC95, 0xAE2B8BA77684E815),
        (3, 1, 5, 4, 2),
        (3, 5),
        (3, 5, 4, 1),
    ),
]
"""The names are the BLAKE3 hashes of the ASCII strings ``segment 1`` to ``segment 3``."""


def plain_seed(peer_id: PeerId) -> tuple[int, int]:
    seed = blake3(peer_id, derive_key_context="vaultfs mesh placement seed v1").digest(32)
    return int.from_bytes(seed[:16], "little"), int.from_bytes(seed[16:32], "little")


def plain_hash(peer_id: PeerId, name: SegmentName) -> int:
    factor, summand = plain_seed(peer_id)
    return (factor * int(name[:16], 16) + summand) % 2**128 // 2**64


def plain_distance(site: Site, name: SegmentName) -> Decimal:
    with localcontext() as context:
        context.prec = 50
        return -((plain_hash(site.peer, name) + Decimal("0.5")) / 2**64).ln() / site.capacity_bytes


def plain_ranking(sites: list[Site], name: SegmentName) -> list[Site]:
    return sorted(sites, key=lambda site: (plain_distance(site, name), site.peer))


def plain_chosen(sites: list[Site], name: SegmentName, replicas: int) -> list[Site]:
    ranking = plain_ranking(sites, name)
    chosen: list[Site] = []
    for site in ranking:
        if len(chosen) < replicas and (not site.zone or site.zone not in {other.zone for other in chosen}):
            chosen.append(site)
    for site in ranking:
        if len(chosen) < replicas and site not in chosen:
            chosen.append(site)
    return chosen


def numbers(sites: list[Site]) -> tuple[int, ...]:
    return tuple(SITES.index(site) + 1 for site in sites)


@pytest.mark.parametrize("vector", VECTORS, ids=["segment 1", "segment 2", "segment 3"])
def test_the_vectors(vector: Vector) -> None:
    assert tuple(plain_hash(site.peer, vector.name) for site in SITES) == vector.hashes
    assert numbers(plain_ranking(SITES, vector.name)) == vector.ranking
    assert numbers(plain_chosen(SITES, vector.name, 2)) == vector.chosen_of_2
    assert numbers(plain_chosen(SITES, vector.name, 4)) == vector.chosen_of_4

    placement = Placement(SITES)
    assert numbers(placement.ranking(vector.name)) == vector.ranking
    assert numbers(placement.chosen(vector.name, 2)) == vector.chosen_of_2
    assert numbers(placement.chosen(vector.name, 4)) == vector.chosen_of_4


def test_the_names_of_the_vectors_are_what_they_are_said_to_be() -> None:
    assert [vector.name for vector in VECTORS] == [segment(number) for number in (1, 2, 3)]
    assert plain_seed(peer(1)) == (SEED_A, SEED_B)


def test_both_implementations_agree() -> None:
    sites = [Site(peer(number), 1 + number**3, ("", "a", "b")[number % 3]) for number in range(17)]
    placement = Placement(sites)
    for name in segments(25):
        assert placement.ranking(name) == plain_ranking(sites, name)
        for replicas in (0, 1, 2, 7, 8, 17, 18):
            assert placement.chosen(name, replicas) == plain_chosen(sites, name, replicas)


@pytest.mark.parametrize("name", ["0" * 64, "f" * 64], ids=["zeros", "ones"])
def test_names_at_the_ends(name: str) -> None:
    placement = equal_sites(50)
    assert placement.ranking(SegmentName(name)) == plain_ranking(list(placement.sites), SegmentName(name))
