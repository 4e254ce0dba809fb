"""Which snapshots count, and what is needed so: peers may list anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.mesh.manifest_shelf import ManifestShelf
from vaultfs.storage.manifest_format import manifest_hash
from vaultfs.sync.condemned import Record
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.remote_layout import RemoteHead, head_key, segment_key

from .fake_mesh import peer_id
from .scene import Scene
from .signed_vault import head_of

FORGER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def invent(scene: Scene, *numbers: int, size: int | None = None) -> str:
    """Let peers have a manifest of a device that is not the vault's."""
    data = scene.vault.manifest(FORGER, 99, *scene.vault.segments, size=size)
    key = head_key(head_of(data))
    for number in numbers:
        scene.mesh.at(number).objects[key] = data
    return key


async def test_everything_that_peers_and_disk_have_is_needed(scene: Scene) -> None:
    scene.give(0)
    look = await scene.look()
    assert look.needs.segments == {name: len(data) for name, data in scene.vault.segments.items()}
    assert look.needs.heads == {head: len(data) for head, data in scene.vault.manifests.items()}
    assert not look.needs.unsent
    assert not look.needs.awaited
    assert look.health.newest == max(look.needs.heads, key=lambda head: head.seq)


async def test_without_the_vault_the_peers_tell(scene: Scene) -> None:
    scene.give(0)
    scene.is_here = False
    look = await scene.look()
    assert len(look.needs.segments) == 5
    assert not look.health.is_safe
    scene.give(1, 2, 3)
    assert (await scene.look()).health.is_safe


