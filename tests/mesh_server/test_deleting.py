"""Orders to delete: signed by a device, for this peer, this vault, these keys, once."""

from __future__ import annotations

import pytest
from mesh_replicas.peer_objects import DEVICE, OTHER_VAULT, STRANGER, VAULT, data_of, put_head, put_segment

from vaultfs.ids import VaultId
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.message_codec import delete_order
from vaultfs.mesh.messages import Challenge, Delete, Deleted, Fail, Nonce, Ping, Pong

from .running import BOB, PEER, Caller, Peer

DATA = data_of(1, 1000)


@pytest.fixture
def key(peer: Peer) -> str:
    put_head(peer.store)
    return put_segment(peer.store, DATA)


async def challenge(caller: Caller) -> bytes:
    return (await caller.ask(Challenge(caller.next()), Nonce)).nonce


def order(
    caller: Caller,
    nonce: bytes,
    key: str,
    *,
    signer: Identity = DEVICE,
    signed_peer: bytes = PEER.peer_id,
    signed_vault: VaultId = VAULT,
    signed_keys: tuple[str, ...] | None = None,
) -> Delete:
    signature = signer.sign(delete_order(nonce, signed_peer, signed_vault, signed_keys or (key,)))
    return Delete(caller.next(), VAULT, (key,), DEVICE.public_key, signature)


async def test_a_signed_order_deletes(peer: Peer, key: str) -> None:
    async with peer.call() as caller:
        message = order(caller, await challenge(caller), key)
        assert (await caller.ask(message, Deleted)).count == 1
    assert peer.store.stat(VAULT, key)[0] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"signer": STRANGER},
        {"signed_peer": BOB.peer_id},
        {"signed_vault": OTHER_VAULT},
        {"signed_keys": ("heads/swept/" + "5" * 64,)},
    ],
    ids=["another device", "another peer", "another vault", "other keys"],
)
async def test_an_order_signed_for_something_else_deletes_nothing(
    peer: Peer, key: str, changes: dict[str, object]
) -> None:
    async with peer.call() as caller:
        message = order(caller, await challenge(caller), key, **changes)  # type: ignore[arg-type]
        assert (await caller.ask(message, Fail)).code is Code.REFUSED
    assert peer.store.stat(VAULT, key)[0] == len(DATA)


async def test_an_unsigned_order_deletes_nothing(peer: Peer, key: str) -> None:
    async with peer.call() as caller:
        await challenge(caller)
        message = Delete(caller.next(), VAULT, (key,), DEVICE.public_key, bytes(64))
        assert (await caller.ask(message, Fail)).code is Code.REFUSED
    assert peer.store.stat(VAULT, key)[0] == len(DATA)


async def test_an_order_without_a_challenge_deletes_nothing(peer: Peer, key: str) -> None:
    async with peer.call() as caller:
        assert (await caller.ask(order(caller, bytes(32), key), Fail)).code is Code.REFUSED
    assert peer.store.stat(VAULT, key)[0] == len(DATA)


async def test_an_order_is_not_replayed(peer: Peer, key: str) -> None:
    async with peer.call() as caller:
        nonce = await challenge(caller)
        await caller.ask(order(caller, nonce, key), Deleted)
        put_segment(peer.store, DATA)
        assert (await caller.ask(order(caller, nonce, key), Fail)).code is Code.REFUSED
        await challenge(caller)
        assert (await caller.ask(order(caller, nonce, key), Fail)).code is Code.REFUSED
    async with peer.call() as caller:
        assert (await caller.ask(order(caller, nonce, key), Fail)).code is Code.REFUSED
    assert peer.store.stat(VAULT, key)[0] == len(DATA)


async def test_a_nonce_counts_for_the_next_request_only(peer: Peer, key: str) -> None:
    async with peer.call() as caller:
        nonce = await challenge(caller)
        await caller.ask(Ping(caller.next()), Pong)
        assert (await caller.ask(order(caller, nonce, key), Fail)).code is Code.REFUSED
        nonce = await challenge(caller)
        assert await challenge(caller) != nonce
        assert (await caller.ask(order(caller, nonce, key), Fail)).code is Code.REFUSED


async def test_a_nonce_counts_on_its_connection_only(peer: Peer, key: str) -> None:
    async with peer.call() as one, peer.call() as other:
        nonce = await challenge(one)
        await challenge(other)
        assert (await other.ask(order(other, nonce, key), Fail)).code is Code.REFUSED
        await one.ask(order(one, nonce, key), Deleted)


async def test_a_device_that_the_peer_does_not_know_may_not_delete(peer: Peer, key: str) -> None:
    async with peer.call() as caller:
        nonce = await challenge(caller)
        signature = STRANGER.sign(delete_order(nonce, PEER.peer_id, VAULT, (key,)))
        message = Delete(caller.next(), VAULT, (key,), STRANGER.public_key, signature)
        assert (await caller.ask(message, Fail)).code is Code.REFUSED
    assert peer.store.stat(VAULT, key)[0] == len(DATA)
