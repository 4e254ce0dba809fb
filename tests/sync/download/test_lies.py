"""A remote that lies: nothing is kept but what its hashes name."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from remotes.faults import ChangeBody, EndlessBody, FaultyStore, cut, flip, instead
from remotes.memory_store import MemoryStore

from sync.fabricated import DEVICE, Fabricated
from vaultfs.errors import (
    FormatTooNewError,
    IntegrityError,
    ObjectMissingError,
    RemoteError,
    VaultError,
)
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.sync.download import RemoteHead, fetch
from vaultfs.sync.fetched_file import part_path
from vaultfs.sync.remote_layout import HEADER_KEY, LARGEST_SEGMENT_BYTES, head_key, segment_key

from .fetched import names_of, require_fetched, require_nothing_false

LIES: dict[str, tuple[Callable[[bytes], bytes], type[VaultError]]] = {
    "flipped": (flip(3), IntegrityError),
    "cut": (cut(), IntegrityError),
    "empty": (cut(10**9), IntegrityError),
    "longer": (lambda data: data + b"x", IntegrityError),
    "another": (instead(b"another"), IntegrityError),
    "html": (instead(b"<html>please log in</html>"), IntegrityError),
}


@pytest.mark.parametrize("what", ["segments/", "heads/"])
@pytest.mark.parametrize("lie", LIES)
def test_wrong_bodies(
    vault: Fabricated, faulty: FaultyStore, head: RemoteHead, into: VaultLayout, lie: str, what: str
) -> None:
    change, error = LIES[lie]
    faulty.add(ChangeBody(change, what))
    with pytest.raises(error) as caught:
        fetch(faulty, into, head)
    assert what in str(caught.value)
    assert "memory:one" in str(caught.value)
    if what == "segments/":
        assert ("ended after" in str(caught.value)) == (lie in {"cut", "empty", "another", "html"})
    require_nothing_false(into, head)
    assert not into.manifest_path(head.seq, head.hash).exists()
    fetch(faulty, into, head)
    require_fetched(vault, head, into)


@pytest.mark.parametrize("what", ["segments/", "heads/", "vault.json"])
def test_bodies_without_end(
    vault: Fabricated,
    faulty: FaultyStore,
    head: RemoteHead,
    into: VaultLayout,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vaultfs.sync.remote_objects.MAX_MANIFEST_BYTES", 5 << 20)
    faulty.add(EndlessBody(what))
    with pytest.raises(IntegrityError):
        fetch(faulty, into, head)
    if into.root.exists():
        assert sum(path.stat().st_size for path in into.root.rglob("*") if path.is_file()) < 1 << 20
    fetch(faulty, into, head)
    require_fetched(vault, head, into)


def test_two_segments_exchanged(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    one, two, _ = (segment_key(name) for name in names_of(vault))
    filled.objects[one], filled.objects[two] = filled.objects[two], filled.objects[one]
    with pytest.raises(IntegrityError):
        fetch(filled, into, head)
    require_nothing_false(into, head)


@pytest.mark.parametrize("what", ["segments/", "heads/"])
def test_a_missing_object(filled: MemoryStore, head: RemoteHead, into: VaultLayout, what: str) -> None:
    for key in [key for key in filled.objects if key.startswith(what)]:
        del filled.objects[key]
    with pytest.raises(ObjectMissingError):
        fetch(filled, into, head)
    require_nothing_false(into, head)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"x" * (2 << 20), b"<html>"])
def test_a_header_that_is_none(filled: MemoryStore, head: RemoteHead, into: VaultLayout, content: bytes) -> None:
    filled.objects[HEADER_KEY] = content
    with pytest.raises(IntegrityError, match=r"vault\.json on memory:one"):
        fetch(filled, into, head)
    assert not into.root.exists()


def test_a_newer_format(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    vault.write_header(format=7)
    filled.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    with pytest.raises(FormatTooNewError):
        fetch(filled, into, head)


def test_a_header_of_another_vault(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    vault.write_header(vault_id="ab" * 16)
    filled.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    with pytest.raises(IntegrityError, match="another vault"):
        fetch(filled, into, head)


def planted(store: MemoryStore, manifest: Manifest, **changes: str | int) -> RemoteHead:
    data = manifest.encode(bytes(64))
    head = RemoteHead(
        str(changes.get("device", manifest.device.hex())), int(changes.get("seq", manifest.seq)), manifest_hash(data)
    )
    store.objects[head_key(head)] = data
    return head


def test_a_name_that_says_another_device_or_number(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    manifest, _ = Manifest.decode(filled.objects[head_key(head)])
    for changes in ({"device": "ab" * 32}, {"seq": 4}):
        with pytest.raises(IntegrityError, match="another snapshot's or device's"):
            fetch(filled, into, planted(filled, manifest, **changes))
    assert not into.root.exists()


def test_a_manifest_that_would_fill_the_disk(vault: Fabricated, filled: MemoryStore, into: VaultLayout) -> None:
    name = SegmentName("ab" * 32)
    manifest = Manifest(
        vault.vault_id, DEVICE, SnapshotSeq(9), 0, None, ((name, LARGEST_SEGMENT_BYTES + 1),), b"private"
    )
    with pytest.raises(IntegrityError, match="larger than any"):
        fetch(filled, into, planted(filled, manifest))
    assert not into.root.exists()


def test_a_store_whose_bodies_are_too_short_says_so(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    """A store checks lengths itself; its error is passed on."""
    name = names_of(vault)[0]
    part = part_path(into, name)
    into.create_directories()
    part.parent.mkdir(mode=0o700)
    part.write_bytes(vault.segments[name][:5])
    filled.objects[segment_key(name)] = vault.segments[name][:9]
    with pytest.raises((RemoteError, IntegrityError)):
        fetch(filled, into, head)
    shutil.rmtree(into.root)
