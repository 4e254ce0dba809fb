"""Peers that exist only in memory, and keep count of who is connected to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from vaultfs.errors import RemoteUnreachableError, VaultError
from vaultfs.ids import PeerId


def name_of(peer: PeerId) -> str:
    return f"peer-{peer[:1].decode()}"


@dataclass
class Network:
    """All peers.

    Attributes:
        dial_s: how long a dial takes.
        refusals: peers that cannot be dialled, and why.
        connections: all that were ever open.
        closes_at_once: connections are closed when they are handed over.
        dialling: dials under way.
        most: of dials and open connections at any one time.
    """

    dial_s: float = 0.0
    refusals: dict[PeerId, BaseException] = field(default_factory=dict)
    connections: list[FakeConnection] = field(default_factory=list)
    dials: list[PeerId] = field(default_factory=list)
    closes_at_once: bool = False
    dialling: int = 0
    most: int = 0

    async def connect(self, peer: PeerId) -> FakeConnection:
        self.dials.append(peer)
        self.dialling += 1
        self.most = max(self.most, self.dialling + len(self.open()))
        try:
            await trio.sleep(self.dial_s)
            if peer in self.refusals:
                error = self.refusals[peer]
                raise type(error)(*error.args)
            await trio.lowlevel.checkpoint()
        finally:
            self.dialling -= 1
        connection = FakeConnection(self, peer)
        if self.closes_at_once:
            connection.is_leaving = True
        return connection

    def open(self) -> list[FakeConnection]:
        return [connection for connection in self.connections if not connection.is_cut]


class FakeConnection:
    """A connection.

    Attributes:
        is_cut: nothing is open any more.
        is_leaving: the peer has said goodbye.
        ping_s: how long an answer takes.
        ping_error: what a ping raises instead.
        goodbye_s: how long a polite end takes.
        goodbye_error: what a polite end raises instead.
        goodbyes: how many were said whole.
        ended: what cut it.
    """

    def __init__(self, network: Network, peer: PeerId) -> None:
        self.peer = peer
        self.is_cut = False
        self.is_leaving = False
        self.ping_s = 0.0
        self.ping_error: VaultError | None = None
        self.run_error: BaseException | None = None
        self.pings = 0
        self.goodbye_s = 0.0
        self.goodbye_error: VaultError | None = None
        self.goodbyes = 0
        self.aborts = 0
        self.is_running = False
        self.is_body_under_way = False
        self._cut = trio.Event()
        network.connections.append(self)

    @property
    def is_closed(self) -> bool:
        return self.is_cut or self.is_leaving

    async def run(self) -> None:
        self.is_running = True
        try:
            await self._cut.wait()
            if self.run_error is not None:
                raise self.run_error
        finally:
            self.is_running = False
            self.cut()

    async def ping(self) -> None:
        self.pings += 1
        await trio.sleep(self.ping_s)
        if self.is_cut:
            raise RemoteUnreachableError("it is closed")
        if self.ping_error is not None:
            raise self.ping_error

    def abort(self) -> None:
        self.aborts += 1
        self.cut()

    async def aclose(self) -> None:
        await trio.sleep(self.goodbye_s)
        if self.goodbye_error is not None:
            raise self.goodbye_error
        if not self.is_cut:
            self.goodbyes += 1
        self.cut()

    def cut(self) -> None:
        self.is_cut = True
        self._cut.set()

    async def body(self, checkpoints: int = 3) -> None:
        """A request that leaves the connection in disorder if it is cut off."""
        self.is_body_under_way = True
        try:
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            self.is_body_under_way = False
        finally:
            if self.is_body_under_way:
                self.cut()
