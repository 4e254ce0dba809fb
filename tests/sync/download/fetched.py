"""What must hold of a directory into which a snapshot was fetched, or was not."""

from __future__ import annotations

import stat

import blake3

from sync.fabricated import Fabricated
from vaultfs.errors import (
    RemoteUnreachableError,
)
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.download import RemoteHead

LOST = RemoteUnreachableError("the line is cut")

REQUESTS = 2 + 3
"""Of a fetch of snapshot 3: header, manifest, three segments."""


def names_of(vault: Fabricated) -> list[SegmentName]:
    """What snapshot 3 needs."""
    names = list(vault.segments)
    return sorted([names[1], names[3], names[4]])


def require_fetched(vault: Fabricated, head: RemoteHead, into: VaultLayout) -> None:
    """Exactly the snapshot, with the right modes, and nothing else."""
    files = {path.relative_to(into.root).as_posix() for path in into.root.rglob("*") if path.is_file()}
    segments = {into.sealed_path(name).relative_to(into.root).as_posix() for name in names_of(vault)}
    manifest = into.manifest_path(head.seq, head.hash)
    assert files == {"vault.json", "lock", ".restoring", f"heads/{manifest.name}", *segments}
    assert into.header.read_bytes() == vault.layout.header.read_bytes()
    assert manifest.read_bytes() == vault.layout.manifest_path(head.seq, head.hash).read_bytes()
    for name in names_of(vault):
        path = into.sealed_path(name)
        assert path.read_bytes() == vault.segments[name]
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert into.open_segments.is_dir()
    for path in into.root.rglob("*"):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


def require_nothing_false(into: VaultLayout, head: RemoteHead) -> None:
    """Whatever has a segment's name is that segment, and no manifest promises more."""
    for name in into.sealed_names():
        assert blake3.blake3(into.sealed_path(name).read_bytes()).hexdigest() == name
    path = into.manifest_path(head.seq, head.hash)
    if path.exists():
        manifest, _ = Manifest.decode(path.read_bytes())
        assert {name for name, _ in manifest.segments} <= set(into.sealed_names())
