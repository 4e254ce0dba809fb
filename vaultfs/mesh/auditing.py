"""Which parts of which segments and shares an audit asks a peer for, and what follows from the answers.  Pure.

A peer that has lost the share ``f`` of the segments it claims, and is asked for ``n`` ranges, is found with the
probability 1 - (1 - f)^n: with 87 % for 1 % and 200 ranges.  Segments are drawn without one coming twice before all
came once, so it is that or better, and certain if there are no more segments than ranges.

An audit costs little: a range is 49 bytes of the question and 32 of the answer, whatever is in it, and the peer
reads 64 KiB at most.  One of a share is 4 KiB, and 133 bytes of the question.  All peers are asked for the same range
of the shares of one segment, because what is compared there are the bytes at one place of all of them.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.messages import MOST_AUDITED_BYTES, MOST_RANGES, Range
from vaultfs.mesh.share_format import HEADER_BYTES, CodedSegment
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.standing import Standing

DEFAULT_SAMPLES: Final = 200
MOST_SAMPLES: Final = 100_000
SMALLEST_RANGE_BYTES: Final = 4 << 10
LARGEST_RANGE_BYTES: Final = 64 << 10
SHARE_RANGE_BYTES: Final = 4 << 10
"""Of a share; where the segment is not here, so much of k shares has to be fetched to compare."""
MOST_FAILURES: Final = 100
"""Of one peer that are told apart; one is enough."""

Claimed = SegmentName | ShareKey
"""What a peer says it has."""

_Claimed = TypeVar("_Claimed", bound=Claimed)


class Probe(NamedTuple):
    """A part of a segment, or of a share, that a peer is asked for.

    Attributes:
        segment: its name.
        size_bytes: of the whole segment or share, as the peer claims.
        offset: of the part.
        length: of the part, at least 1.
        share: of the segment; None: the segment itself is meant.
    """

    segment: SegmentName
    size_bytes: int
    offset: int
    length: int
    share: ShareKey | None = None

    @property
    def claimed(self) -> Claimed:
        """What it is a part of."""
        return self.segment if self.share is None else self.share

    @property
    def range(self) -> Range:
        """The same for the question."""
        share = "" if self.share is None else self.share.tail
        return Range(bytes.fromhex(self.segment), self.offset, self.length, share)

    @property
    def hash(self) -> str:
        """Of the whole object, 64 hexadecimal digits; it goes into the answer."""
        return self.segment if self.share is None else self.share.name


class ShareRanges:
    """Which ranges of shares are asked for: the same of all shares of a segment.

    Args:
        draw: where chance comes from.
    """

    def __init__(self, draw: random.Random) -> None:
        self._draw: Final = draw
        self._known: Final[dict[tuple[CodedSegment, int], int]] = {}

    def probe(self, share: ShareKey, turn: int) -> Probe:
        """A range.

        Args:
            share: of which.
            turn: how often a range of it was drawn before.
        """
        coded = share.coded
        # What stands in the header follows from the key: that a peer knows it proves nothing.
        length = min(SHARE_RANGE_BYTES, coded.share_bytes - HEADER_BYTES)
        if (coded, turn) not in self._known:
            self._known[coded, turn] = self._draw.randint(HEADER_BYTES, coded.share_bytes - length)
        return Probe(coded.name, coded.share_bytes, self._known[coded, turn], length, share)


def draw_probes(
    claims: Mapping[_Claimed, int], samples: int, draw: random.Random, shares: ShareRanges | None = None
) -> list[Probe]:
    """Ranges at random: nothing comes a second time before all came once.

    Args:
        claims: segments and shares that a peer says it has, and their sizes, above 0.
        samples: how many ranges.
        draw: where chance comes from; nobody may be able to foresee it.
        shares: of the audit, where the ranges of shares come from; None: there is no other peer.
    """
    if not claims:
        return []
    shares = shares or ShareRanges(draw)
    names = sorted(claims, key=str)
    rounds, rest = divmod(samples, len(names))
    chosen = [*names * rounds, *draw.sample(names, rest)]
    draw.shuffle(chosen)
    turns: Counter[Claimed] = Counter()
    probes = []
    for name in chosen:
        if isinstance(name, ShareKey):
            probes.append(shares.probe(name, turns[name]))
            turns[name] += 1
        else:
            probes.append(_probe(name, claims[name], draw))
    return probes


def draw_everywhere(
    claims: Mapping[_Claimed, int], draw: random.Random, shares: ShareRanges | None = None
) -> list[Probe]:
    """A range of each segment and share, at random.

    Args:
        claims: as for `draw_probes`.
        draw: likewise.
        shares: likewise.
    """
    return draw_probes(claims, len(claims), draw, shares)


def _probe(name: SegmentName, size_bytes: int, draw: random.Random) -> Probe:
    length = min(size_bytes, draw.randint(SMALLEST_RANGE_BYTES, LARGEST_RANGE_BYTES))
    return Probe(name, size_bytes, draw.randint(0, size_bytes - length), length)


def questions(probes: Sequence[Probe]) -> Iterator[Sequence[Probe]]:
    """The ranges in as many questions as the protocol asks for."""
    most = min(MOST_RANGES, MOST_AUDITED_BYTES // LARGEST_RANGE_BYTES)
    for start in range(0, len(probes), most):
        yield probes[start : start + most]


def chance_of_finding(lost_share: float, samples: int) -> float:
    """With what probability a peer is found that has lost a share of its segments.

    Args:
        lost_share: 0 to 1.
        samples: how many ranges it was asked for.
    """
    return 1.0 - (1.0 - lost_share) ** samples


class Verdict(enum.Enum):
    """What an audit says of a peer."""

    PROVEN = "proven"
    """It has proved every range that could be compared."""
    EMPTY = "holds nothing"
    """It claims nothing, so there is nothing to prove."""
    UNPROVEN = "not proven"
    """It has answered, but there is nobody to compare with."""
    UNANSWERED = "no answer"
    """It could not be asked, or not to the end."""
    FAILED = "failed"
    """It claims what it has not."""


class Failure(NamedTuple):
    """A claim that is not true.

    Attributes:
        segment: that was claimed.
        reason: for people.
        share: which share of it, from 0; None: the segment itself.
    """

    segment: SegmentName
    reason: str
    share: int | None = None


@dataclass
class PeerAudit:
    """What an audit found out about a peer.

    Attributes:
        peer: its id.
        claimed_segments: how many it says it has.
        claimed_bytes: in these.
        claimed_shares: how many shares it says it has.
        claimed_share_bytes: in these.
        asked: ranges that it was asked for.
        proven: of these, those that it has.
        uncompared: of these, those that nobody else could tell.
        is_complete: a range of everything that it claims was asked for.
        proved: of what it has proved a range.
        failures: claims that are not true; at most `MOST_FAILURES`.
        error: why it did not answer.
    """

    peer: PeerId
    claimed_segments: int = 0
    claimed_bytes: int = 0
    asked: int = 0
    proven: int = 0
    uncompared: int = 0
    claimed_shares: int = 0
    claimed_share_bytes: int = 0
    is_complete: bool = False
    proved: set[Claimed] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    error: VaultError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a claim of it is not true."""
        return bool(self.failures)

    def fail(self, claimed: Claimed, reason: str) -> None:
        """Note a claim that is not true."""
        if len(self.failures) < MOST_FAILURES:
            if isinstance(claimed, ShareKey):
                self.failures.append(Failure(claimed.coded.name, reason, claimed.index))
            else:
                self.failures.append(Failure(claimed, reason))

    def prove(self, probe: Probe) -> None:
        """Note a range that it has proved."""
        self.proven += 1
        self.proved.add(probe.claimed)

    @property
    def verdict(self) -> Verdict:
        """What all that comes to."""
        if self.failures:
            return Verdict.FAILED
        if self.error is not None:
            return Verdict.UNANSWERED
        if not self.claimed_segments and not self.claimed_shares:
            return Verdict.EMPTY
        return Verdict.PROVEN if self.proven else Verdict.UNPROVEN


def remember(standing: Standing, audits: Iterable[PeerAudit], now_ns: int) -> None:
    """Remember who has failed; forget it of who has proved at least as many ranges since.

    A peer whose failure was found without a range, by a wrong size, has to prove one.

    Args:
        standing: is told.
        audits: what was found.
        now_ns: since 1970.
    """
    for audit in audits:
        before = standing.of(audit.peer)
        if audit.verdict is Verdict.FAILED:
            samples = max(min(audit.asked, MOST_SAMPLES), before.failed_audit_samples)
            standing.note(
                audit.peer, seen_ns=now_ns, audited_ns=now_ns, failed_audit_ns=now_ns, failed_audit_samples=samples
            )
        elif audit.verdict is Verdict.PROVEN:
            standing.note(audit.peer, seen_ns=now_ns, audited_ns=now_ns)
            if before.failed_audit_ns and audit.proven >= before.failed_audit_samples:
                standing.note(audit.peer, failed_audit_ns=0, failed_audit_samples=0)
