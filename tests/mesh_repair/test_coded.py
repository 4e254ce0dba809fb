"""Vaults with shares instead of copies: what is lacking, and how it is made again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.claims import share_counts
from vaultfs.mesh.coded_repair import CodedRepair
from vaultfs.mesh.health import incomplete
from vaultfs.mesh.looking import Look, Lookout
from vaultfs.mesh.repairing import Repaired
from vaultfs.mesh.share_format import Coding
from vaultfs.sync.remote_layout import head_key, segment_key

from .fake_mesh import FakeMesh, peer_id
from .scene import HOUR_NS, Scene

CODING = Coding(2, 4)


class CodedScene(Scene):
    """The same, with shares."""

    @property
    def page(self) -> VaultPeers:
        return replace(super().page, coding=CODING)

    def coded_repair(self, look: Look, lookout: Lookout) -> CodedRepair:
        here = self.here()
        return CodedRepair(
            self.mesh,
            self.page,
            CODING,
            look.survey,
            look.claims,
            lookout.placement(look),
            look.needs.segments,
            layout=None if here is None else self.vault.layout,
            local=frozenset() if here is None else frozenset(here.segments),
            scratch=self.where,
            report=lambda done, total: self.reports.append((done, total)),
        )

    async def mend(self, grace_ns: int = 0) -> tuple[Repaired, Look, Look]:
        lookout = self.lookout(grace_ns)
        before = await lookout.look()
        done = await self.coded_repair(before, lookout).run()
        return done, before, await lookout.look()

    def shares(self, number: int) -> list[str]:
        return [key for key in self.mesh.at(number).objects if key.startswith("shares/")]


@pytest.fixture
def coded(scene: Scene) -> CodedScene:
    made = CodedScene(scene.vault, FakeMesh(5, scene.vault.vault_id), scene.where)
    made.give_small(0, 1, 2, 3, 4)
    return made


async def test_shares_are_made_of_what_is_here(coded: CodedScene) -> None:
    done, before, after = await coded.mend()
    assert before.health.copies == {0: 5, 1: 0, 2: 0, 3: 0, 4: 0}
    assert before.health.lost == []
    assert done.copies == 20
    assert after.health.copies == {0: 0, 1: 0, 2: 0, 3: 0, 4: 5}
    assert after.health.is_safe
    assert coded.reports[-1][0] == coded.reports[-1][1] == before.health.missing_bytes
    assert (await coded.mend())[0].copies == 0


async def test_shares_are_made_of_shares(coded: CodedScene) -> None:
    await coded.mend()
    coded.forget_local()
    for key in [*coded.shares(0), *coded.shares(1)]:
        for number in (0, 1):
            coded.mesh.at(number).objects.pop(key, None)
    done, before, after = await coded.mend()
    assert done.copies > 0
    assert before.health.short.keys() <= set(coded.vault.segments)
    assert before.health.lost == []
    assert after.health.is_safe


async def test_shares_are_made_of_a_copy_of_before(coded: CodedScene) -> None:
    coded.give(4)
    coded.forget_local()
    look = await coded.look()
    assert look.health.lost == []
    assert not incomplete(look.needs, look.survey)
    _, _, after = await coded.mend()
    assert after.health.is_safe


async def test_a_damaged_segment_here_is_made_of_shares(coded: CodedScene) -> None:
    await coded.mend()
    victim = next(iter(coded.vault.segments))
    coded.vault.spoil(victim, coded.vault.segments[victim][:-1] + b"?")
    for number in range(5):
        for key in coded.shares(number):
            if victim in key and "2-4-0-" in key:
                del coded.mesh.at(number).objects[key]
    done, before, after = await coded.mend()
    assert before.health.short == {victim: 3}
    assert done.damaged_here == {victim}
    assert after.health.is_safe


async def test_fewer_shares_than_are_needed_are_lost(coded: CodedScene) -> None:
    await coded.mend()
    coded.forget_local()
    victim = next(iter(coded.vault.segments))
    holders = [number for number in range(5) if any(victim in key for key in coded.shares(number))]
    for number in holders[1:]:
        for key in coded.shares(number):
            if victim in key:
                del coded.mesh.at(number).objects[key]
    look = await coded.look()
    assert look.health.short == {victim: 1}
    assert look.health.lost == [victim]
    assert {head.seq for head in incomplete(look.needs, look.survey)} == {1, 2}
    done, _, after = await coded.mend()
    assert done.copies == 0
    assert after.health.lost == [victim]
    coded.mesh.at(holders[2]).is_away = True
    assert (await coded.look()).health.lost == [victim], "it is remembered that it had none"
    coded.mesh.at(holders[0]).is_away = True
    for path in (coded.where / "state").glob("*.shares"):
        path.unlink()
    assert (await coded.look()).health.lost == [], "nobody knows what those have that are away"


async def test_who_failed_an_audit_has_no_shares(coded: CodedScene) -> None:
    await coded.mend()
    standing = coded.file.load()
    standing.note(peer_id(0), failed_audit_ns=1)
    coded.file.save(standing)
    done, before, after = await coded.mend()
    assert set(before.health.short) == {key.split("/")[1] for key in coded.shares(0)}
    assert done.copies == len(before.health.short)
    assert after.health.is_whole


async def test_too_few_peers_are_told(coded: CodedScene) -> None:
    for number in (0, 1, 2, 3):
        coded.mesh.at(number).is_away = True
    done, _, after = await coded.mend()
    assert len(done.failures) >= 1
    assert not after.health.is_whole


async def test_manifests_go_where_they_lack(coded: CodedScene) -> None:
    await coded.mend()
    newest = max(coded.vault.manifests, key=lambda head: head.seq)
    del coded.mesh.at(3).objects[head_key(newest)]
    look = await coded.look()
    assert not look.health.is_safe
    assert not look.needs.awaited
    assert not any(segment_key(name) in coded.mesh.at(0).objects for name in coded.vault.segments)


async def test_shares_of_another_coding_do_not_count(coded: CodedScene) -> None:
    await coded.mend()
    look = await coded.look()
    names = look.needs.segments
    views = [view.shares for view in look.survey.views.values()]
    assert share_counts(names, CODING, views) == dict.fromkeys(names, 4)
    assert share_counts(names, Coding(2, 3), views) == {}
    assert share_counts({name: size + 1 for name, size in names.items()}, CODING, views) == {}


# --- peers that are away for a short time


@pytest.fixture
def whole(coded: CodedScene) -> CodedScene:
    """Six peers, of which the last has nothing yet; the segments are not on this machine."""
    made = CodedScene(coded.vault, FakeMesh(6, coded.vault.vault_id), coded.where)
    made.give_small(*range(6))
    return made


def bring_back(whole: CodedScene) -> None:
    """The segments are on this machine again."""
    for name, data in whole.vault.segments.items():
        whole.vault.layout.sealed_path(name).write_bytes(data)


async def settle(whole: CodedScene) -> None:
    await whole.mend()
    whole.forget_local()


@pytest.mark.parametrize("is_here", [True, False])
async def test_a_peer_that_is_away_for_a_short_time_is_not_replaced(whole: CodedScene, is_here: bool) -> None:
    await settle(whole)
    if is_here:
        bring_back(whole)
    gone = next(number for number in range(6) if whole.shares(number))
    had = whole.shares(gone)
    whole.mesh.at(gone).is_away = True
    whole.now_ns += HOUR_NS
    done, before, after = await whole.mend(grace_ns=2 * HOUR_NS)
    assert done.copies == 0
    assert before.health.copies[CODING.total] == 5
    assert after.health.is_whole
    assert before.health.peers[peer_id(gone)].segments == len(had)
    done, before, after = await whole.mend(grace_ns=HOUR_NS)
    assert before.health.short == dict.fromkeys((key.split("/")[1] for key in had), 3)
    assert done.copies == len(had)
    assert after.health.is_whole
    assert not before.health.lost


@pytest.mark.parametrize("is_here", [True, False])
async def test_what_is_missing_besides_is_made_without_the_one_that_is_away(whole: CodedScene, is_here: bool) -> None:
    await settle(whole)
    if is_here:
        bring_back(whole)
    victim = min(whole.vault.segments)
    first, second, *_ = [number for number in range(6) if any(victim in key for key in whole.shares(number))]
    whole.mesh.at(first).is_away = True
    (lost,) = [key for key in whole.shares(second) if victim in key]
    del whole.mesh.at(second).objects[lost]
    whole.now_ns += 1
    stores = sum(len(peer.stores) for peer in whole.mesh.peers.values())
    done, before, after = await whole.mend(grace_ns=HOUR_NS)
    assert before.health.short == {victim: 3}
    assert done.copies == 1
    assert sum(lost in whole.shares(number) for number in range(6)) == 1
    assert sum(len(peer.stores) for peer in whole.mesh.peers.values()) == stores + 1
    assert after.health.is_whole


async def test_what_counts_cannot_be_read(whole: CodedScene) -> None:
    """Shares on three of four peers that are away count, and give nothing back."""
    await settle(whole)
    victim = min(whole.vault.segments)
    holders = [number for number in range(6) if any(victim in key for key in whole.shares(number))]
    for number in holders[:3]:
        whole.mesh.at(number).is_away = True
    (key,) = [key for key in whole.shares(holders[3]) if victim in key]
    index = int(key.split("/")[2].split("-")[2])
    whole.now_ns += 1
    done, before, after = await whole.mend(grace_ns=HOUR_NS)
    assert victim not in before.health.short
    del whole.mesh.at(holders[3]).objects[key]
    done, before, after = await whole.mend(grace_ns=HOUR_NS)
    assert before.health.short[victim] == 3
    assert done.copies == 0, f"share {index} cannot be made of nothing"
    assert after.health.lost == [], "three are expected back"
    whole.mesh.at(holders[3]).objects[segment_key(victim)] = whole.vault.segments[victim]
    done, _, after = await whole.mend(grace_ns=HOUR_NS)
    assert done.copies == 1, "it is made of a whole copy"
    assert victim not in after.health.short


async def test_who_failed_an_audit_and_is_away_is_not_waited_for(whole: CodedScene) -> None:
    await settle(whole)
    gone = next(number for number in range(6) if whole.shares(number))
    standing = whole.file.load()
    standing.note(peer_id(gone), failed_audit_ns=1)
    whole.file.save(standing)
    whole.mesh.at(gone).is_away = True
    _, before, _ = await whole.mend(grace_ns=HOUR_NS)
    assert len(before.health.short) == len(whole.shares(gone))


async def test_what_is_remembered_of_shares(whole: CodedScene) -> None:
    await settle(whole)
    found = whole.file.load_shares(peer_id(0))
    assert found is not None
    assert sorted(str(key) for keys in found.values() for key in keys) == sorted(whole.shares(0))
    assert {key.coded.name for keys in found.values() for key in keys} == set(found)
    whole.file.forget_held(peer_id(0))
    assert whole.file.load_shares(peer_id(0)) is None


async def test_what_only_those_have_who_are_not_believed_is_not_lost(whole: CodedScene) -> None:
    await settle(whole)
    standing = whole.file.load()
    for number in range(6):
        if whole.shares(number):
            standing.note(peer_id(number), failed_audit_ns=1)
    whole.file.save(standing)
    look = await whole.look()
    assert look.health.short == dict.fromkeys(whole.vault.segments, 0)
    assert look.health.lost == []
