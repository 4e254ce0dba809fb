"""A peer that runs in the test's own loop, and callers that say whatever a test wants."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio
import trio.testing
from mesh_replicas.peer_objects import VAULT, digest_of

from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.grants import Access, Grant, Grants
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.message_codec import decode_from_peer
from vaultfs.mesh.message_stream import MessageStream
from vaultfs.mesh.messages import MAGIC, Fail, FromPeer, Goodbye, Hello, Message, Put, Welcome
from vaultfs.mesh.pairing import Pairings
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import Event, EventKind, Limits, PeerServer, open_listeners, serve
from vaultfs.mesh.tls import client_context, handshake
from vaultfs.mesh.tls_stream import TlsStream

PEER: Final = Identity.of_seed(b"p" * 32)
ALICE: Final = Identity.of_seed(b"A" * 32)
BOB: Final = Identity.of_seed(b"B" * 32)
STRANGER: Final = Identity.of_seed(b"S" * 32)
HELLO: Final = Hello(MAGIC, (1,), ("shares", "witness", "dreams"), "test")
NO_SCRUB_S: Final = 1e9
LOCAL: Final = "127.0.0.1"

_M = TypeVar("_M", bound=FromPeer)


def sockets() -> int:
    """How many this process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
        except FileNotFoundError:  # the listing's own
            continue
    return count


class Caller:
    """One connection to a peer, after the handshake."""

    def __init__(self, tls: TlsStream, socket: trio.SocketStream) -> None:
        self.tls = tls
        self.stream = MessageStream(tls)
        self.socket = socket
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    async def say(self, message: Message | bytes) -> None:
        await self.stream.send(message)

    async def hear(self, kind: type[_M]) -> _M:
        payload = await self.stream.receive_payload()
        assert payload is not None, f"the connection ended where {kind.__name__} was due"
        message = decode_from_peer(payload)
        assert isinstance(message, kind), message
        return message

    async def ask(self, message: Message, kind: type[_M]) -> _M:
        await self.say(message)
        return await self.hear(kind)

    async def hears_end(self) -> None:
        assert await self.stream.receive_payload() is None

    async def hears_failure_and_end(self) -> Fail:
        failure = await self.hear(Fail)
        assert failure.request == 0
        await self.hears_end()
        return failure

    def put(self, key: str, data: bytes, *, vault: VaultId = VAULT, if_absent: bool = False) -> Put:
        return Put(self.next(), vault, key, len(data), digest_of(data), if_absent, 0)


class Peer:
    """One that runs."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.grants = Grants(root / "grants.json")
        self.pairings = Pairings(root / "pairing.json")
        self.store = ReplicaStore.open(root / "replicas", None, reserve_bytes=0)
        self.stop = trio.Event()
        self.events: list[Event] = []
        self.server: PeerServer
        self.port = 0

    def grant(self, who: Identity, access: Access = "write", vault: VaultId | None = VAULT) -> None:
        self.grants.add(Grant(who.peer_id, vault, access, None, "", 0))

    def revoke(self, who: Identity) -> None:
        self.grants.remove(who.peer_id, every=True)

    def count(self, kind: EventKind, who: PeerId | None = None) -> int:
        return sum(event.kind is kind and (who is None or event.peer == who) for event in self.events)

    async def open_socket(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(LOCAL, self.port)

    @asynccontextmanager
    async def connected(self, who: Identity, context: ssl.SSLContext | None = None) -> AsyncIterator[Caller]:
        """A connection without hello."""
        socket = await self.open_socket()
        try:
            tls, found = await handshake(socket, context or client_context(who), server_side=False)
            assert found == PEER.peer_id
            yield Caller(tls, socket)
        finally:
            socket.socket.close()

    @asynccontextmanager
    async def call(self, who: Identity = ALICE) -> AsyncIterator[Caller]:
        """A connection on which the peer has said welcome."""
        async with self.connected(who) as caller:
            await caller.ask(HELLO, Welcome)
            yield caller

    async def until_connections(self, count: int) -> None:
        while self.server.connections != count:
            await trio.testing.wait_all_tasks_blocked(0.001)


@asynccontextmanager
async def running(root: Path, limits: Limits | None = None) -> AsyncIterator[Peer]:
    """A peer that knows Alice; at the end it goes down, and leaves nothing."""
    sockets_before = sockets()
    peer = Peer(root)
    peer.grant(ALICE)
    limits = limits or Limits(scrub_pause_s=NO_SCRUB_S)
    try:
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[PeerServer]) -> None:
                await serve(
                    PEER,
                    peer.store,
                    peer.grants,
                    peer.pairings,
                    listeners,
                    limits,
                    stop=peer.stop,
                    label="nas",
                    on_event=peer.events.append,
                    task_status=task_status,
                )

            listeners = await open_listeners([Address(LOCAL, 0)])
            peer.port = listeners[0].socket.getsockname()[1]
            peer.server = await nursery.start(run)
            yield peer
            peer.stop.set()
        assert peer.server.connections == 0
        assert sockets() == sockets_before
    finally:
        peer.store.close()


async def farewell(caller: Caller) -> None:
    """What a peer that goes down says."""
    await caller.hear(Goodbye)
    await caller.hears_end()
