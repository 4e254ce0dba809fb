"""Surplus goes only when all that stays was proved, and all who keep it still answer; whoever dies in between."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh import trimming
from vaultfs.mesh.client import Signed, Signer
from vaultfs.mesh.local_segments import LocalSegments
from vaultfs.mesh.looking import Look, Lookout
from vaultfs.mesh.surplus import find_surplus
from vaultfs.mesh.trimming import Trimmed, Trimming
from vaultfs.sync.remote_layout import segment_key

from .fake_mesh import FakeMesh, peer_id
from .scene import Scene
from .signed_vault import SignedVault
from .test_coded import CODING, CodedScene


def signed(_data: bytes) -> list[Signed]:
    return [Signed(bytes(32), bytes(64))]


async def trim(scene: Scene, sign: Signer | None = signed, look: Look | None = None) -> Trimmed:
    lookout: Lookout = scene.lookout()
    look = look or await lookout.look()
    views = [look.survey.views[peer] for peer in look.claims.present]
    surplus = find_surplus(look.needs.segments, views, lookout.placement(look), scene.replicas, look.kept.coding)
    layout = scene.vault.layout if scene.is_here else None
    made = Trimming(
        scene.mesh,
        scene.page,
        surplus,
        LocalSegments(layout),
        look.needs.segments,
        sign=sign,
        scratch=scene.where,
        report=lambda done, total: scene.reports.append((done, total)),
    )
    return await made.run()


def deletes(scene: Scene) -> int:
    return sum(len(peer.deletes) for peer in scene.mesh.peers.values())


@pytest.fixture(params=[True, False], ids=["here", "not here"])
def full(request: pytest.FixtureRequest, scene: Scene) -> Scene:
    """All four peers have everything; there are to be two copies."""
    scene.give(0, 1, 2, 3)
    scene.is_here = request.param
    return scene


async def test_the_farthest_go(full: Scene) -> None:
    lookout = full.lookout()
    placement = lookout.placement(await lookout.look())
    done = await trim(full)
    assert (done.copies, done.shares, done.unproven, done.errors, done.audits) == (10, 0, set(), {}, {})
    assert done.bytes == 2 * sum(map(len, full.vault.segments.values()))
    assert done.segments == set(full.vault.segments)
    for name in full.vault.segments:
        near = [site.peer for site in placement.chosen(name, 2)]
        assert [segment_key(name) in full.mesh.peers[peer].objects for peer in near] == [True, True]
        assert len(full.holders(name)) == 2
    after = await full.look()
    assert after.health.is_safe
    assert full.reports[-1] == (done.bytes, done.bytes)
    assert (await trim(full)).copies == 0
    assert all("segments/" in key for peer in full.mesh.peers.values() for key in peer.deletes)


async def test_a_look_at_what_would_go(full: Scene) -> None:
    done = await trim(full, None)
    assert (done.copies, len(done.segments)) == (10, 5)
    assert deletes(full) == 0
    assert (await trim(full)).copies == 10


async def test_what_is_not_proved_stays(full: Scene) -> None:
    lookout = full.lookout()
    placement = lookout.placement(await lookout.look())
    victim = min(full.vault.segments)
    bad = placement.chosen(victim, 2)[0].peer
    full.mesh.peers[bad].lies.add(segment_key(victim))
    done = await trim(full)
    kept_there = {name for name in full.vault.segments if bad in {site.peer for site in placement.chosen(name, 2)}}
    assert victim in done.unproven
    assert done.unproven <= kept_there
    assert set(done.audits) == {bad}
    near = {name: {site.peer for site in placement.chosen(name, 2)} for name in full.vault.segments}
    for peer, found in full.mesh.peers.items():
        if peer not in near[victim]:  # the order that would have gone there
            assert all(segment_key(name) in found.objects for name in kept_there if peer not in near[name])
    for name in done.unproven:
        assert sum(segment_key(name) in peer.objects for peer in full.mesh.peers.values()) >= 3
    assert min(len(full.holders(name)) for name in full.vault.segments) >= 2


async def test_what_is_gone_though_it_is_listed_stands_in_for_nothing(full: Scene) -> None:
    look = await full.look()
    victim = min(full.vault.segments)
    lookout = full.lookout()
    for site in lookout.placement(look).chosen(victim, 1):
        del full.mesh.peers[site.peer].objects[segment_key(victim)]
    done = await trim(full, look=look)
    assert victim in done.unproven
    assert len(full.holders(victim)) == 3


async def test_a_keeper_dies_after_its_proof_and_before_the_order(full: Scene) -> None:
    """It has proved all, and is not there any more when the order is to go out."""
    victim = peer_id(0)

    def dies(peer: PeerId, what: str) -> None:
        if (peer, what) == (victim, "audit"):
            full.mesh.peers[victim].is_away = True

    full.mesh.answered = dies
    done = await trim(full)
    for name in full.vault.segments:
        living = [peer for peer in full.holders(name) if not peer.is_away]
        assert len(living) >= 2
    assert done.unproven
    assert victim not in done.errors or not full.mesh.peers[victim].deletes


async def test_who_dies_when_it_gets_the_order_keeps_all(full: Scene) -> None:
    class Dying(FakeMesh):
        async def delete(self, peer: PeerId, vault: object, keys: tuple[str, ...], sign: Signer) -> int:
            if peer == peer_id(1):
                self.peers[peer].is_away = True
            return await super().delete(peer, vault, keys, sign)  # type: ignore[arg-type]

    full.mesh.__class__ = Dying
    done = await trim(full)
    assert set(done.errors) == {peer_id(1)}
    assert "cannot be reached" in str(done.errors[peer_id(1)])
    assert not full.mesh.at(1).deletes
    for name in full.vault.segments:
        assert len([peer for peer in full.holders(name) if not peer.is_away]) >= 2 or peer_id(1) in {
            peer for peer, found in full.mesh.peers.items() if found in full.holders(name)
        }
    assert min(len(full.holders(name)) for name in full.vault.segments) >= 2


async def test_a_peer_that_refuses_is_asked_once(full: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "MOST_KEYS", 1)
    asked: list[bytes] = []

    def unsigned(data: bytes) -> list[Signed]:
        asked.append(data)
        return []

    done = await trim(full, unsigned)
    assert set(done.errors) == {peer for peer, found in full.mesh.peers.items()} & set(done.errors)
    assert len(asked) == len(done.errors)
    assert (done.copies, deletes(full)) == (0, 0)


async def test_orders_are_small(full: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "MOST_KEYS", 2)
    sizes: list[int] = []

    class Counting(FakeMesh):
        async def delete(self, peer: PeerId, vault: object, keys: tuple[str, ...], sign: Signer) -> int:
            sizes.append(len(keys))
            return await super().delete(peer, vault, keys, sign)  # type: ignore[arg-type]

    full.mesh.__class__ = Counting
    assert (await trim(full)).copies == 10
    assert max(sizes) == 2
    assert sum(sizes) == 10


@pytest.mark.parametrize("seed", range(60))
async def test_whoever_dies_whenever_it_is_asked_two_living_copies_stay(scratch: Path, seed: int) -> None:
    """Peers die at any moment in which they are asked something; an order never takes the second living copy."""
    draw = random.Random(seed)
    vault = SignedVault(scratch / "vault", seed)
    vault.snapshot(*(vault.segment() for _ in range(6)))
    scene = Scene(vault, FakeMesh(6, vault.vault_id), scratch)
    scene.is_here = draw.random() < 0.5
    scene.give(*range(6))
    for name in vault.segments:
        for number in draw.sample(range(6), draw.randint(0, 3)):
            del scene.mesh.at(number).objects[segment_key(name)]
    look = await scene.look()
    deaths = {draw.randint(1, 40) for _ in range(draw.randint(1, 3))}
    count = 0
    held_before = {name: scene.holders(name) for name in vault.segments}

    class Mortal(FakeMesh):
        async def _answering(self, peer: PeerId, vault_id: object) -> object:  # type: ignore[override]
            nonlocal count
            count += 1
            if count in deaths:
                self.peers[peer].is_away = True
            return await super()._answering(peer, vault_id)  # type: ignore[arg-type]

        async def delete(self, peer: PeerId, vault_id: object, keys: tuple[str, ...], sign: Signer) -> int:
            done = await super().delete(peer, vault_id, keys, sign)  # type: ignore[arg-type]
            for key in keys:
                living = [each for each in scene.holders(SegmentName(key[-64:])) if not each.is_away]
                assert len(living) >= 2, "an order has taken a copy that was needed"
            return done

    scene.mesh.__class__ = Mortal
    await trim(scene, look=look)
    for name in vault.segments:
        assert len(scene.holders(name)) >= min(2, len(held_before[name]))


# --- shares


@pytest.fixture
async def shared(scene: Scene) -> CodedScene:
    """Shares on five peers, from when two of them were thought lost; and a whole copy of everything on two."""
    made = CodedScene(scene.vault, FakeMesh(6, scene.vault.vault_id), scene.where)
    made.give_small(*range(6))
    await made.mend()
    for number in (0, 1):
        made.mesh.at(number).is_away = True
    await made.mend()
    for number in (0, 1):
        made.mesh.at(number).is_away = False
    made.give(4, 5)
    return made


def pieces(scene: CodedScene) -> list[str]:
    return [key for number in range(6) for key in scene.shares(number)]


@pytest.mark.parametrize("is_here", [True, False])
async def test_shares_above_n_and_copies_go(shared: CodedScene, is_here: bool) -> None:
    shared.is_here = is_here
    before = pieces(shared)
    more = len(before) - 5 * CODING.total
    assert more > 0
    done = await trim(shared)
    assert (done.copies, done.shares, done.unproven, done.errors) == (10, more, set(), {})
    after = pieces(shared)
    assert len(after) == len(set(after)) == 5 * CODING.total
    assert set(after) == set(before)
    assert not any(shared.holders(name) for name in shared.vault.segments)
    look = await shared.look()
    assert look.health.is_safe
    assert (await trim(shared)).segments == set()
    for name in shared.vault.segments:
        assert max(sum(name in key for key in shared.shares(number)) for number in range(6)) == 1


async def test_where_a_share_is_damaged_copies_stay(shared: CodedScene) -> None:
    lookout = shared.lookout()
    look = await lookout.look()
    victim = min(shared.vault.segments)
    (first, *_) = find_surplus(
        {victim: look.needs.segments[victim]},
        look.survey.views.values(),
        lookout.placement(look),
        2,
        CODING,
    )
    kept = first.kept[0]
    shared.mesh.peers[kept.peer].lies.add(kept.key)
    done = await trim(shared)
    assert victim in done.unproven
    assert len(shared.holders(victim)) == 2
    assert kept.peer in done.audits


async def test_a_peer_with_shares_dies_after_its_proof(shared: CodedScene) -> None:
    def dies(peer: PeerId, what: str) -> None:
        if (peer, what) == (peer_id(2), "audit"):
            shared.mesh.peers[peer].is_away = True

    shared.mesh.answered = dies
    await trim(shared)
    look = await shared.look()
    for name in shared.vault.segments:
        living = {
            key
            for number in range(6)
            if not shared.mesh.at(number).is_away
            for key in shared.shares(number)
            if name in key
        }
        assert len(living) >= CODING.total or len(shared.holders(name)) == 2
    assert not look.health.lost


async def test_shares_go_where_there_are_copies_again(shared: CodedScene) -> None:
    scene = Scene(shared.vault, shared.mesh, shared.where)
    look = await scene.look()
    assert look.kept.coding == CODING, "nobody has said otherwise"
    views = [look.survey.views[peer] for peer in look.claims.present]
    surplus = find_surplus(look.needs.segments, views, scene.lookout().placement(look), 2, None)
    before = len(pieces(shared))
    made = Trimming(scene.mesh, scene.page, surplus, LocalSegments(None), look.needs.segments, sign=signed)
    done = await made.run()
    assert (done.copies, done.shares) == (0, before)
    assert pieces(shared) == []
    assert all(len(shared.holders(name)) == 2 for name in shared.vault.segments)
