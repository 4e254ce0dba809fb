"""Asking all peers: one that fails disturbs nobody, and what was said is remembered."""

from __future__ import annotations

import pytest

from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.mesh.messages import State
from vaultfs.mesh.standing import PeerStanding
from vaultfs.mesh.survey import offered_bytes, placement_of

from .fake_mesh import QUOTA_BYTES, peer_id
from .scene import NOW_NS, Scene


async def test_what_peers_say_is_remembered(scene: Scene) -> None:
    scene.give(0, 1)
    scene.mesh.at(2).is_away = True
    look = await scene.look()
    assert [view.is_present for view in look.survey.views.values()] == [True, True, False, True]
    assert isinstance(look.survey.views[peer_id(2)].error, RemoteUnreachableError)
    standing = scene.file.load()
    assert standing.of(peer_id(0)) == PeerStanding(seen_ns=NOW_NS, capacity_bytes=QUOTA_BYTES)
    assert standing.of(peer_id(2)) == PeerStanding()
    assert scene.file.load_held(peer_id(0)) == {name: len(data) for name, data in scene.vault.segments.items()}
    assert scene.file.load_held(peer_id(3)) == {}
    assert standing.short == set()


async def test_what_is_short_is_remembered_until_it_is_not(scene: Scene) -> None:
    scene.give(0)
    await scene.look()
    assert scene.file.load().short == set(scene.vault.segments)
    await scene.repair()
    assert scene.file.load().short == set()


async def test_what_was_known_stays_when_nobody_answers(scene: Scene) -> None:
    scene.give(0)
    await scene.repair()
    for peer in scene.mesh.peers.values():
        peer.is_away = True
    look = await scene.look()
    assert not look.health.is_safe
    assert len(look.health.short) == 5
    assert look.health.lost == []
    assert scene.file.load().short == set()
    assert scene.file.load_held(peer_id(0)) != {}


async def test_something_else_among_segments_makes_a_peer_count_as_absent(scene: Scene) -> None:
    scene.give(0, 1)
    scene.mesh.at(1).objects["segments/zz"] = b"?"
    look = await scene.look()
    assert not look.survey.views[peer_id(1)].is_present
    assert look.health.copies[1] == 5


@pytest.mark.parametrize(
    ("quota", "used", "free", "offered"),
    [(100, 30, 70, 100), (100, 30, 20, 50), ((1 << 63) - 1, 30, 1000, 1030), (0, 0, 0, 0)],
)
def test_what_a_peer_offers(quota: int, used: int, free: int, offered: int) -> None:
    assert offered_bytes(State(1, quota, used, free, 0, 0, True)) == offered


async def test_peers_with_and_without_a_quota_share_what_there_is(scene: Scene) -> None:
    scene.replicas = 1
    scene.give(0)
    for view in (look := await scene.look()).survey.views.values():
        free = 1 << 40
        is_bounded = view.known.id == peer_id(1)
        view.state = State(1, free if is_bounded else (1 << 63) - 1, 0, free, 0, 0, True)
    placement = placement_of(scene.page, look.standing, look.survey.views)
    names = [SegmentName(f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}".ljust(64, "0")) for number in range(400)]
    counts = [sum(placement.chosen(name, 1)[0].peer == peer_id(number) for name in names) for number in range(4)]
    assert min(counts) > 50