async def test_a_snapshot_deleted_here_is_still_needed_there(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    for path in scene.vault.layout.heads.glob("*.manifest"):
        path.unlink()
    scene.vault.snapshot(scene.vault.segment())
    look = await scene.look()
    assert len(look.needs.heads) == 3
    assert len(look.needs.segments) == 6
    assert [head.seq for head in look.needs.unsent] == [4]
    assert not look.health.is_safe


async def test_a_snapshot_that_only_this_machine_has_is_not_sent_by_a_repair(scene: Scene) -> None:
    scene.give(0)
    name = scene.vault.segment()
    scene.vault.snapshot(name)
    _, spread, after = await scene.repair()
    head = next(head for head in scene.vault.manifests if head.seq == 4)
    assert not any(head_key(head) in peer.objects for peer in scene.mesh.peers.values())
    assert after.needs.unsent == [head]
    assert after.health.newest == head
    assert not after.health.is_safe
    assert spread.heads == 3 * 3


async def test_one_peer_alone_cannot_make_the_others_carry_its_inventions(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    key = invent(scene, 0)
    for is_here in (True, False):
        scene.is_here = is_here
        _, _, after = await scene.repair()
        assert [head_key(head) for head in after.needs.strange] == [key]
        assert after.health.is_safe
        assert not any(key in scene.mesh.at(number).objects for number in (1, 2, 3))


async def test_two_peers_are_believed_and_so_is_one_that_is_alone(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    key = invent(scene, 0, 1)
    _, _, after = await scene.repair()
    assert not after.needs.strange
    assert all(key in peer.objects for peer in scene.mesh.peers.values())
    scene.is_here = False
    for number in (1, 2, 3):
        scene.mesh.at(number).is_away = True
    assert len((await scene.look()).needs.heads) == 4


async def test_a_device_of_the_ledger_is_known(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    key = invent(scene, 0)
    head = head_of(scene.mesh.at(0).objects[key])
    scene.holdings = Holdings(heads={head.hash: head})
    assert not (await scene.look()).needs.strange


async def test_a_manifest_that_is_not_what_its_name_says_is_told(scene: Scene) -> None:
    scene.give(0, 1)
    scene.is_here = False
    key = head_key(max(scene.vault.manifests, key=lambda head: head.seq))
    for number in (0, 1):
        scene.mesh.at(number).lies.add(key)
    look = await scene.look()
    assert [head_key(head) for head in look.needs.unreadable] == [key]
    assert isinstance(next(iter(look.needs.unreadable.values())), IntegrityError)
    assert not look.health.is_whole


async def test_a_manifest_that_its_device_has_not_signed_is_told(scene: Scene) -> None:
    scene.give(0, 1)
    scene.is_here = False
    data = bytearray(scene.vault.manifest(scene.vault.key, 50, *scene.vault.segments))
    data[20] ^= 1  # within the signature
    key = f"heads/{scene.vault.device.hex()}/0000000050-{manifest_hash(bytes(data))}"
    scene.mesh.at(0).objects[key] = bytes(data)
    look = await scene.look()
    assert [head_key(head) for head in look.needs.unreadable] == [key]


async def test_a_manifest_that_needs_what_cannot_be_a_segment_is_told(scene: Scene) -> None:
    scene.give(0)
    scene.is_here = False
    key = invent(scene, 0, 1, size=1 << 40)
    look = await scene.look()
    assert [head_key(head) for head in look.needs.unreadable] == [key]
    assert all(size < 5000 for size in look.needs.segments.values())


async def test_a_size_that_contradicts_the_vault_does_not_count(scene: Scene) -> None:
    scene.give(0, 1)
    invent(scene, 0, 1, size=7)
    look = await scene.look()
    assert look.needs.segments == {name: len(data) for name, data in scene.vault.segments.items()}


def give_up(scene: Scene, *numbers: int) -> None:
    oldest = min(scene.vault.manifests, key=lambda head: head.seq)
    newest = max(scene.vault.manifests, key=lambda head: head.seq)
    record = Record(scene.vault.vault_id, time.time_ns(), (oldest, newest), {})
    for number in numbers:
        scene.mesh.at(number).objects[f"heads/condemned/{record.digest}"] = record.encode()


async def test_what_a_prune_has_given_up_is_not_needed_but_for_the_present(scene: Scene) -> None:
    scene.give(0, 1)
    give_up(scene, 0, 1)
    look = await scene.look()
    assert sorted(head.seq for head in look.needs.heads) == [2, 3]
    scene.is_here = False
    assert sorted(head.seq for head in (await scene.look()).needs.heads) == [2]


async def test_one_peer_alone_gives_nothing_up(scene: Scene) -> None:
    scene.give(0, 1)
    give_up(scene, 0)
    assert len((await scene.look()).needs.heads) == 3


async def test_what_the_ledger_knows_to_be_given_up_is_not_brought_back(scene: Scene) -> None:
    scene.give(0)
    oldest, *_, newest = sorted(scene.vault.manifests, key=lambda head: head.seq)
    scene.holdings = Holdings(dropped={oldest.hash: oldest, newest.hash: newest})
    _, _, after = await scene.repair()
    assert sorted(head.seq for head in after.needs.heads) == [2, 3]
    assert not any(head_key(oldest) in scene.mesh.at(number).objects for number in (1, 2, 3))
    assert all(head_key(newest) in peer.objects for peer in scene.mesh.peers.values())


async def test_a_damaged_manifest_here_comes_from_a_peer(scene: Scene) -> None:
    scene.give(0)
    newest = max(scene.vault.manifests, key=lambda head: head.seq)
    scene.vault.layout.manifest_path(newest.seq, newest.hash).write_bytes(b"damaged")
    look = await scene.look()
    assert len(look.needs.heads) == 3
    assert not look.needs.unreadable


async def test_manifests_are_fetched_once(scene: Scene) -> None:
    scene.give(0)
    scene.is_here = False

    def fetched() -> list[str]:
        return [key for key in scene.mesh.at(0).fetches if key.startswith("heads/")]

    await scene.look()
    assert len(fetched()) == 3
    await scene.look()
    assert len(fetched()) == 3
    shelf = scene.where / "shelf"
    assert len(list(shelf.iterdir())) == 3
    next(shelf.iterdir()).write_bytes(b"damaged")
    look = await scene.look()
    assert len(fetched()) == 4
    assert not look.needs.unreadable
    gone = min(scene.vault.manifests, key=lambda head: head.seq)
    del scene.mesh.at(0).objects[head_key(gone)]
    await scene.look()
    assert len(list(shelf.iterdir())) == 2


def test_a_shelf_gives_out_nothing_that_is_damaged(scratch: Path) -> None:
    shelf = ManifestShelf(scratch / "shelf")
    shelf.keep_only(())
    name = manifest_hash(b"manifest")
    assert shelf.get(name) is None
    shelf.keep(name, b"manifest")
    assert shelf.get(name) == b"manifest"
    (scratch / "shelf" / "other").touch()
    (scratch / "shelf" / name).write_bytes(b"manifes?")
    assert shelf.get(name) is None
    shelf.keep_only(())
    assert [path.name for path in (scratch / "shelf").iterdir()] == ["other"]


async def test_a_segment_with_a_wrong_size_is_missing(scene: Scene) -> None:
    scene.give(0, 1)
    victim: SegmentName = next(iter(scene.vault.segments))
    scene.mesh.at(1).objects[segment_key(victim)] = b"short"
    look = await scene.look()
    assert look.health.short == {victim: 1}
    assert look.health.missing_bytes == len(scene.vault.segments[victim])


async def test_a_snapshot_that_no_peer_has_is_not_safe_even_if_its_segments_are(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    scene.vault.snapshot(next(iter(scene.vault.segments)))
    look = await scene.look()
    assert not look.health.short
    assert len(look.needs.unsent) == 1
    assert not look.health.is_whole


async def test_a_manifest_with_another_size_is_missing(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    newest = max(scene.vault.manifests, key=lambda head: head.seq)
    scene.mesh.at(2).objects[head_key(newest)] = b"short"
    look = await scene.look()
    assert [each.lacks_newest for each in look.health.peers.values()] == [False, False, True, False]


@pytest.mark.parametrize("liar", [0, 1])
async def test_one_hash_has_one_name(scene: Scene, liar: int) -> None:
    """A peer that lists a manifest under another number cannot hide it so."""
    scene.give(0, 1)
    newest = max(scene.vault.manifests, key=lambda head: head.seq)
    wrong = RemoteHead(newest.device, 77, newest.hash)
    data = scene.mesh.at(liar).objects.pop(head_key(newest))
    scene.mesh.at(liar).objects[head_key(wrong)] = data
    for is_here in (True, False):
        scene.is_here = is_here
        look = await scene.look()
        assert newest in look.needs.heads
        assert look.health.newest == newest
        assert look.health.peers[peer_id(liar)].lacks_newest
        assert look.needs.strange == [wrong]
        assert not look.needs.unreadable
