"""Vault directories as the sidecar sees them: made-up ciphertext under right names, in a moment."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import blake3
from remotes.memory_store import MemoryStore

from vaultfs.ids import SegmentName, SnapshotSeq, VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.storage.snapshot_history import add_to_history
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.local_vault import LocalManifest
from vaultfs.sync.remote_layout import RemoteHead, parse_head, segment_key
from vaultfs.sync.upload import Target
from vaultfs.sync.verify import verify

DEVICE = bytes(range(32))
OTHER_DEVICE = bytes(range(32, 64))


class Fabricated:
    """A vault.

    Args:
        root: its directory.
        seed: of everything in it.
    """

    def __init__(self, root: Path, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.layout = VaultLayout(root)
        self.layout.create_directories()
        self.vault_id = VaultId(self.random.randbytes(16))
        self.seq = 0
        self.previous: bytes | None = None
        self.segments: dict[SegmentName, bytes] = {}
        self.write_header()

    def write_header(self, **changes: object) -> None:
        fields: dict[str, object] = {
            "type": "vaultfs vault",
            "format": 1,
            "vault_id": self.vault_id.hex(),
            "epoch": 1,
            "slots": [],
        }
        self.layout.header.write_text(json.dumps(fields | changes), encoding="ascii")

    def segment(self, size: int | None = None, data: bytes | None = None) -> SegmentName:
        """A new sealed segment."""
        if data is None:
            data = self.random.randbytes(self.random.randrange(1, 5000) if size is None else size)
        name = SegmentName(blake3.blake3(data).hexdigest())
        path = self.layout.sealed_path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o400)
        self.segments[name] = data
        return name

    def snapshot(
        self, *segments: SegmentName, seq: int | None = None, previous: bytes | None = None, device: bytes = DEVICE
    ) -> LocalManifest:
        """A snapshot that needs these segments; it follows the one before."""
        self.seq = self.seq + 1 if seq is None else seq
        manifest = Manifest(
            self.vault_id,
            device,
            SnapshotSeq(self.seq),
            self.seq * 10**9,
            self.previous if previous is None else previous,
            tuple((name, len(self.segments[name])) for name in segments),
            self.random.randbytes(100),
        )
        data = manifest.encode(bytes(64))
        name = manifest_hash(data)
        add_to_history(self.layout, SnapshotSeq(self.seq), name)
        self.layout.manifest_path(self.seq, name).write_bytes(data)
        self.previous = bytes.fromhex(name)
        return LocalManifest(SnapshotSeq(self.seq), name)

    def path_of(self, manifest: LocalManifest) -> Path:
        return self.layout.manifest_path(*manifest)

    def spoil(self, name: SegmentName, data: bytes) -> None:
        """Put other bytes in a segment's place."""
        path = self.layout.sealed_path(name)
        path.chmod(0o600)
        path.write_bytes(data)


def small_vault(root: Path, seed: int = 1) -> Fabricated:
    """Three snapshots that share segments: 5 segments in all."""
    vault = Fabricated(root, seed)
    first, second, third, fourth, fifth = (vault.segment() for _ in range(5))
    vault.snapshot(first, second)
    vault.snapshot(first, second, third)
    vault.snapshot(second, fourth, fifth)
    return vault


def target(vault: Fabricated, store: Store, state: Path, name: str = "away") -> Target:
    return Target(name, store, Ledger(state / name, vault.vault_id))


def all_heads(store: MemoryStore) -> Iterator[tuple[RemoteHead, Manifest]]:
    for key, data in list(store.objects.items()):
        head = parse_head(key)
        if head is not None:
            yield head, Manifest.decode(data)[0]


def require_complete_heads(store: MemoryStore) -> None:
    """No snapshot is shown whose segments are not all there, or without a header."""
    for head, manifest in all_heads(store):
        assert "vault.json" in store.objects
        for name, size in manifest.segments:
            assert len(store.objects.get(segment_key(name), b"")) == size, (head.seq, name)


def require_same(vault: Fabricated, store: MemoryStore, scratch: Path) -> None:
    """Everything of the vault is on the remote, and comes back byte for byte."""
    report = verify(store, read_share=1.0)
    assert report.problems == []
    local = {path.name: path for path in vault.layout.heads.glob("*.manifest")}
    found = heads(store)
    assert {head.hash for head in found} >= {name[11:75] for name in local}
    scratch.mkdir(parents=True, exist_ok=True)
    for head in found:
        layout = VaultLayout(scratch / f"{head.seq}-{head.hash[:8]}")
        manifest = fetch(store, layout, head)
        assert layout.header.read_bytes() == store.objects["vault.json"] == vault.layout.header.read_bytes()
        path = layout.manifest_path(head.seq, head.hash)
        assert path.read_bytes() == vault.layout.manifest_path(head.seq, head.hash).read_bytes()
        assert list(layout.sealed_names()) == [name for name, _ in manifest.segments]
        for name, _ in manifest.segments:
            assert layout.sealed_path(name).read_bytes() == vault.segments[name]
