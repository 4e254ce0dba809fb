"""``heads/history``: every snapshot that was ever made in a vault, deleted or not, one line each.

    <seq, 19 digits> <hash of the manifest, 64 hexadecimal digits>

It tells which of a remote's snapshots are this vault's own, after they were deleted here and the ledger was lost; the
chain of manifests cannot, where one in between is nowhere any more.  A line is added before its manifest is written, so
there may be lines of snapshots that never came about.  Nobody signs it: who can write here can delete the vault.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from vaultfs.ids import SnapshotSeq
from vaultfs.storage.durable import storage_errors, write_all
from vaultfs.storage.layout import VaultLayout

LARGEST_BYTES: Final = 64 << 20
"""Of which the end is read: 800,000 snapshots, one every five minutes for seven years."""

_LINE: Final = re.compile(rb"([0-9]{19}) ([0-9a-f]{64})")
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def add_to_history(layout: VaultLayout, seq: SnapshotSeq, manifest_hash: str) -> None:
    """Add a snapshot that is about to be made, or from which the vault goes on.

    Args:
        layout: the vault.
        seq: the snapshot's number.
        manifest_hash: its id.

    Raises:
        NoSpaceError, ReadOnlyError, StorageError: it cannot be written.
    """
    with storage_errors(f"cannot write {layout.history}"):
        descriptor = os.open(layout.history, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS, 0o600)
        try:
            # A line that a crash has torn is ended, or it would spoil this one too.
            write_all(descriptor, b"\n%019d %s\n" % (seq, manifest_hash.encode("ascii")))
        finally:
            os.close(descriptor)


def read_history(layout: VaultLayout) -> list[tuple[SnapshotSeq, str]]:
    """Number and hash of the snapshots that were made here, in the order in which they were; none if nobody knows.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(f"cannot read {layout.history}"):
        try:
            descriptor = os.open(layout.history, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return []
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return []
            file.seek(max(0, status.st_size - LARGEST_BYTES))
            lines = file.read(LARGEST_BYTES).split(b"\n")
    matches = map(_LINE.fullmatch, lines)
    return [(SnapshotSeq(int(match[1])), match[2].decode("ascii")) for match in matches if match is not None]
