"""What peers hold of a vault beyond what there is to be, and what has to be proved before it may go.  Pure.

Of whole copies the R nearest stay, spread over zones as when they are placed; what else peers hold of the segment could
go: farther copies, and shares from a time when the vault was kept as those.  Of shares one of each index stays, each on
a peer of its own if that can be, the nearest; the others, those of other codings and whole copies could go.

Only peers count that answer and are believed, and only what is needed is looked at: what is not is a prune's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.auditing import Claimed
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.survey import PeerView
from vaultfs.sync.remote_layout import segment_key


class Piece(NamedTuple):
    """A copy or a share of a segment, and who has it.

    Attributes:
        peer: its id.
        held: the segment, or the share.
        size_bytes: of that.
    """

    peer: PeerId
    held: Claimed
    size_bytes: int

    @property
    def key(self) -> str:
        """Of the object."""
        return str(self.held) if isinstance(self.held, ShareKey) else segment_key(self.held)


@dataclass(frozen=True)
class Surplus:
    """What of one segment could go.

    Attributes:
        name: the segment.
        kept: all that has to be there: R copies, or n shares.
        spare: what could go then.
    """

    name: SegmentName
    kept: tuple[Piece, ...]
    spare: tuple[Piece, ...]


def find_surplus(
    needed: Mapping[SegmentName, int],
    views: Iterable[PeerView],
    placement: Placement,
    replicas: int,
    coding: Coding | None,
) -> list[Surplus]:
    """Find out what could go.

    Args:
        needed: segments and their sizes in bytes.
        views: of peers that answer and are believed.
        placement: says which are nearest.
        replicas: how many copies there are to be.
        coding: shares instead of copies; or None.

    Returns:
        By segment, in the order of names; those with nothing to spare are left out.
    """
    sites = [view for view in views if view.is_present and view.known.id in placement.indexes]
    found = []
    for name in sorted(needed):
        pieces = [piece for view in sites for piece in _pieces(view, name, needed[name])]
        coded = None if coding is None else CodedSegment(name, needed[name], coding)
        kept = _nearest(pieces, placement, name, replicas) if coded is None else _one_of_each(pieces, placement, coded)
        takes = {view.known.id for view in sites if view.takes}
        spare = tuple(piece for piece in pieces if piece not in kept and piece.peer in takes)
        if kept and spare:
            found.append(Surplus(name, kept, spare))
    return found


def _pieces(view: PeerView, name: SegmentName, size_bytes: int) -> Iterator[Piece]:
    if view.segments.get(name) == size_bytes:
        yield Piece(view.known.id, name, size_bytes)
    for share in view.shares.get(name, ()):
        yield Piece(view.known.id, share, share.coded.share_bytes)


def _nearest(pieces: Iterable[Piece], placement: Placement, name: SegmentName, replicas: int) -> tuple[Piece, ...]:
    """The copies that stay; none if there are too few."""
    copies = {placement.indexes[piece.peer]: piece for piece in pieces if piece.held == name}
    if len(copies) < replicas:
        return ()
    ranked = [index for index in placement.ranked_indexes(name) if index in copies]
    return tuple(copies[index] for index in placement.spread(ranked, replicas))


def _one_of_each(pieces: Iterable[Piece], placement: Placement, coded: CodedSegment) -> tuple[Piece, ...]:
    """The shares that stay; none if one is missing, or two of one index are not the same."""
    rank = {index: position for position, index in enumerate(placement.ranked_indexes(coded.name))}
    holders: dict[int, list[Piece]] = {}
    for piece in pieces:
        if isinstance(piece.held, ShareKey) and piece.held.coded == coded:
            holders.setdefault(piece.held.index, []).append(piece)
    if len(holders) < coded.coding.total or any(
        len({piece.held for piece in same}) > 1
        for same in holders.values()  # somebody has made one up
    ):
        return ()
    kept: list[Piece] = []
    taken: set[PeerId] = set()
    for same in sorted(holders.values(), key=len):  # who has no choice chooses first
        nearest = min(same, key=lambda piece: (piece.peer in taken, rank[placement.indexes[piece.peer]]))
        taken.add(nearest.peer)
        kept.append(nearest)
    return tuple(kept)
