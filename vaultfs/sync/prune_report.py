"""What a prune did, or in a dry run would do."""

from __future__ import annotations

from dataclasses import dataclass, field

from vaultfs.sync.keep_policy import DatedHead
from vaultfs.sync.remote_layout import RemoteHead


@dataclass
class KeptSnapshot:
    """A snapshot that stays, when it was made, and the rules that keep it."""

    head: RemoteHead
    created_ns: int
    rules: list[str]


@dataclass
class WaitingRecord:
    """What is given up, and will be deleted by a prune after ``due_ns``, if nothing needs it then."""

    due_ns: int
    snapshots: int
    segments: int
    bytes: int


@dataclass
class PruneReport:
    """What was done; in a dry run: would be.

    Attributes:
        kept: snapshots that stay, newest first.
        dropped: those given up now, newest first.
        condemned_segments, condemned_bytes: what no snapshot needs any more since now.
        deleted_snapshots, deleted_segments, deleted_bytes: gone for good; all were given up a grace period ago.
        waiting: what is given up, and not deleted yet.
    """

    kept: list[KeptSnapshot] = field(default_factory=list)
    dropped: list[DatedHead] = field(default_factory=list)
    condemned_segments: int = 0
    condemned_bytes: int = 0
    deleted_snapshots: int = 0
    deleted_segments: int = 0
    deleted_bytes: int = 0
    waiting: list[WaitingRecord] = field(default_factory=list)
