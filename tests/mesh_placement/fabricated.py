"""Peers and segments that exist only as names, which are hashes as real ones are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from blake3 import blake3

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.placement import Placement, Site


def peer(number: int) -> PeerId:
    return PeerId(hashlib.sha256(b"peer %d" % number).digest())


def segment(number: int) -> SegmentName:
    return SegmentName(blake3(b"segment %d" % number).hexdigest())


def segments(count: int) -> list[SegmentName]:
    return [segment(number) for number in range(count)]


def sites(weights: Iterable[int], zones: Sequence[str] = ("",)) -> list[Site]:
    """Peers 0, 1, ... with these weights; zones are taken in turn."""
    return [Site(peer(number), weight, zones[number % len(zones)]) for number, weight in enumerate(weights)]


def equal_sites(count: int, zones: Sequence[str] = ("",)) -> Placement:
    return Placement(sites([1 << 40] * count, zones))
