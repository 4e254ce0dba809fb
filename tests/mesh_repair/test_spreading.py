"""What is small goes to every peer, and nothing that a peer made up."""

from __future__ import annotations

import json

import pytest

from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.mesh.headers import next_revision
from vaultfs.sync.remote_layout import head_key, segment_key

from .fake_mesh import peer_id
from .scene import Scene


def header(scene: Scene, epoch: int) -> bytes:
    fields = json.loads(scene.vault.layout.header.read_bytes())
    return json.dumps(fields | {"epoch": epoch}).encode()


async def test_manifests_and_header_go_to_everybody(scene: Scene) -> None:
    scene.give(0)
    _, spread, after = await scene.repair()
    assert (spread.heads, spread.headers) == (9, 3)
    small = {key: data for key, data in scene.vault.objects().items() if not key.startswith("segments/")}
    for peer in scene.mesh.peers.values():
        assert {key: data for key, data in peer.objects.items() if not key.startswith("segments/")} == small
    assert after.health.is_safe


async def test_a_peer_that_lacks_the_newest_snapshot_or_the_header_is_not_safe(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    newest = max(scene.vault.manifests, key=lambda head: head.seq)
    oldest = min(scene.vault.manifests, key=lambda head: head.seq)
    del scene.mesh.at(2).objects[head_key(oldest)]
    look = await scene.look()
    assert look.health.is_safe
    assert look.health.peers[peer_id(2)].lacks_heads == 1
    del scene.mesh.at(2).objects[head_key(newest)]
    look = await scene.look()
    assert not look.health.is_safe
    assert look.health.is_whole
    assert [peer for peer, each in look.health.peers.items() if each.lacks_newest] == [peer_id(2)]
    scene.give(2)
    scene.mesh.at(1).objects["vault.json"] = header(scene, 0)
    look = await scene.look()
    assert [peer for peer, each in look.health.peers.items() if each.lacks_header] == [peer_id(1)]
    assert not look.health.is_safe


async def test_a_manifest_waits_for_its_segments(scene: Scene) -> None:
    scene.give(0)
    victim: SegmentName = next(iter(scene.vault.segments))  # of the first two snapshots
    del scene.mesh.at(0).objects[segment_key(victim)]
    scene.forget_local()
    _, spread, after = await scene.repair()
    assert spread.heads == 3
    shown = [key for key in scene.mesh.at(1).objects if key.startswith("heads/")]
    assert shown == [head_key(max(scene.vault.manifests, key=lambda head: head.seq))]
    assert victim in after.health.short


async def test_a_manifest_goes_on_when_a_repair_has_brought_its_segments(scene: Scene) -> None:
    scene.give(0)
    victim: SegmentName = next(iter(scene.vault.segments))
    del scene.mesh.at(0).objects[segment_key(victim)]
    _, spread, after = await scene.repair()
    assert spread.heads == 9
    assert after.health.is_safe


async def test_an_older_header_is_replaced_by_that_of_the_vault(scene: Scene) -> None:
    scene.give(0, 1)
    scene.mesh.at(1).objects["vault.json"] = header(scene, 7)
    scene.mesh.at(1).revision = 5
    _, spread, after = await scene.repair()
    assert spread.headers == 3
    own = scene.vault.layout.header.read_bytes()
    assert all(peer.objects["vault.json"] == own for peer in scene.mesh.peers.values())
    assert scene.mesh.at(1).revision == 6
    assert after.health.is_safe


async def test_the_header_of_another_vault_is_none(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    fields = json.loads(scene.vault.layout.header.read_bytes())
    scene.mesh.at(1).objects["vault.json"] = json.dumps(fields | {"vault_id": "ab" * 16, "epoch": 99}).encode()
    scene.mesh.at(2).objects["vault.json"] = b"no header"
    scene.is_here = False
    look = await scene.look()
    assert look.headers.keys() == {peer_id(0), peer_id(3)}
    assert [each.lacks_header for each in look.health.peers.values()] == [False, True, True, False]


async def test_a_header_that_no_peer_has_is_left_to_a_sync(scene: Scene) -> None:
    scene.give(0)
    scene.mesh.at(0).objects["vault.json"] = header(scene, 7)
    _, spread, after = await scene.repair()
    assert spread.headers == 0
    assert all(each.lacks_header for each in after.health.peers.values())


async def test_without_the_vault_only_those_get_a_header_who_have_none(scene: Scene) -> None:
    scene.give(0, 1)
    scene.is_here = False
    old = scene.mesh.at(0).objects["vault.json"]
    new = header(scene, 2)
    scene.mesh.at(1).objects["vault.json"] = new
    _, spread, after = await scene.repair()
    assert spread.headers == 2
    assert scene.mesh.at(0).objects["vault.json"] == old
    assert scene.mesh.at(2).objects["vault.json"] == new
    assert [peer for peer, each in after.health.peers.items() if each.lacks_header] == [peer_id(0)]


async def test_notes_about_branches_are_spread(scene: Scene) -> None:
    scene.give(0)
    key = "heads/branches/" + "7" * 64
    scene.mesh.at(0).objects[key] = b"{}"
    scene.mesh.at(0).objects["heads/swept/" + "8" * 64] = b"{}"
    _, spread, _ = await scene.repair()
    assert spread.notes == 3
    assert all(peer.objects[key] == b"{}" for peer in scene.mesh.peers.values())
    assert not any("heads/swept/" + "8" * 64 in scene.mesh.at(number).objects for number in (1, 2, 3))


async def test_a_peer_that_fails_keeps_nobody_else_from_theirs(scene: Scene) -> None:
    scene.give(0, 1, 2, 3)
    for _ in range(9):
        scene.vault.snapshot(next(iter(scene.vault.segments)))
    scene.give(0, 3)
    for number in (1, 2):
        scene.mesh.at(number).objects = {
            key: data for key, data in scene.mesh.at(number).objects.items() if not key.startswith("heads/")
        }
    asked: list[str] = []

    def fail(key: str) -> None:
        asked.append(key)
        raise RemoteUnreachableError("gone")

    scene.mesh.at(1).before_store = fail
    _, spread, _ = await scene.repair()
    assert spread.errors.keys() == {peer_id(1)}
    assert spread.heads == 12
    assert len(asked) <= 4  # so many are sent at once; then no more


async def test_a_peer_that_may_only_be_read_is_sent_nothing(scene: Scene) -> None:
    scene.give(0)
    scene.mesh.at(1).may_write = False
    repaired, spread, after = await scene.repair()
    assert not repaired.errors
    assert not spread.errors
    assert not after.health.is_safe
    assert after.health.is_whole


@pytest.mark.parametrize(
    ("revisions", "expected"), [((), 1), ((0,), 1), ((3, 5), 6), ((3, 1 << 40), 4), (((1 << 63) - 1,), 1)]
)
def test_a_peer_cannot_use_up_the_revisions(revisions: tuple[int, ...], expected: int) -> None:
    assert next_revision(revisions) == expected
