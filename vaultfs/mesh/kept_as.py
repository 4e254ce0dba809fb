"""Whether a vault is kept as copies or as shares, and of which coding: as was said here, else as peers hold it.  Pure.

Nothing but the keys of shares says that a vault is kept so, and they say it in full.  A machine where nobody has said
anything, as one to which the vault was cloned, does as the others have done:

1. What was said on this machine, by ``mesh replicate --coding`` or ``--replicas``, counts.
2. Else each segment that peers hold in one way only, as copies or as shares of one coding, speaks for that way; the way
   of the most segments counts.
3. If as many speak for several, or none does because all are held in several ways, shares count, for somebody must have
   said so; of several codings the one of which more segments are held, then the one with more shares.

Peers that do not answer count with what they held last.  What is held otherwise stays until it is trimmed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from vaultfs.ids import SegmentName
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.claims import Held, Shares
from vaultfs.mesh.share_format import Coding

Way = Coding | None
"""Shares of a coding; or None: whole copies."""


@dataclass(frozen=True)
class KeptAs:
    """How a vault is kept.

    Attributes:
        coding: shares instead of copies; or None.
        is_told: that was said on this machine.
        only: how many needed segments peers hold in one way only, by way.
    """

    coding: Way = None
    is_told: bool = False
    only: dict[Way, int] = field(default_factory=dict)

    @property
    def otherwise(self) -> dict[Way, int]:
        """How many needed segments peers hold in another way only, by way, the most first."""
        others = {way: count for way, count in self.only.items() if way != self.coding}
        return dict(sorted(others.items(), key=lambda each: (-each[1], str(each[0]))))


def kept_as(
    page: VaultPeers, holdings: Iterable[tuple[Held, Shares]], needed: Container[SegmentName] | None = None
) -> KeptAs:
    """Find out how a vault is kept.

    Args:
        page: what was said here.
        holdings: of each peer, its segments and its shares.
        needed: segments that are told of; None: all.
    """
    ways: dict[SegmentName, set[Way]] = {}
    for held, shares in holdings:
        for name in held:
            ways.setdefault(name, set()).add(None)
        for name, keys in shares.items():
            ways.setdefault(name, set()).update(key.coded.coding for key in keys)
    only = Counter(next(iter(found)) for found in ways.values() if len(found) == 1)
    told_of = Counter(
        next(iter(found)) for name, found in ways.items() if len(found) == 1 and (needed is None or name in needed)
    )
    if page.is_told or page.coding is not None:
        return KeptAs(page.coding, True, dict(told_of))
    held_so = Counter(way for found in ways.values() for way in found)

    def weight(way: Way) -> tuple[int, bool, int, int, int]:
        total, needed = (0, 0) if way is None else (way.total, way.needed)
        return only[way], way is not None, held_so[way], total, needed

    return KeptAs(max(held_so, key=weight, default=None), False, dict(told_of))
