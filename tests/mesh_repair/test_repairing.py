"""What a repair does, with peers in memory: who gets what, from where, and what becomes of everything that fails."""

from __future__ import annotations

import pytest
import trio
from blake3 import blake3

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    StorageError,
)
from vaultfs.ids import SegmentName
from vaultfs.mesh.reading import HashingFile
from vaultfs.sync.remote_layout import segment_key

from .fake_mesh import failing, peer_id
from .scene import HOUR_NS, Scene


def require_copies(scene: Scene, count: int) -> None:
    for name in scene.vault.segments:
        assert len(scene.holders(name)) >= count, name


async def test_what_one_peer_has_is_copied_from_the_disk(scene: Scene) -> None:
    scene.give(0)
    scene.give_small(1, 2, 3)
    repaired, _, after = await scene.repair()
    assert repaired.copies == 5
    assert repaired.bytes == sum(map(len, scene.vault.segments.values()))
    assert not repaired.errors
    assert after.health.is_safe
    assert after.health.copies == {0: 0, 1: 0, 2: 5}
    require_copies(scene, 2)
    assert scene.mesh.at(0).fetches.count("vault.json") == len(scene.mesh.at(0).fetches)
    again, spread, _ = await scene.repair()
    assert again.copies == spread.heads == spread.headers == 0


async def test_progress_ends_with_everything(scene: Scene) -> None:
    scene.give(0)
    await scene.repair()
    total = sum(map(len, scene.vault.segments.values()))
    assert scene.reports[-1] == (total, total)
    assert all(done <= in_all for done, in_all in scene.reports)


@pytest.mark.parametrize("is_here", [True, False])
async def test_a_limit_counts_what_comes_and_what_goes(scene: Scene, is_here: bool) -> None:
    large = scene.vault.segment(300_000)
    scene.vault.snapshot(large)
    scene.give(0)
    if not is_here:
        scene.forget_local()
    await scene.repair()
    total = sum(map(len, scene.vault.segments.values()))
    assert sum(scene.taken) == (total if is_here else 2 * total)
    assert sorted(scene.taken)[-2 if is_here else -3] <= 1 << 16  # what is sent, in small steps


@pytest.mark.parametrize("is_here", [True, False])
async def test_what_is_not_here_comes_from_peers(scene: Scene, is_here: bool) -> None:
    scene.give(0, 1)
    scene.is_here = is_here
    if is_here:
        scene.forget_local()
    scene.mesh.at(1).is_away = True
    repaired, _, after = await scene.repair()
    assert repaired.copies == 5
    assert after.health.is_whole
    require_copies(scene, 3)  # with those of the peer that is away
    assert not list(scene.where.glob("tmp*"))


async def test_no_wrong_byte_is_taken_from_a_peer(scene: Scene) -> None:
    scene.give(0, 1)
    scene.forget_local()
    scene.replicas = 3
    victim = next(iter(scene.vault.segments))
    for number in (0, 1):
        scene.mesh.at(number).lies.add(segment_key(victim))
    repaired, _, after = await scene.repair()
    assert repaired.copies == 4
    assert repaired.wrong == {peer_id(0): {victim}, peer_id(1): {victim}}
    assert [peer for peer in scene.holders(victim) if not peer.lies] == []
    assert victim in after.health.short


async def test_a_lying_source_is_passed_over_and_gets_good_copies(scene: Scene) -> None:
    scene.give(0, 1)
    scene.forget_local()
    scene.replicas = 4
    liar = scene.mesh.at(0)
    liar.lies = {segment_key(name) for name in scene.vault.segments}
    with trio.fail_after(30):
        repaired, _, after = await scene.repair()
    assert repaired.wrong.keys() == {peer_id(0)}
    found = {segment_key(name) for name in repaired.wrong[peer_id(0)]}
    assert found  # where it was asked first
    assert found == {key for key in liar.stores if key.startswith("segments/")}
    assert not liar.lies & found
    assert after.health.is_safe
    for name in scene.vault.segments:
        assert all(peer in scene.holders(name) for peer in list(scene.mesh.peers.values())[1:])


async def test_a_peer_without_room_for_large_ones_gets_small_ones(scene: Scene) -> None:
    for number in range(6):
        scene.vault.segment(data=b"large" * 1000 + bytes([number]))
    small = next(
        name
        for number in range(1000)
        if (name := SegmentName(blake3(b"%d" % number).hexdigest())) > max(scene.vault.segments)
        and scene.vault.segment(data=b"%d" % number)
    )
    scene.vault.snapshot(*scene.vault.segments)
    scene.give(0)
    lookout = scene.lookout()
    look = await lookout.look()

    def refuse(key: str) -> None:
        if key != segment_key(small):
            raise NoSpaceError("full")

    for number in (1, 2, 3):
        scene.mesh.at(number).before_store = refuse
    await scene.repair_of(look, lookout, at_once=1).run()
    assert len(scene.holders(small)) == 2


