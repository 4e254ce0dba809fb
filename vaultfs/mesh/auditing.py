"""Which parts of which segments an audit asks a peer for, and what follows from the answers.  Pure.

A peer that has lost the share ``f`` of the segments it claims, and is asked for ``n`` ranges, is found with the
probability 1 - (1 - f)^n: with 87 % for 1 % and 200 ranges.  Segments are drawn without one coming twice before all
came once, so it is that or better, and certain if there are no more segments than ranges.

An audit costs little: a range is 49 bytes of the question and 32 of the answer, whatever is in it, and the peer
reads 64 KiB at most.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.messages import MOST_AUDITED_BYTES, MOST_RANGES, Range
from vaultfs.mesh.standing import Standing

DEFAULT_SAMPLES: Final = 200
MOST_SAMPLES: Final = 100_000
SMALLEST_RANGE_BYTES: Final = 4 << 10
LARGEST_RANGE_BYTES: Final = 64 << 10
MOST_FAILURES: Final = 100
"""Of one peer that are told apart; one is enough."""


class Probe(NamedTuple):
    """A part of a segment that a peer is asked for.

    Attributes:
        segment: its name.
        size_bytes: of the whole segment, as the peer claims.
        offset: of the part.
        length: of the part, at least 1.
    """

    segment: SegmentName
    size_bytes: int
    offset: int
    length: int

    @property
    def range(self) -> Range:
        """The same for the question."""
        return Range(bytes.fromhex(self.segment), self.offset, self.length)


def draw_probes(claims: Mapping[SegmentName, int], samples: int, draw: random.Random) -> list[Probe]:
    """Ranges at random: no segment comes a second time before all came once.

    Args:
        claims: segments that a peer says it has, and their sizes, above 0.
        samples: how many ranges.
        draw: where chance comes from; nobody may be able to foresee it.
    """
    if not claims:
        return []
    names = sorted(claims)
    rounds, rest = divmod(samples, len(names))
    chosen = [*names * rounds, *draw.sample(names, rest)]
    draw.shuffle(chosen)
    return [_probe(name, claims[name], draw) for name in chosen]


def draw_everywhere(claims: Mapping[SegmentName, int], draw: random.Random) -> list[Probe]:
    """A range of each segment, at random.

    Args:
        claims: as for `draw_probes`.
        draw: likewise.
    """
    return draw_probes(claims, len(claims), draw)


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
    """

    segment: SegmentName
    reason: str


@dataclass
class PeerAudit:
    """What an audit found out about a peer.

    Attributes:
        peer: its id.
        claimed_segments: how many it says it has.
        claimed_bytes: in these.
        asked: ranges that it was asked for.
        proven: of these, those that it has.
        uncompared: of these, those that nobody else could tell.
        is_complete: a range of every segment that it claims was asked for.
        failures: claims that are not true; at most `MOST_FAILURES`.
        error: why it did not answer.
    """

    peer: PeerId
    claimed_segments: int = 0
    claimed_bytes: int = 0
    asked: int = 0
    proven: int = 0
    uncompared: int = 0
    is_complete: bool = False
    failures: list[Failure] = field(default_factory=list)
    error: VaultError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a claim of it is not true."""
        return bool(self.failures)

    def fail(self, segment: SegmentName, reason: str) -> None:
        """Note a claim that is not true."""
        if len(self.failures) < MOST_FAILURES:
            self.failures.append(Failure(segment, reason))

    @property
    def verdict(self) -> Verdict:
        """What all that comes to."""
        if self.failures:
            return Verdict.FAILED
        if self.error is not None:
            return Verdict.UNANSWERED
        if not self.claimed_segments:
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
