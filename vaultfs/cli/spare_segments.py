"""Where an opened vault gets segments that its own disk lacks or has damaged: from its remotes, if it has any."""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.output import error_line
from vaultfs.errors import VaultError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_source import SegmentSource


def spare_segments(vault: Path) -> SegmentSource | None:
    """The remotes of a vault as a source of its segments; None if it has none.

    No remote is opened before it is needed.  A list of remotes that cannot be read is told, and keeps nobody from using
    the vault.

    Args:
        vault: its directory.
    """
    layout = VaultLayout(vault)
    if not layout.remotes.exists():
        return None
    from vaultfs.sync.remote_segments import RemoteSegments  # noqa: PLC0415  # most vaults have no remote

    try:
        return RemoteSegments.of(layout)
    except VaultError as error:
        error_line(f"warning: {error}")
        return None
