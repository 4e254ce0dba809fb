"""What peers do as a remote beyond the contract: copies, absence, lies, orders to delete."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mesh_repair.signed_vault import SignedVault

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteRefusedError,
    RemoteUnreachableError,
)
from vaultfs.ids import VaultId
from vaultfs.mesh.client import Signed, _Opening
from vaultfs.mesh.grants import Grant
from vaultfs.mesh.reading import HashingFile
from vaultfs.mesh.standing import StandingFile
from vaultfs.mesh.store import MeshStore
from vaultfs.remotes.bodies import MeteredSource
from vaultfs.remotes.store import BytesSource
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.remote_layout import head_key, segment_key
from vaultfs.sync.sealed_source import open_source
from vaultfs.sync.upload import Target, sync
from vaultfs.sync.verify import verify

from .conftest import CALLER
from .peers import RunningPeer

Make = Callable[..., MeshStore]


def holders(peers: list[RunningPeer], key: str) -> list[RunningPeer]:
    return [peer for peer in peers if peer.has(key)]


def read(store: MeshStore, key: str) -> bytes:
    return b"".join(store.get(key))


def spoil(peer: RunningPeer, vault: SignedVault, key: str) -> None:
    path = peer.path(vault.vault_id, key)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_vault_goes_there_and_comes_back(store: MeshStore, vault: SignedVault, scratch: Path) -> None:
    target = Target("mesh", store, Ledger(scratch / "ledger", vault.vault_id))
    (outcome,) = sync(vault.layout, [target])
    assert outcome.error is None
    assert outcome.is_up_to_date
    assert verify(store, read_share=1.0).problems == []
    for head in heads(store):
        layout = VaultLayout(scratch / f"back-{head.seq}")
        for name, size in fetch(store, layout, head).segments:
            assert layout.sealed_path(name).read_bytes() == vault.segments[name]
            assert size == len(vault.segments[name])
    (outcome,) = sync(vault.layout, [target])
    assert (outcome.segments, outcome.manifests) == (0, 0)


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_so_many_copies(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault, scratch: Path, replicas: int
) -> None:
    store = make_store(replicas)
    for key, data in vault.objects().items():
        store.put(key, BytesSource(data))
    for key in vault.objects():
        expected = replicas if key.startswith("segments/") else 3
        assert len(holders(peers, key)) == min(expected, 3)
    store.close()
    short = StandingFile(scratch / "state" / "mesh.json").load().short
    assert short == (set(vault.segments) if replicas == 5 else set())


def test_a_peer_that_sleeps_keeps_nothing_from_being_saved(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault, scratch: Path
) -> None:
    """Also at the very first time, when nobody can say that it has no header."""
    peers[0].stop()
    peers[1].stop()
    store = make_store()
    target = Target("mesh", store, Ledger(scratch / "ledger", vault.vault_id))
    (outcome,) = sync(vault.layout, [target])
    assert outcome.error is None
    assert outcome.is_up_to_date
    store.close()
    assert StandingFile(scratch / "state" / "mesh.json").load().short == set(vault.segments)


def test_a_peer_that_refuses_keeps_nothing_from_being_saved(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was accepted by mistake for another vault, or not yet: nothing of this machine can be there."""
    peers[0].grants.remove(CALLER.peer_id, every=True)
    peers[1].grants.remove(CALLER.peer_id, every=True)
    peers[1].grants.add(Grant(CALLER.peer_id, VaultId(bytes(16)), "write", None, "", 1))
    (outcome,) = sync(vault.layout, [Target("mesh", make_store(), Ledger(scratch / "ledger", vault.vault_id))])
    assert (outcome.error, outcome.is_up_to_date) == (None, True)
    assert "does not know this machine" in caplog.text, "who wants to restore would not know why nothing is there"
    assert "has not accepted this machine for this vault" in caplog.text
    for peer in peers:
        peer.grants.remove(CALLER.peer_id, every=True)
    with pytest.raises(RemoteRefusedError):
        read(make_store(), "vault.json")


def test_where_this_machine_may_only_read_it_is_not_a_matter_of_room(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault
) -> None:
    for peer in peers:
        peer.grants.remove(CALLER.peer_id, every=True)
        peer.accept(CALLER.peer_id, "read")
    key = segment_key(next(iter(vault.segments)))
    with pytest.raises(RemoteRefusedError, match="lets this machine store"):
        make_store().put(key, BytesSource(vault.objects()[key]))


