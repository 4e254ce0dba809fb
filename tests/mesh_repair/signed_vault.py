"""A made-up vault whose manifests are signed by their devices, as peers want them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sync.fabricated import Fabricated

from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.storage.snapshot_history import add_to_history
from vaultfs.sync.local_vault import LocalManifest
from vaultfs.sync.remote_layout import RemoteHead, head_key, segment_key


class SignedVault(Fabricated):
    """A vault.

    Args:
        root: its directory.
        seed: of everything in it, and of the device's key.
    """

    def __init__(self, root: Path, seed: int = 1) -> None:
        super().__init__(root, seed)
        self.key = Ed25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        self.device = self.key.public_key().public_bytes_raw()
        self.manifests: dict[RemoteHead, bytes] = {}

    def snapshot(
        self, *segments: SegmentName, seq: int | None = None, previous: bytes | None = None, device: bytes | None = None
    ) -> LocalManifest:
        """A snapshot of this device that needs these segments; it follows the one before."""
        assert device is None, "the device is the one that signs"
        self.seq = self.seq + 1 if seq is None else seq
        data = self.manifest(self.key, self.seq, *segments)
        name = manifest_hash(data)
        add_to_history(self.layout, SnapshotSeq(self.seq), name)
        self.layout.manifest_path(self.seq, name).write_bytes(data)
        self.previous = bytes.fromhex(name)
        self.manifests[RemoteHead(self.device.hex(), self.seq, name)] = data
        return LocalManifest(SnapshotSeq(self.seq), name)

    def manifest(self, key: Ed25519PrivateKey, seq: int, *segments: SegmentName, size: int | None = None) -> bytes:
        """A signed manifest of any device, in no file."""
        manifest = Manifest(
            self.vault_id,
            key.public_key().public_bytes_raw(),
            SnapshotSeq(seq),
            seq * 10**9,
            self.previous,
            tuple((name, len(self.segments[name]) if size is None else size) for name in segments),
            self.random.randbytes(100),
        )
        return manifest.encode(key.sign(manifest.signed_bytes()))

    def objects(self) -> dict[str, bytes]:
        """Everything that peers are to have of it."""
        found = {segment_key(name): data for name, data in self.segments.items()}
        found |= {head_key(head): data for head, data in self.manifests.items()}
        return found | {"vault.json": self.layout.header.read_bytes()}


def head_of(data: bytes) -> RemoteHead:
    """The name of a manifest."""
    manifest, _ = Manifest.decode(data)
    return RemoteHead(manifest.device.hex(), manifest.seq, manifest_hash(data))
