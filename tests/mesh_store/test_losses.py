"""What peers have lost: found by comparing what they say with what they said before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mesh_repair.signed_vault import SignedVault

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import KnownPeer
from vaultfs.mesh.losses import find_losses
from vaultfs.mesh.messages import State
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.standing import StandingFile
from vaultfs.mesh.store import MeshStore
from vaultfs.mesh.survey import PeerView, Survey
from vaultfs.remotes.store import BytesSource
from vaultfs.sync.remote_layout import segment_key

from .conftest import CALLER
from .peers import RunningPeer

Make = Callable[..., MeshStore]
A, B, C = (PeerId(bytes([number]) * 32) for number in range(3))
X, Y, Z = (SegmentName(letter * 64) for letter in "abc")
KNOWN = {X: 10, Y: 20}
STATE = State(1, 1000, 0, 1000, 0, 0, True)


def view(peer: PeerId, **held: int) -> PeerView:
    known = KnownPeer(peer, Address("127.0.0.1", 1))
    return PeerView(known, STATE, segments={SegmentName(name * 64): size for name, size in held.items()})


def away(peer: PeerId) -> PeerView:
    return PeerView(KnownPeer(peer, Address("127.0.0.1", 1)))


def looked(*views: PeerView) -> Survey:
    return Survey({each.known.id: each for each in views})


def test_nothing_is_lost() -> None:
    losses = find_losses(looked(view(A, a=10), view(B, b=20)), {A: {X: 10}, B: {Y: 20}}, KNOWN, 1)
    assert (losses.gone, losses.short) == (set(), set())


def test_what_nobody_has() -> None:
    losses = find_losses(looked(view(A, a=10), view(B)), {}, KNOWN, 1)
    assert (losses.gone, losses.short) == ({Y}, set())


def test_another_size_is_another_thing() -> None:
    assert find_losses(looked(view(A, a=10, b=21)), {}, KNOWN, 1).gone == {Y}


def test_what_is_away_is_not_lost() -> None:
    before = {A: {X: 10}, B: {Y: 20}}
    assert find_losses(looked(view(A, a=10), away(B)), before, KNOWN, 1).gone == set()
    assert find_losses(looked(view(A, a=10), away(B)), before, KNOWN, 2).short == set()
    assert find_losses(looked(view(A, a=10), away(B)), {A: {X: 10}, B: {}}, KNOWN, 1).gone == {Y}


def test_of_a_peer_that_is_away_and_never_told_anything_nobody_knows() -> None:
    found = looked(view(A, a=10), away(B))
    assert find_losses(found, {A: {X: 10}}, KNOWN, 1).gone == set()
    assert find_losses(found, {A: {X: 10}}, KNOWN, 1, never_seen={B}).gone == {Y}


def test_shares_count_and_nobody_remembers_those_of_who_is_away() -> None:
    coded = CodedSegment(Y, 20, Coding(2, 3))
    some = view(A, a=10)
    some.shares = {Y: [ShareKey(coded, 0, "d" * 64)]}
    other = view(B)
    other.shares = {Y: [ShareKey(coded, 1, "e" * 64)]}
    assert find_losses(looked(some, other), {}, KNOWN, 1).gone == set()
    assert find_losses(looked(some, view(B)), {}, KNOWN, 1).gone == {Y}
    assert find_losses(looked(some, other), {}, {Y: 21}, 1).gone == {Y}
    assert find_losses(looked(some, away(B)), {B: {}}, KNOWN, 1).gone == set()
    assert find_losses(looked(some, away(B)), {B: {}}, KNOWN, 1, shares_before={B: {}}).gone == {Y}
    assert find_losses(looked(some, away(B)), {B: {}}, KNOWN, 1, shares_before={B: other.shares}).gone == set()


def test_a_share_less() -> None:
    coded = CodedSegment(Y, 20, Coding(2, 3))
    keys = [ShareKey(coded, index, "d" * 64) for index in range(3)]
    before = {peer: {Y: [key]} for peer, key in zip((A, B, C), keys, strict=True)}
    some, other, third = view(A), view(B), view(C)
    some.shares, other.shares = before[A], before[B]

    def short(*views: PeerView, coding: Coding | None = coded.coding) -> set[SegmentName]:
        found = find_losses(looked(*views), {}, {Y: 20}, 1, coding=coding, shares_before=before)
        return found.short

    assert short(some, other, third) == {Y}
    assert short(some, other, third, coding=None) == set()
    assert short(some, other) == {Y}, "one is no peer any more"
    assert short(some, other, away(C)) == set(), "it has not told otherwise"
    assert short(view(A), view(B), third) == set(), "they are gone"
    third.shares = {Y: [ShareKey(coded, 2, "e" * 64)]}
    assert short(some, other, third) == set(), "it has another one for it"
    del before[C]
    assert short(some, away(B), view(C)) == set(), "there never were more, and who is away has lost nothing"


def test_a_copy_less() -> None:
    before = {A: {X: 10, Y: 20}, B: {X: 10, Y: 20}}
    assert find_losses(looked(view(A, a=10, b=20), view(B, b=20)), before, KNOWN, 2).short == {X}
    assert find_losses(looked(view(A, a=10, b=20), view(B, b=20)), before, KNOWN, 1).short == set()
    assert find_losses(looked(view(A, a=10, b=20)), before, KNOWN, 2).short == {X, Y}, "one is no peer any more"
    assert find_losses(looked(view(A), view(B)), before, KNOWN, 2).short == set(), "they are gone"


def test_what_was_not_there_before_or_is_not_known_is_no_loss() -> None:
    assert find_losses(looked(view(A, a=10), view(B, b=20)), {}, KNOWN, 2).short == set()
    assert find_losses(looked(view(A, c=5), view(B)), {B: {Z: 5}}, {}, 2).short == set()


# --- with real peers


def fill(store: MeshStore, vault: SignedVault) -> dict[SegmentName, int]:
    for name, data in vault.segments.items():
        store.put(segment_key(name), BytesSource(data))
    return {name: len(data) for name, data in vault.segments.items()}


def test_what_was_stored_is_remembered_without_a_look_at_everything(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault, scratch: Path
) -> None:
    store = make_store(3)
    known = fill(store, vault)
    assert store.lost(known) == set()
    store.close()
    gone = next(iter(vault.segments))
    peers[0].path(vault.vault_id, segment_key(gone)).unlink()
    store = make_store(3)
    assert store.lost(known) == set()
    store.close()
    file = StandingFile(scratch / "state" / "mesh.json")
    assert file.load().short == {gone}
    for peer in peers[1:]:
        peer.path(vault.vault_id, segment_key(gone)).unlink()
    assert make_store(3).lost(known) == {gone}


def test_a_peer_that_was_removed_is_remembered_until_its_losses_are(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault, scratch: Path
) -> None:
    store = make_store(3)
    known = fill(store, vault)
    store.close()
    file = StandingFile(scratch / "state" / "mesh.json")
    assert set(file.holders()) == {peer.id for peer in peers}
    page = store.page
    smaller = MeshStore(replace(page, peers=page.peers[1:]), lambda: CALLER, file, scratch=scratch)
    assert smaller.lost(known) == set()
    smaller.close()
    assert file.load().short == vault.segments.keys()
    assert set(file.holders()) == {peer.id for peer in peers[1:]}


def test_removing_a_peer_tells_what_has_too_few_copies_then(scratch: Path) -> None:
    file = StandingFile(scratch / "state" / "mesh.json")
    file.save_held(A, {X: 10, Y: 20})
    file.save_held(B, {X: 10})
    file.save_held(C, {X: 11, Y: 21})
    assert file.removed(A, [B, C], 1) == 1  # of the other there is one copy left, as there is to be
    assert file.load().short == {Y}
    assert set(file.holders()) == {B, C}
    assert file.removed(B, [C], 1) == 1
    assert file.load().short == {X, Y}
    (scratch / "state" / "mesh.nonsense.held").write_bytes(b"")
    assert set(file.holders()) == {C}