def test_a_peer_that_was_there_may_have_the_header(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault
) -> None:
    make_store().put("vault.json", BytesSource(vault.layout.header.read_bytes()))
    first = make_store()
    first.put(segment_key(next(iter(vault.segments))), BytesSource(next(iter(vault.segments.values()))))
    first.close()
    for peer in peers[:2]:
        peer.stop()
    peers[2].path(vault.vault_id, "vault.json").unlink()
    with pytest.raises(RemoteUnreachableError):
        read(make_store(), "vault.json")


def test_what_was_just_stored_on_a_peer_that_is_away_is_not_missing(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault
) -> None:
    """Else a sync would say that its peers have lied, when one has gone to sleep."""
    store = make_store(1)
    key, data = next((key, data) for key, data in vault.objects().items() if key.startswith("segments/"))
    store.put(key, BytesSource(data))
    (holder,) = holders(peers, key)
    holder.stop()
    with pytest.raises(RemoteUnreachableError):
        store.size_bytes(key)
    assert make_store(1).size_bytes(key) is None, "who never asked it knows nothing of that"


def test_nobody_answers(store: MeshStore, peers: list[RunningPeer], vault: SignedVault) -> None:
    for peer in peers:
        peer.stop()
    key = next(iter(vault.objects()))
    with pytest.raises(RemoteUnreachableError):
        store.put(key, BytesSource(vault.objects()[key]))
    with pytest.raises(RemoteUnreachableError):
        read(store, key)
    with pytest.raises(RemoteUnreachableError):
        list(store.list(""))


def test_what_a_peer_has_damaged_comes_from_another(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault
) -> None:
    store = make_store(replicas=2)
    for key, data in vault.objects().items():
        store.put(key, BytesSource(data))
    for name, data in vault.segments.items():
        key = segment_key(name)
        spoil(holders(peers, key)[0], vault, key)
        assert read(store, key) == data
        for peer in holders(peers, key):
            peer.path(vault.vault_id, key).unlink()
        with pytest.raises(ObjectMissingError):
            read(store, key)


def test_nothing_wrong_is_given_out(make_store: Make, peers: list[RunningPeer], vault: SignedVault) -> None:
    store = make_store(replicas=1)
    name, data = next(iter(vault.segments.items()))
    key = segment_key(name)
    store.put(key, BytesSource(data))
    spoil(holders(peers, key)[0], vault, key)
    with pytest.raises(IntegrityError):
        read(store, key)


def test_a_part_that_was_wrong_comes_from_another_the_next_time(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault
) -> None:
    store = make_store(replicas=2)
    name, data = next(iter(vault.segments.items()))
    key = segment_key(name)
    store.put(key, BytesSource(data))
    spoil(holders(peers, key)[0], vault, key)
    parts = {b"".join(store.get(key, offset=5, length=5)) for _ in range(2)}
    assert parts == {data[5:10], data[5:9] + bytes([data[9] ^ 1])}


def test_a_full_peer_is_replaced_by_another(make_store: Make, peers: list[RunningPeer], vault: SignedVault) -> None:
    for peer in peers[:2]:
        peer.stop()
        peer.quota_bytes = 50_000
        peer.start()
    store = make_store(replicas=2)
    large, data = max(vault.segments.items(), key=lambda each: len(each[1]))
    store.put(segment_key(large), BytesSource(data))
    assert holders(peers, segment_key(large)) == [peers[2]]
    peers[2].stop()
    with pytest.raises((NoSpaceError, RemoteUnreachableError)):
        make_store(replicas=2).put(segment_key(large), BytesSource(data))


def test_a_damaged_segment_here_is_sent_to_nobody_and_read_but_twice(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault
) -> None:
    """Once for each of the two copies: what is wrong here is not tried with one peer after the other."""
    store = make_store(replicas=1)
    large, data = max(vault.segments.items(), key=lambda each: len(each[1]))
    vault.spoil(large, data[:-1] + bytes([data[-1] ^ 1]))
    passes: list[int] = []
    with open_source(vault.layout, large, len(data)) as source:
        real = source.open

        def counted() -> Any:
            passes.append(1)
            return real()

        source.open = counted  # type: ignore[method-assign]
        with pytest.raises(IntegrityError, match="is damaged"):
            store.put(segment_key(large), MeteredSource(source, lambda _count: None))
    assert len(passes) == 1
    assert holders(peers, segment_key(large)) == []


def test_segments_are_deleted_by_a_signed_order(make_store: Make, peers: list[RunningPeer], vault: SignedVault) -> None:
    def sign(order: bytes) -> list[Signed]:
        return [Signed(vault.device, vault.key.sign(order))]

    store = make_store(sign=sign)
    for key, data in vault.objects().items():
        store.put(key, BytesSource(data))
    name = next(iter(vault.segments))
    store.delete(segment_key(name))
    assert store.size_bytes(segment_key(name)) is None
    assert holders(peers, segment_key(name)) == []
    store.put(segment_key(name), BytesSource(vault.segments[name]))
    assert len(holders(peers, segment_key(name))) == 2
    head = next(iter(vault.manifests))
    store.delete(head_key(head))
    assert head_key(head) not in {info.key for info in store.list("heads/")}