async def test_what_a_peer_only_says_it_has_is_missing(scene: Scene) -> None:
    scene.give(0)
    scene.give_small(1, 2, 3)
    scene.forget_local()
    victim = next(iter(scene.vault.segments))
    data = scene.mesh.at(0).objects.pop(segment_key(victim))
    scene.mesh.at(0).invents[segment_key(victim)] = len(data)
    repaired, _, _ = await scene.repair()
    assert repaired.wrong == {peer_id(0): {victim}}
    assert repaired.copies == 4


async def test_a_damaged_segment_here_is_not_sent_but_fetched(scene: Scene) -> None:
    scene.give(0)
    victim = next(iter(scene.vault.segments))
    scene.vault.spoil(victim, scene.vault.segments[victim][:-1] + b"?")
    repaired, _, after = await scene.repair()
    assert repaired.damaged_here == {victim}
    assert segment_key(victim) in scene.mesh.at(0).fetches
    assert after.health.is_safe
    require_copies(scene, 2)


async def test_a_damaged_segment_that_no_peer_has_goes_nowhere(scene: Scene) -> None:
    scene.give_small(0, 1, 2, 3)
    victim = next(iter(scene.vault.segments))
    scene.vault.spoil(victim, scene.vault.segments[victim][:-1] + b"?")
    repaired, _, after = await scene.repair()
    assert repaired.damaged_here == {victim}
    assert repaired.copies == 8
    assert not any(segment_key(victim) in peer.objects for peer in scene.mesh.peers.values())
    assert after.health.short == {victim: 0}


async def test_a_full_peer_is_replaced_by_another(scene: Scene) -> None:
    scene.give(0)
    scene.give_small(1, 2, 3)
    for number in (1, 2):  # says that there is room, but there is not
        full = scene.mesh.at(number)
        full.before_store = _full
    repaired, _, after = await scene.repair()
    assert after.health.is_safe
    assert len([key for key in scene.mesh.at(3).stores if key.startswith("segments/")]) == 5
    assert scene.reports[-1] == (total := sum(map(len, scene.vault.segments.values())), total)
    assert set(repaired.errors) <= {peer_id(1), peer_id(2)}


def _full(key: str) -> None:
    if key.startswith("segments/"):
        raise NoSpaceError("full")


@pytest.mark.parametrize("kind", [RemoteRefusedError, IntegrityError])
async def test_a_peer_that_refuses_is_asked_once(scene: Scene, kind: type[RemoteError]) -> None:
    scene.give(0)
    asked: list[str] = []

    def refuse(key: str) -> None:
        asked.append(key)
        raise kind("no")

    for number in (1, 2):
        scene.mesh.at(number).before_store = refuse
    lookout = scene.lookout()
    look = await lookout.look()
    repaired = await scene.repair_of(look, lookout, at_once=1).run()
    assert len(asked) == len(repaired.errors) <= 2
    require_copies(scene, 2)


async def test_a_peer_that_fails_is_tried_again_and_then_left_out(scene: Scene) -> None:
    scene.give(0)
    scene.mesh.at(1).before_store = failing(lambda: RemoteUnreachableError("gone"), times=2)
    scene.mesh.at(2).before_store = failing(lambda: RemoteUnreachableError("gone"))
    repaired, _, _ = await scene.repair()
    assert peer_id(1) not in repaired.errors
    require_copies(scene, 2)
    assert scene.reports[-1] == (total := sum(map(len, scene.vault.segments.values())), total)
    assert scene.mesh.at(1).stores


async def test_everybody_fails(scene: Scene) -> None:
    scene.give(0)
    for number in (1, 2, 3):
        scene.mesh.at(number).before_store = failing(lambda: RemoteUnreachableError("gone"))
    repaired, spread, after = await scene.repair()
    assert repaired.copies == 0
    assert repaired.errors.keys() == {peer_id(1), peer_id(2), peer_id(3)}
    assert spread.errors.keys() == {peer_id(1), peer_id(2), peer_id(3)}
    assert len(after.health.short) == 5
    assert after.health.lost == []


