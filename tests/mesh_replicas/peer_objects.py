"""Objects as a vault makes them, and ways to store them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Final

import blake3

from vaultfs.ids import PeerId, SegmentName, SnapshotSeq, VaultId
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_keys import parse_object_key
from vaultfs.mesh.replica_usage import charged_bytes
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.storage.manifest_format import Manifest

VAULT: Final = VaultId(bytes(range(16)))
OTHER_VAULT: Final = VaultId(bytes(range(1, 17)))
ALICE: Final = PeerId(b"a" * 32)
BOB: Final = PeerId(b"b" * 32)
DEVICE: Final = Identity.of_seed(b"d" * 32)
STRANGER: Final = Identity.of_seed(b"s" * 32)
NOTE: Final = "heads/swept/" + "5" * 64
NOW_NS: Final = 1_800_000_000 * 10**9
DAY_NS: Final = 24 * 3600 * 10**9


class Clock:
    """Says what a test wants; files on the disk have the times of the real one."""

    def __init__(self, now_ns: int = NOW_NS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def data_of(seed: int, size_bytes: int) -> bytes:
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size_bytes)


def digest_of(data: bytes) -> bytes:
    return blake3.blake3(data).digest()


def segment_key(data: bytes) -> str:
    name = digest_of(data).hex()
    return f"segments/{name[:2]}/{name}"


def manifest(
    seq: int = 1, device: Identity = DEVICE, vault: VaultId = VAULT, segments: int = 3, private: bytes = b"sealed"
) -> bytes:
    names = [(SegmentName(digest_of(data_of(number, 40)).hex()), 40 + number) for number in range(segments)]
    made = Manifest(vault, device.public_key, SnapshotSeq(seq), 1_000 + seq, None, tuple(names), private)
    return made.encode(device.sign(made.signed_bytes()))


def head_key(data: bytes, seq: int = 1, device: Identity = DEVICE) -> str:
    return f"heads/{device.public_key.hex()}/{seq:010d}-{digest_of(data).hex()}"


def header(epoch: int = 1, vault: VaultId = VAULT, filler: str = "") -> bytes:
    fields = {"type": "vaultfs vault", "format": 1, "vault_id": vault.hex(), "epoch": epoch, "filler": filler}
    return json.dumps(fields).encode()


def begin(
    store: ReplicaStore,
    key: str,
    data: bytes,
    *,
    caller: PeerId = ALICE,
    vault: VaultId = VAULT,
    if_absent: bool = False,
    revision: int = 0,
    quota_bytes: int | None = None,
) -> Upload | None:
    return store.begin_put(caller, vault, key, len(data), digest_of(data), if_absent, revision, quota_bytes)


def put(
    store: ReplicaStore,
    key: str,
    data: bytes,
    *,
    caller: PeerId = ALICE,
    vault: VaultId = VAULT,
    if_absent: bool = False,
    revision: int = 0,
    quota_bytes: int | None = None,
    piece_bytes: int = 1 << 18,
) -> bool:
    """Store an object as the server does; whether bytes had to be sent."""
    upload = begin(
        store,
        key,
        data,
        caller=caller,
        vault=vault,
        if_absent=if_absent,
        revision=revision,
        quota_bytes=quota_bytes,
    )
    if upload is None:
        return False
    send(upload, data, piece_bytes)
    return True


def send(upload: Upload, data: bytes, piece_bytes: int = 1 << 18) -> None:
    try:
        for start in range(upload.offset, len(data), piece_bytes):
            upload.write(data[start : start + piece_bytes])
        upload.finish()
    finally:
        upload.abort(keep=True)


def put_segment(store: ReplicaStore, data: bytes, caller: PeerId = ALICE, vault: VaultId = VAULT) -> str:
    key = segment_key(data)
    put(store, key, data, caller=caller, vault=vault)
    return key


def put_head(store: ReplicaStore, seq: int = 1, device: Identity = DEVICE, vault: VaultId = VAULT) -> str:
    data = manifest(seq, device, vault)
    key = head_key(data, seq, device)
    put(store, key, data, vault=vault)
    return key


def read(store: ReplicaStore, key: str, vault: VaultId = VAULT) -> bytes:
    with store.reader(vault, key) as reader:
        return b"".join(iter(lambda: reader.read(1000), b""))


def is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def objects_on_disk(root: Path, vault: VaultId = VAULT) -> dict[str, bytes]:
    """Everything below a vault's directory that has the name of an object."""
    base = root / vault.hex()
    found = {}
    for directory, names, files in os.walk(base):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = Path(directory) / name
            if is_regular(path):
                found[path.relative_to(base).as_posix()] = path.read_bytes()
    return found


def check(root: Path, store: ReplicaStore, vaults: tuple[VaultId, ...] = (VAULT,)) -> None:
    """What must be true at all times: no object with wrong bytes, and what is counted is what is there."""
    counted_bytes = 0
    for vault in vaults:
        objects = objects_on_disk(root, vault)
        for key, data in objects.items():
            wanted = parse_object_key(key)
            assert wanted is not None, key
            assert wanted.digest in {None, digest_of(data)}, key
        counted_bytes += sum(charged_bytes(len(data)) for data in objects.values())
        partial = root / vault.hex() / ".mesh" / "partial"
        counted_bytes += sum(charged_bytes(path.stat().st_size) for path in partial.glob("*") if is_regular(path))
        room = store.state(ALICE, vault, None)
        assert room.objects == len(objects)
        assert room.vault_bytes == sum(map(len, objects.values()))
        assert dict(store.listing(vault, "", "", 10_000)[0]) == {key: len(data) for key, data in objects.items()}
    assert store.usage(ALICE) + store.usage(BOB) == counted_bytes
