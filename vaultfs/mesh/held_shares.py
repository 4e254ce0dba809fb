"""Which shares of which segments are where, by what peers list.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from vaultfs.ids import PeerId
from vaultfs.mesh.share_format import CodedSegment
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.survey import PeerView


class Held(NamedTuple):
    """A share, and who lists it.

    Attributes:
        peer: its id.
        key: of the share.
    """

    peer: PeerId
    key: ShareKey


def shares_of(coded: CodedSegment, views: Iterable[PeerView]) -> dict[int, list[Held]]:
    """The shares of a segment that peers list, by index.

    Args:
        coded: the segment, and how it is cut.
        views: the peers.
    """
    found: dict[int, list[Held]] = {}
    for view in views:
        if not view.is_present:
            continue
        for share in view.shares.get(coded.name, ()):
            if share.coded == coded:
                found.setdefault(share.index, []).append(Held(view.known.id, share))
    return found


def best_way(found: Iterable[Collection[Held]]) -> tuple[CodedSegment, dict[int, list[Held]]] | None:
    """The way of cutting a segment of which there are enough shares, and these by index; None if there is none.

    Args:
        found: shares of one segment, by whoever lists them.
    """
    ways: dict[CodedSegment, dict[int, list[Held]]] = {}
    for held in found:
        for share in held:
            ways.setdefault(share.key.coded, {}).setdefault(share.key.index, []).append(share)
    enough = [(coded, shares) for coded, shares in ways.items() if len(shares) >= coded.coding.needed]
    return max(enough, key=lambda way: len(way[1]) - way[0].coding.needed, default=None)
