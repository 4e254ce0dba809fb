"""Which peers hold a segment: every machine finds the same ones, from the names of the segment and of the peers alone.

It is rendezvous hashing with weights.  Every site (a peer that offers room) gets a distance to every segment, and the
nearest sites hold it.  A site is among the nearest in proportion to its weight.  When one comes or goes, or its weight
changes, only segments that it gains or loses move, because the distances of all others stay what they were.

The distance, exactly.  All integers are little-endian; a segment's name is 64 hexadecimal digits::

    seed    = BLAKE3-derive-key(context = SEED_CONTEXT, key material = the 32 bytes of the peer's id), 32 bytes
    a, b    = seed[0:16], seed[16:32]                  as integers of 128 bits
    x       = the first 16 digits of the name          as a hexadecimal number of 64 bits, the first digit the highest
    h       = ((a * x + b) mod 2^128) div 2^64         64 bits
    u       = (h + 1/2) / 2^64                         0 < u < 1
    distance = -ln(u) / weight                         weight = the site's capacity in bytes

The ranking of the sites is by distance, then by id.  The chosen ones for R replicas: walk the ranking and take every
site whose zone none taken before has, until there are R; if zones run out first, add those passed over, in the order of
the ranking.  A site whose zone is empty is a zone of its own.

Why this hash: with a and b random, h is uniform, independent between sites, and pairwise independent between segments
(Dietzfelbinger 1996), which is all that shares and their variance depend on; the names are hashes, so x is random too.
And it is one multiplication of long integers for all sites at once (`Placement.ranked_indexes`): ranking 50 sites takes
16 microseconds, where mixing each pair as splitmix64 does takes 29 for the hashes alone, and keyed BLAKE3 44.

The logarithm is computed in double precision.  C libraries may differ in its last bit, so two machines may disagree
where two sites' distances agree in some 50 bits: one segment in 10^13.  Then they choose two different sites, and
nothing is lost: what is held elsewhere is left where it is.

Pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from types import MappingProxyType
from typing import Final

from blake3 import blake3

from vaultfs.ids import PeerId, SegmentName

SEED_CONTEXT: Final = "vaultfs mesh placement seed v1"

_LANE_BITS: Final = 192
"""Room for a * x + b without a carry into the next lane: (2^128 - 1) * (2^64 - 1) + 2^128 - 1 < 2^192."""


@dataclass(frozen=True)
class Site:
    """A peer as a place for segments.

    Attributes:
        peer: its id, 32 bytes.
        capacity_bytes: what it offers in all, used or not; its weight.
        zone: what it shares a fate with (a house, an office); empty if with nobody.
    """

    peer: PeerId
    capacity_bytes: int
    zone: str = ""


class Placement:
    """The sites of one vault.  Immutable.

    Sites are numbered in the order of their ids, whatever the order they are given in.

    Args:
        sites: each peer once.

    Raises:
        ValueError: a peer occurs twice, has no id of 32 bytes, or offers nothing.

    Attributes:
        sites: in the order of their ids.
        zones: of each site, a number; equal numbers are one zone.
        indexes: the number of a site, by its peer.
        zone_count: how many zones there are.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self.sites: Final = tuple(sorted(sites, key=lambda site: site.peer))
        self.indexes: Final[Mapping[PeerId, int]] = MappingProxyType(
            {site.peer: index for index, site in enumerate(self.sites)}
        )
        if len(self.indexes) != len(self.sites):
            raise ValueError("a peer is a site twice")
        for site in self.sites:
            if len(site.peer) != 32 or site.capacity_bytes <= 0:
                raise ValueError(f"a site has an id of 32 bytes and offers at least one byte: {site}")
        numbers: dict[object, int] = {}
        self.zones: Final = tuple(numbers.setdefault(site.zone or site.peer, len(numbers)) for site in self.sites)
        self.zone_count: Final = len(numbers)

        seeds = [blake3(site.peer, derive_key_context=SEED_CONTEXT).digest(32) for site in self.sites]
        self._factors: Final = _lanes(int.from_bytes(seed[:16], "little") for seed in seeds)
        self._summands: Final = _lanes(int.from_bytes(seed[16:], "little") for seed in seeds)
        self._lanes_bytes: Final = len(seeds) * _LANE_BITS // 8
        self._hashes: Final = struct.Struct("<" + "8xQ8x" * len(seeds))
        self._scales: Final = [-1 / site.capacity_bytes for site in self.sites]

    def ranked_indexes(self, name: SegmentName) -> list[int]:
        """The numbers of all sites, the nearest first."""
        lanes = self._factors * int(name[:16], 16) + self._summands
        hashes = self._hashes.unpack(lanes.to_bytes(self._lanes_bytes, "little"))
        # h + 0.5 may round to 2^64; the distance is then 0, and such sites are told apart by their ids.
        distances = [log((h + 0.5) * 2.0**-64) * scale for h, scale in zip(hashes, self._scales, strict=True)]
        return sorted(range(len(distances)), key=distances.__getitem__)

    def chosen_indexes(self, name: SegmentName, replicas: int) -> list[int]:
        """The numbers of the sites that are to hold a segment; all sites if there are no more than ``replicas``."""
        return self.spread(self.ranked_indexes(name), replicas)

    def spread(self, ranked: Sequence[int], count: int) -> list[int]:
        """The first of some sites: no zone twice while another is left, then by rank.

        Args:
            ranked: numbers of sites, the nearest first.
            count: how many are wanted.
        """
        if self.zone_count == len(self.sites):
            return list(ranked[:count])
        taken: dict[int, int] = {}
        passed_over = []
        for index in ranked:
            if len(taken) == count:
                break
            if taken.setdefault(self.zones[index], index) != index:
                passed_over.append(index)
        return [*taken.values(), *passed_over][:count]

    def ranking(self, name: SegmentName) -> list[Site]:
        """All sites, the nearest to a segment first."""
        return [self.sites[index] for index in self.ranked_indexes(name)]

    def chosen(self, name: SegmentName, replicas: int) -> list[Site]:
        """The sites that are to hold a segment; all sites if there are no more than ``replicas``."""
        return [self.sites[index] for index in self.chosen_indexes(name, replicas)]


def _lanes(values: Iterable[int]) -> int:
    return sum(value << (_LANE_BITS * index) for index, value in enumerate(values))
