"""Where an opened vault gets segments that its own disk lacks or has damaged: from its remotes, if it has any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vaultfs.cli.output import error_line
from vaultfs.errors import UsageError, VaultError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_source import KnownElsewhere, SegmentFiller, SegmentSource


@contextmanager
def lent_segments(vault: Path) -> Iterator[SegmentSource | None]:
    """As `spare_segments`, for a command that had better wait than fail; closed at the end.

    Args:
        vault: its directory.
    """
    source = spare_segments(vault, is_patient=True)
    try:
        yield source
    finally:
        if source is not None:
            source.close()


def spare_segments(vault: Path, *, is_patient: bool = False) -> SegmentSource | None:
    """The remotes of a vault as a source of its segments; None if it has none.  Close it.

    No remote is opened before it is needed.  A list of remotes that cannot be read is told, and keeps nobody from using
    the vault.

    Args:
        vault: its directory.
        is_patient: wait for minutes before an error.
    """
    layout = VaultLayout(vault)
    if not layout.remotes.exists():
        return None
    from vaultfs.sync.remote_segments import RemoteSegments  # noqa: PLC0415  # most vaults have no remote

    try:
        return RemoteSegments.of(layout, is_patient=is_patient)
    except VaultError as error:
        error_line(f"warning: {error}")
        return None


def segment_filler(vault: Path, source: SegmentSource | None, bytes_per_s: int | None) -> SegmentFiller:
    """What brings the segments that are missing here from the vault's remotes.  Close it.

    Args:
        vault: its directory.
        source: of `spare_segments`; who reads from it goes first.
        bytes_per_s: at most; None: no limit.

    Raises:
        UsageError: the vault has no remote.
    """
    if source is None:
        raise UsageError(f"--fill: {vault} has no remote that could have what is not here")
    from vaultfs.remotes.configured import load_remotes  # noqa: PLC0415
    from vaultfs.remotes.urls import open_store  # noqa: PLC0415
    from vaultfs.sync.remote_segments import RemoteSegments  # noqa: PLC0415
    from vaultfs.sync.segment_fill import SegmentFill  # noqa: PLC0415

    assert isinstance(source, RemoteSegments)
    layout = VaultLayout(vault)
    openers = [partial(open_store, each.url, each.options) for each in load_remotes(layout)]
    return SegmentFill(layout, openers, source, bytes_per_s)


def known_elsewhere(vault: Path) -> KnownElsewhere | None:
    """What is known of the segments on a vault's remotes, without asking them; None if it has no remote.

    Args:
        vault: its directory.

    Raises:
        VaultError: that cannot be found out.
    """
    layout = VaultLayout(vault)
    if not layout.remotes.exists():
        return None
    from vaultfs.sync.known_segments import known_segments  # noqa: PLC0415

    return known_segments(layout)
