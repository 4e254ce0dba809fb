"""A visit tells how a peer is, ends its connection, and raises no error but those of vaultfs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from vaultfs.errors import IntegrityError, RemoteRefusedError, RemoteUnreachableError, UsageError
from vaultfs.ids import VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.first_contact import look, pair
from vaultfs.mesh.grants import Grant, Grants
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.pairing import ANY_VAULT, Meeting, Pairings, Redeemed, code_key, parse_code
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import PeerServer, open_listeners, serve
from vaultfs.mesh.tls_stream import TlsStream

SELF, PEER, STRANGER = (Identity.of_seed(bytes([number]) * 32) for number in range(3))
VAULT = VaultId(bytes(range(16)))


@dataclass
class Running:
    server: PeerServer
    address: Address
    grants: Grants
    pairings: Pairings


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[Running]:
    store = ReplicaStore.open(where / "store", 1 << 30)
    grants, pairings = Grants(where / "grants.json"), Pairings(where / "pairing.json")
    listeners = await open_listeners([Address("127.0.0.1", 0)])
    port = listeners[0].socket.getsockname()[1]
    stop = trio.Event()

    async def run(task_status: trio.TaskStatus[PeerServer]) -> None:
        await serve(PEER, store, grants, pairings, listeners, stop=stop, task_status=task_status)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(run)
        yield Running(server, Address("127.0.0.1", port), grants, pairings)
        stop.set()
    store.close()


async def until_left(peer: Running) -> None:
    while peer.server.connections:  # noqa: ASYNC110  # the server counts them, and tells nobody
        await trio.sleep(0.001)


async def test_known_or_not(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        visit = await look(SELF, peer.address, PEER.peer_id, VAULT)
        assert visit.state is None
        assert visit.round_trip_s > 0
        peer.grants.add(Grant(SELF.peer_id, VaultId(bytes([9] * 16)), "write", None, "", 0))
        assert (await look(SELF, peer.address, PEER.peer_id, VAULT)).state is None
        peer.grants.add(Grant(SELF.peer_id, VAULT, "read", 5 << 20, "", 0))
        state = (await look(SELF, peer.address, PEER.peer_id, VAULT)).state
        assert state is not None
        assert (state.may_write, state.quota_bytes) == (False, 5 << 20)
        await until_left(peer)


async def test_somebody_else(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        with pytest.raises(IntegrityError, match="another peer"):
            await look(SELF, peer.address, STRANGER.peer_id, VAULT)
        with pytest.raises(IntegrityError, match="another peer"):
            await pair(SELF, peer.address, STRANGER.peer_id, code_key("A" * 16), VAULT, "me")
        await until_left(peer)
        port = peer.address.port
    with pytest.raises(RemoteUnreachableError):
        await look(SELF, Address("127.0.0.1", port), PEER.peer_id, VAULT)


async def test_pairing(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        key = code_key(parse_code(peer.pairings.offer(quota_bytes=7)))
        with pytest.raises(RemoteRefusedError, match="no such pairing code"):
            await pair(SELF, peer.address, None, code_key("A" * 16), VAULT, "me")
        assert peer.grants.all() == []
        assert await pair(SELF, peer.address, None, key, VAULT, "me") == PEER.peer_id
        (grant,) = peer.grants.all()
        assert (grant.peer, grant.vault, grant.quota_bytes, grant.label) == (SELF.peer_id, VAULT, 7, "me")
        with pytest.raises(RemoteRefusedError, match="no such pairing code"):
            await pair(STRANGER, peer.address, None, key, ANY_VAULT, "me too")
        await until_left(peer)


async def test_with_oneself(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        key = code_key(parse_code(peer.pairings.offer()))
        with pytest.raises(UsageError, match="this machine itself"):
            await pair(PEER, peer.address, None, key, VAULT, "me")
        assert peer.grants.all() == []
        assert await pair(SELF, peer.address, None, key, VAULT, "me") == PEER.peer_id


async def test_a_peer_that_does_not_know_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only claims to have found the caller's proof right is not trusted: an echo of it is no proof."""
    real = Pairings.redeem

    def echo(self: Pairings, meeting: Meeting, proof: bytes) -> Redeemed | None:
        found = real(self, meeting, proof)
        return None if found is None else replace(found, proof=proof)

    monkeypatch.setattr(Pairings, "redeem", echo)
    async with running(tmp_path) as peer:
        key = code_key(parse_code(peer.pairings.offer()))
        with pytest.raises(IntegrityError, match="does not know the pairing code"):
            await pair(SELF, peer.address, None, key, VAULT, "me")


async def test_the_connection_is_closed_while_it_says_goodbye(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that reads closes it as soon as the peer has; the other one is in the midst of its farewell then."""
    real = TlsStream.finish_sending
    closed = []

    async def finish_sending(self: TlsStream) -> None:
        self.abort()
        closed.append(self)
        await real(self)

    async with running(tmp_path) as peer:
        monkeypatch.setattr(TlsStream, "finish_sending", finish_sending)
        assert (await look(SELF, peer.address, PEER.peer_id, VAULT)).state is None
        assert closed
        monkeypatch.undo()


async def test_cancelled_at_any_time(tmp_path: Path) -> None:
    """No connection is left behind."""
    async with running(tmp_path) as peer:
        for number in range(12):
            with trio.move_on_after(number / 1000):
                await look(SELF, peer.address, PEER.peer_id, VAULT)
        await until_left(peer)