@pytest.mark.parametrize("known", [0, 1, 2])
def test_an_order_is_obeyed_if_any_of_the_devices_may_delete(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault, known: int
) -> None:
    """After the vault's key was rotated, peers know the older device only; its key is there until all is rewritten."""
    strangers = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)]
    keys = [*strangers[:known], vault.key, *strangers[known:]]

    def sign(order: bytes) -> list[Signed]:
        return [Signed(key.public_key().public_bytes_raw(), key.sign(order)) for key in keys]

    store = make_store(sign=sign)
    for key, data in vault.objects().items():
        store.put(key, BytesSource(data))
    name = next(iter(vault.segments))
    store.delete(segment_key(name))
    assert holders(peers, segment_key(name)) == []


def test_orders_of_strangers_are_obeyed_by_nobody(
    make_store: Make, peers: list[RunningPeer], vault: SignedVault
) -> None:
    strangers = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)]

    def sign(order: bytes) -> list[Signed]:
        return [Signed(key.public_key().public_bytes_raw(), key.sign(order)) for key in strangers]

    store = make_store(sign=sign)
    for key, data in vault.objects().items():
        store.put(key, BytesSource(data))
    name = next(iter(vault.segments))
    with pytest.raises(RemoteRefusedError, match=strangers[0].public_key().public_bytes_raw().hex()):
        store.delete(segment_key(name))
    assert len(holders(peers, segment_key(name))) == 2


def test_what_any_peer_has_is_not_created(store: MeshStore, peers: list[RunningPeer], vault: SignedVault) -> None:
    note = "heads/swept/" + "5" * 64
    store.put(note, BytesSource(b"first"))
    for keeper in peers:
        for peer in peers:
            if peer is not keeper and peer.has(note):
                peer.path(vault.vault_id, note).unlink()
        with pytest.raises(ObjectExistsError):
            store.put(note, BytesSource(b"second"), if_absent=True)
        assert holders(peers, note) == [keeper]
        store.put(note, BytesSource(b"first"))


def test_a_peer_that_knows_nobody(make_store: Make, peers: list[RunningPeer], vault: SignedVault) -> None:
    for peer in peers:
        for grant in peer.grants.all():
            peer.grants.remove(grant.peer, grant.vault, every=True)
    with pytest.raises(RemoteRefusedError, match="vaultfs peer accept"):
        make_store().put("vault.json", BytesSource(vault.layout.header.read_bytes()))


class NearlyFull(io.RawIOBase):
    """Takes at most some bytes at once, as a file does when the disk is nearly full; then nothing any more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.data = b""
        self.room = room

    def write(self, data: Any, /) -> int:
        part = bytes(data)[: min(3, self.room - len(self.data))]
        if not part:
            raise OSError(28, "No space left on device")
        self.data += part
        return len(part)


def test_what_comes_is_kept_whole_or_refused() -> None:
    file = NearlyFull(10)
    sink = HashingFile(file, 100)  # type: ignore[arg-type]
    sink.writelines([b"0123", b"45678", b"9"])
    assert (file.data, sink.count, sink.failure) == (b"0123456789", 10, None)
    with pytest.raises(NoSpaceError):
        sink.writelines([b"x"])
    assert isinstance(sink.failure, NoSpaceError)


def test_no_more_comes_than_there_may_be() -> None:
    sink = HashingFile(io.BytesIO(), 4)
    sink.writelines([b"0123"])
    with pytest.raises(IntegrityError):
        sink.writelines([b"4"])
    assert sink.failure is None


def test_who_limits_what_comes_is_told_before_it_is_kept() -> None:
    taken: list[int] = []
    file = io.BytesIO()
    sink = HashingFile(file, 100, taken.append)
    sink.writelines([b"0123", b"45"])
    assert taken == [4, 2]
    with pytest.raises(IntegrityError):
        sink.writelines([bytes(1000)])
    assert file.getvalue() == b"012345"


async def test_what_a_peer_has_already_is_read_but_not_counted_as_sent() -> None:
    sent: list[int] = []
    source = MeteredSource(BytesSource(bytes(range(100))), sent.append)
    async with _Opening("key", source) as opening:
        read_on = await opening.open_at(60)
        assert sent == []
        assert read_on() == bytes(range(60, 100))
    assert sum(sent) == 40
