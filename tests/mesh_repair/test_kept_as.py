"""Whether a vault is kept as copies or as shares: as was said, else as peers hold it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vaultfs.errors import VaultError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.claims import Held, Shares
from vaultfs.mesh.coded import CodedSegments
from vaultfs.mesh.kept_as import KeptAs, Way, kept_as
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.standing import Standing
from vaultfs.mesh.writing import Writer
from vaultfs.remotes.store import BytesSource

from .fake_mesh import FakeMesh
from .scene import Scene
from .test_coded import CODING, CodedScene

PAGE = VaultPeers(VaultId(bytes(16)))
ONE, TWO = Coding(2, 4), Coding(4, 7)


def name(letter: str) -> SegmentName:
    return SegmentName(letter * 64)


def holding(whole: str = "", **shares: Coding) -> tuple[Held, Shares]:
    """A peer that has some segments as a whole, and a share of others."""
    keys = {
        name(letter): [ShareKey(CodedSegment(name(letter), 10, coding), 0, "e" * 64)]
        for letter, coding in shares.items()
    }
    return {name(letter): 10 for letter in whole}, keys


CASES: list[tuple[list[tuple[Held, Shares]], Way, dict[Way, int]]] = [
    ([], None, {}),
    ([holding("ab")], None, {}),
    ([holding(a=ONE)], ONE, {}),
    ([holding("a"), holding(b=ONE), holding(c=ONE)], ONE, {None: 1}),
    ([holding("abc"), holding(d=ONE)], None, {ONE: 1}),
    ([holding("a"), holding(b=ONE)], ONE, {None: 1}),
    ([holding("ab", a=ONE, b=ONE)], ONE, {}),
    ([holding("ab", a=ONE, b=ONE), holding("c")], None, {}),
    ([holding(a=ONE, b=TWO), holding(c=TWO)], TWO, {ONE: 1}),
    ([holding(a=ONE, b=ONE), holding(a=TWO)], ONE, {}),
    ([holding(a=ONE), holding(a=TWO)], TWO, {}),
    ([holding("b", a=ONE, b=ONE), holding(a=TWO)], ONE, {}),
]


@pytest.mark.parametrize(("holdings", "way", "otherwise"), CASES)
def test_where_nobody_said_anything(holdings: list[tuple[Held, Shares]], way: Way, otherwise: dict[Way, int]) -> None:
    for order in (holdings, holdings[::-1]):
        found = kept_as(PAGE, order)
        assert (found.coding, found.is_told, found.otherwise) == (way, False, otherwise)


def test_what_was_said_counts() -> None:
    holdings = [holding("abc"), holding(d=ONE)]
    assert kept_as(replace(PAGE, coding=TWO), holdings) == KeptAs(TWO, True, {None: 3, ONE: 1})
    assert kept_as(replace(PAGE, is_told=True), [holding(d=ONE)]) == KeptAs(None, True, {ONE: 1})


# --- a machine to which a vault was cloned


class UntoldScene(CodedScene):
    """The same, where nobody has said that there are shares."""

    @property
    def page(self) -> VaultPeers:
        return Scene.page.fget(self)  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
async def untold(scene: Scene) -> UntoldScene:
    told = CodedScene(scene.vault, FakeMesh(5, scene.vault.vault_id), scene.where / "told")
    told.give_small(0, 1, 2, 3, 4)
    await told.mend()
    return UntoldScene(scene.vault, told.mesh, scene.where / "untold")


def forget_all_but_the_last(untold: UntoldScene) -> None:
    """One peer answers, and has no shares."""
    for number in range(4):
        untold.mesh.at(number).is_away = True
    for key in untold.shares(4):
        del untold.mesh.at(4).objects[key]


async def test_a_look_finds_out(untold: UntoldScene) -> None:
    assert untold.page.coding is None
    look = await untold.look()
    assert look.kept == KeptAs(CODING, False, {CODING: 5})
    assert look.health.coding == CODING
    assert look.health.is_safe
    assert look.health.copies == {0: 0, 1: 0, 2: 0, 3: 0, 4: 5}


async def test_who_is_away_has_told_before(untold: UntoldScene) -> None:
    await untold.look()
    forget_all_but_the_last(untold)
    assert (await untold.look()).kept.coding == CODING
    for path in (untold.where / "state").glob("*.shares"):
        path.unlink()
    assert (await untold.look()).kept.coding is None


async def test_what_is_stored_is_stored_as_the_rest(untold: UntoldScene) -> None:
    writer = Writer(untold.page, Standing(), CodedSegments(untold.vault.vault_id, list(untold.mesh.peers)))
    made = untold.vault.segment()
    assert await writer.segment(untold.mesh, made, BytesSource(untold.vault.segments[made])) == 4
    assert writer.coding == CODING
    assert sum(made in key for number in range(5) for key in untold.shares(number)) == 4
    assert not any(key.endswith(made) for number in range(5) for key in untold.mesh.at(number).objects)


async def test_what_is_remembered_counts_for_who_stores(untold: UntoldScene) -> None:
    look = await untold.look()
    shares = {peer: view.shares for peer, view in look.survey.views.items()}
    forget_all_but_the_last(untold)
    made = untold.vault.segment()
    source = BytesSource(untold.vault.segments[made])
    coded = CodedSegments(untold.vault.vault_id, list(untold.mesh.peers))
    writer = Writer(untold.page, Standing(), coded, lambda peer: ({}, shares[peer]))
    with pytest.raises(VaultError, match="2 peers with room"):  # one share would be worth nothing
        await writer.segment(untold.mesh, made, source)
    forget_all_but_the_last(untold)
    assert await Writer(untold.page, Standing(), coded).segment(untold.mesh, made, source) == 1, "nobody knows better"
