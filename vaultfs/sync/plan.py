"""What a remote lacks, and whether it holds a history that is not ours: decided from what is known, without a request.

All of this is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from vaultfs.ids import SegmentName
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.remote_layout import RemoteHead

ROUND_BYTES: Final = 1 << 30
ROUND_SEGMENTS: Final = 1 << 18
ROUND_MANIFESTS: Final = 64


class Lack(NamedTuple):
    """What a remote needs before a manifest may be there; sizes by name.

    Attributes:
        unsent: to be sent.
        unconfirmed: acknowledged once; to be asked for.
    """

    unsent: dict[SegmentName, int]
    unconfirmed: dict[SegmentName, int]


def lacking(segments: Iterable[tuple[SegmentName, int]], holdings: Holdings) -> Lack:
    """The segments of a manifest that a remote is not known to hold, with the right size.

    Args:
        segments: names and sizes, as the manifest says.
        holdings: the remote's ledger.
    """
    lack = Lack({}, {})
    for name, size in segments:
        if holdings.there.get(name) == size:
            continue
        (lack.unconfirmed if holdings.put.get(name) == size else lack.unsent)[name] = size
    return lack


def is_due(digest: str, holdings: Holdings, *, is_newest: bool) -> bool:
    """Whether a remote is to have a snapshot of the vault that it is not known to have whole.

    Args:
        digest: the hash of its manifest.
        holdings: the remote's ledger.
        is_newest: no newer one is on this machine; that one is due even if somebody says that it was given up.
    """
    return digest not in holdings.whole and (is_newest or digest not in holdings.dropped)


def reconciled(holdings: Holdings, listed: Mapping[SegmentName, int]) -> Holdings:
    """A ledger after a listing of all segments.

    What was there and is not listed has to be asked for: a listing may leave out what was just stored.  No snapshot
    counts as whole before its segments have been compared again.

    Args:
        holdings: what the ledger said.
        listed: the segments of the remote, and their sizes.
    """
    unlisted = {
        name: size for known in (holdings.there, holdings.put) for name, size in known.items() if name not in listed
    }
    there = {name: size for name, size in listed.items() if size > 0}
    return replace(holdings, is_listed=True, there=there, put=unlisted, whole=set())


def without(holdings: Holdings, distrusted: Collection[SegmentName]) -> Holdings:
    """A ledger that does not say any more that these segments are there, nor that any snapshot is whole."""
    return replace(
        holdings,
        there={name: size for name, size in holdings.there.items() if name not in distrusted},
        put={name: size for name, size in holdings.put.items() if name not in distrusted},
        whole=set(),
    )


def strangers(listed: Iterable[RemoteHead], known: Collection[str], oldest: int | None) -> list[RemoteHead]:
    """The snapshots of a remote that are not known here and not older than all that are, oldest first.

    Args:
        listed: the remote's.
        known: hashes of those known.
        oldest: the smallest number of a known one; None if none is: then every snapshot is a stranger.
    """
    found = [head for head in listed if head.hash not in known and (oldest is None or head.seq >= oldest)]
    return sorted(found, key=_age)


def ancestors(
    unknown: Iterable[RemoteHead],
    known: Iterable[tuple[int, str]],
    previous: Callable[[str], str | None],
) -> list[RemoteHead]:
    """Those of the unknown snapshots that are in the chain of a known one: each manifest names the one before.

    Args:
        unknown: of a remote.
        known: number and hash of each known one; those for which ``previous`` is cheap first.
        previous: the hash that a manifest, known or accepted, names; None if it names none or cannot be had.
    """
    left = {head.hash: head for head in unknown}
    lowest = min((head.seq for head in left.values()), default=0)
    found: list[RemoteHead] = []
    for seq, start in known:
        digest: str | None = start
        while digest is not None and left and seq > lowest:
            digest = previous(digest)
            head = left.pop(digest, None) if digest is not None else None
            if head is None:
                break  # the end of the chain, or a known one, whose turn comes too
            found.append(head)
            seq = head.seq  # noqa: PLW2901  # of the one that is asked next
    return found


def descendants(
    unknown: Iterable[RemoteHead], accepted: Collection[str], previous: Callable[[str], str | None]
) -> list[RemoteHead]:
    """Those of the unknown snapshots that go on from an accepted one, oldest first.

    Args:
        unknown: of a remote, oldest first.
        accepted: hashes.
        previous: the hash that a manifest names; None if it names none or cannot be had.
    """
    line = set(accepted)
    found = []
    for head in unknown:
        if previous(head.hash) in line:
            line.add(head.hash)
            found.append(head)
    return found


def newest_last(heads: Iterable[RemoteHead]) -> list[RemoteHead]:
    """Snapshots in order of their numbers."""
    return sorted(heads, key=_age)


def _age(head: RemoteHead) -> tuple[int, str, str]:
    return head.seq, head.hash, head.device


@dataclass
class RoundSize:
    """How much one round takes on: manifests whose segments are sent together, before any of them is put.

    Long rounds keep all connections busy; short ones let a remote have complete snapshots early, and hold few snapshots
    and little memory.  Each manifest is taken whole, so a round is at least one.
    """

    bytes: int = 0
    segments: int = 0
    manifests: int = 0

    def add(self, size_bytes: int, segments: int) -> None:
        """One manifest more."""
        self.bytes += size_bytes
        self.segments += segments
        self.manifests += 1

    @property
    def is_full(self) -> bool:
        """Whether the round shall be carried out now."""
        return self.bytes >= ROUND_BYTES or self.segments >= ROUND_SEGMENTS or self.manifests >= ROUND_MANIFESTS
