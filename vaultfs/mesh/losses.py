"""What peers have lost of what was stored on them, though nobody deleted it.  Pure.

A peer may be removed, its disk replaced, its store be wiped, or what it has be found damaged.  Who only compares what
was sent with what there is to be sent never sees that.  So what peers say they hold is compared with what they said
before.  A peer that is away has lost nothing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.claims import Held, Shares, copies_of, from_shares, share_counts
from vaultfs.mesh.share_format import Coding
from vaultfs.mesh.survey import Survey


@dataclass
class Losses:
    """What is lost.

    Attributes:
        gone: segments that no peer has any more, present or away.
        short: others, of which there are fewer copies, or shares, than there were, and than there are to be.
    """

    gone: set[SegmentName] = field(default_factory=set)
    short: set[SegmentName] = field(default_factory=set)


def find_losses(
    survey: Survey,
    before: Mapping[PeerId, Held],
    known: Mapping[SegmentName, int],
    replicas: int,
    *,
    coding: Coding | None = None,
    shares_before: Mapping[PeerId, Shares] | None = None,
    never_seen: Container[PeerId] = (),
) -> Losses:
    """Find out what was lost.

    Args:
        survey: what the peers of the book say now.
        before: what peers said the last time, those that are in the book no more included; of others nothing is known.
        known: the segments that were stored, and their sizes in bytes.
        replicas: how many copies of each there are to be.
        coding: shares instead of copies; or None.
        shares_before: what shares peers said they have the last time; of others nothing is known.
        never_seen: peers that never answered, so that nothing was ever stored there.
    """
    present = {view.known.id: view.segments for view in survey.present}
    away = [view.known.id for view in survey.views.values() if not view.is_present]
    copies = copies_of(known, [*present.values(), *(before[peer] for peer in away if peer in before)])
    told = shares_before or {}
    shares = [view.shares for view in survey.present] + [told[peer] for peer in away if peer in told]
    has_shares = any(shares)
    losses = Losses()
    if all(peer in never_seen or (peer in before and (peer in told or not has_shares)) for peer in away):
        whole = from_shares(shares)
        losses.gone = {name for name, size in known.items() if name not in copies and whole.get(name) != size}
    for peer, held in before.items():
        if peer not in away:
            now = present.get(peer, {})
            losses.short |= {name for name in held if name not in now and 0 < copies.get(name, 0) < replicas}
    if coding is not None:
        left = share_counts(known, coding, shares)
        views = survey.views
        for peer, had in told.items():
            if peer not in away:
                has = views[peer].shares if peer in views else {}
                fewer = {name for name, keys in had.items() if not set(keys) <= set(has.get(name, ()))}
                losses.short |= {name for name in fewer - losses.gone if 0 < left.get(name, 0) < coding.total}
    return losses