async def test_so_many_at_once_and_no_more(scene: Scene) -> None:
    for _ in range(20):
        scene.vault.segment()
    scene.vault.snapshot(*scene.vault.segments)
    scene.give(0)
    lookout = scene.lookout()
    look = await lookout.look()
    scene.mesh.busiest, scene.mesh.meeting, scene.mesh._met = 0, 3, trio.Event()
    await scene.repair_of(look, lookout, at_once=3).run()
    assert scene.mesh.busiest == 3
    require_copies(scene, 2)


async def test_zones_are_spread_over(scene: Scene) -> None:
    scene.zones = ("home", "home", "work", "work")
    scene.give(0, 1)
    look = await scene.look()
    assert look.health.one_zone == 5
    assert look.health.zones == 1
    _, _, after = await scene.repair()
    assert after.health.one_zone == 0
    for name in scene.vault.segments:
        assert len(scene.holders(name)) == 3


async def test_cancelled_it_stops_and_leaves_nothing(scene: Scene) -> None:
    scene.give(0)
    lookout = scene.lookout()
    look = await lookout.look()
    with trio.CancelScope() as scope:
        for number in (1, 2, 3):
            scene.mesh.at(number).before_store = lambda _key: scope.cancel()
        await scene.repair_of(look, lookout).run()
    assert scope.cancelled_caught
    assert not any(peer.stores for peer in scene.mesh.peers.values())
    for number in (1, 2, 3):
        scene.mesh.at(number).before_store = lambda _key: None
    await scene.repair()
    require_copies(scene, 2)


async def test_a_disk_here_that_is_full_ends_it(scene: Scene) -> None:
    scene.give(0)
    scene.forget_local()
    scene_repair = scene.lookout()
    look = await scene_repair.look()
    repair = scene.repair_of(look, scene_repair)
    repair._scratch = scene.where / "missing"  # type: ignore[misc]
    with pytest.raises(StorageError, match="cannot make a file"):
        await repair.run()


async def test_a_disk_here_that_changes_what_came_ends_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.give(0)
    scene.forget_local()
    lookout = scene.lookout()
    look = await lookout.look()
    real = HashingFile.hexdigest

    def and_then_spoil(self: HashingFile) -> str:
        self._file.seek(0)
        self._file.write(b"\xff\xfe\xfd")
        return real(self)

    monkeypatch.setattr(HashingFile, "hexdigest", and_then_spoil)
    with trio.fail_after(30), pytest.raises(IntegrityError):
        await scene.repair_of(look, lookout).run()
    assert not any(peer.stores for peer in scene.mesh.peers.values())


async def test_a_peer_that_failed_an_audit_counts_for_nothing_but_can_be_read(scene: Scene) -> None:
    scene.give(0)
    scene.give_small(1, 2, 3)
    scene.forget_local()
    standing = scene.file.load()
    standing.note(peer_id(0), failed_audit_ns=5)
    scene.file.save(standing)
    look = await scene.look()
    assert look.health.copies == {0: 5, 1: 0, 2: 0}
    assert look.health.lost == []
    repaired, _, after = await scene.repair()
    assert repaired.copies == 10
    assert after.health.copies == {0: 0, 1: 0, 2: 5}
    require_copies(scene, 3)
    assert not [key for key in scene.mesh.at(0).stores if key.startswith("segments/")]


async def test_who_was_there_lately_counts_as_if_it_was(scene: Scene) -> None:
    scene.give(0, 1)
    await scene.look()
    scene.mesh.at(1).is_away = True
    scene.now_ns += HOUR_NS
    repaired, _, after = await scene.repair(grace_ns=2 * HOUR_NS)
    assert repaired.copies == 0
    assert after.health.is_safe
    scene.now_ns += HOUR_NS
    repaired, _, after = await scene.repair(grace_ns=2 * HOUR_NS)
    assert repaired.copies == 5
    assert after.health.is_safe


async def test_lost_is_only_what_nobody_can_have(scene: Scene) -> None:
    scene.give(0, 1)
    scene.give_small(2, 3)
    scene.forget_local()
    await scene.look()
    victim: SegmentName = next(iter(scene.vault.segments))
    for number in (0, 1):
        del scene.mesh.at(number).objects[segment_key(victim)]
    scene.mesh.at(0).is_away = True
    scene.now_ns += HOUR_NS
    look = await scene.look()
    assert look.health.lost == []  # who is away said that it has it
    assert look.health.short[victim] == 0
    scene.mesh.at(0).is_away = False
    assert (await scene.look()).health.lost == [victim]


async def test_nothing_is_lost_as_long_as_somebody_was_never_asked(scene: Scene) -> None:
    scene.give_small(0)
    scene.forget_local()
    for number in (1, 2, 3):
        scene.mesh.at(number).is_away = True
    look = await scene.look()
    assert len(look.health.short) == 5
    assert look.health.lost == []
