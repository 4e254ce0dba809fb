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
from .scene import Scene

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

    async def mend(self) -> tuple[Repaired, Look, Look]:
        lookout = self.lookout()
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
    assert (await coded.look()).health.lost == []


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
    views = look.survey.views.values()
    assert share_counts(names, CODING, views) == dict.fromkeys(names, 4)
    assert share_counts(names, Coding(2, 3), views) == {}
    assert share_counts({name: size + 1 for name, size in names.items()}, CODING, views) == {}
