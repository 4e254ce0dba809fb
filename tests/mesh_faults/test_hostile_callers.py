"""Callers that do not keep to the protocol, or have no right to what they ask, at a peer that others use meanwhile.

What each of them gets is in tests/mesh_server; here it is that they hinder nobody, and that nothing of them is left.
"""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from vaultfs.crypto.device import DeviceKey
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, RemoteRefusedError
from vaultfs.mesh.connection import PeerConnection
from vaultfs.mesh.dialing import dial
from vaultfs.mesh.frames import MAX_PAYLOAD_BYTES
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.message_codec import delete_order, encode
from vaultfs.mesh.messages import MAGIC, Challenge, Data, Delete, Deleted, Get, Hello, Nonce, Put
from vaultfs.mesh.tls import client_context, handshake
from vaultfs.mesh.tls_stream import TlsStream
from vaultfs.sync.remote_layout import segment_key

from .conftest import MakeHousehold
from .household import Household
from .machines import DEADLINE_S, PASSWORD, PeerMachine
from .test_power import begun, largest_partial_bytes

HELLO = encode(Hello(MAGIC, (1,), (), "hostile"))
PAUSE_S = 0.2
EACH = 3


@pytest.fixture
def home(make_household: MakeHousehold) -> Household:
    """One peer, and a vault with some small segments."""
    made = make_household(1)
    made.set_replicas(1)
    return made


class Mob:
    """Many who call a peer at once.

    Args:
        home: whose peer is called.
        known: identities that the peer knows; with one alone only 16 could come.
    """

    def __init__(self, home: Household, known: list[Identity]) -> None:
        self.peer = home.peers[0]
        self.home = home
        self.contexts = itertools.cycle([client_context(identity) for identity in known])
        self.come = 0

    async def socket(self) -> trio.SocketStream:
        at = self.peer.listens_at
        return await trio.open_tcp_stream(at.host, at.port)

    async def tls(self, socket: trio.SocketStream, context: ssl.SSLContext | None = None) -> TlsStream:
        stream, _ = await handshake(socket, context or next(self.contexts), server_side=False)
        return stream

    async def say_nothing(self, socket: trio.SocketStream) -> None:
        await socket.receive_some()

    async def drip_a_handshake(self, socket: trio.SocketStream) -> None:
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100):
            await socket.send_all(bytes([byte]))
            await trio.sleep(PAUSE_S)

    async def speak_another_protocol(self, socket: trio.SocketStream) -> None:
        await socket.send_all(b"GET / HTTP/1.1\r\nHost: peer\r\n\r\n" * 100)
        await socket.receive_some()

    async def say_no_hello(self, socket: trio.SocketStream) -> None:
        await (await self.tls(socket)).receive_some()

    async def drip_a_hello(self, socket: trio.SocketStream) -> None:
        stream = await self.tls(socket)
        for byte in HELLO:
            await stream.send_all(bytes([byte]))
            await trio.sleep(PAUSE_S)

    async def be_a_stranger(self, socket: trio.SocketStream) -> None:
        stream = await self.tls(socket, client_context(Identity.new()))
        await stream.send_all(HELLO + encode(Get(1, self.home.vault_id, "vault.json", 0, None)))
        while await stream.receive_some():
            pass

    async def greeted(self, socket: trio.SocketStream) -> TlsStream:
        stream = await self.tls(socket)
        await stream.send_all(HELLO)
        await stream.receive_some()
        return stream

    async def send_half_a_frame(self, socket: trio.SocketStream) -> None:
        stream = await self.greeted(socket)
        await stream.send_all(b"\x00\x00\x10\x00half")
        while await stream.receive_some():
            pass

    async def send_too_long_a_frame(self, socket: trio.SocketStream) -> None:
        stream = await self.greeted(socket)
        await stream.send_all((MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big") + bytes(MAX_PAYLOAD_BYTES))
        while await stream.receive_some():
            pass

    async def send_garbage(self, socket: trio.SocketStream) -> None:
        stream = await self.greeted(socket)
        await stream.send_all(b"\x00\x00\x00\x04\xff\xff\xff\xff" * 1000)
        while await stream.receive_some():
            pass

    async def drip_an_object(self, socket: trio.SocketStream) -> None:
        stream = await self.greeted(socket)
        name = bytes([self.come] * 32)
        key = f"segments/{name.hex()[:2]}/{name.hex()}"
        await stream.send_all(encode(Put(1, self.home.vault_id, key, 1 << 20, name, False, 0)))
        await stream.receive_some()
        while True:
            await stream.send_all(encode(Data(b"x")))
            await trio.sleep(PAUSE_S)

    async def take_nothing(self, socket: trio.SocketStream) -> None:
        stream = await self.greeted(socket)
        large = segment_key(max(self.home.segments, key=self.home.segments.__getitem__))  # type: ignore[arg-type]
        for number in range(1, 1000):
            await stream.send_all(encode(Get(number, self.home.vault_id, large, 0, None)))

    async def call(self, behave: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
        socket = await self.socket()
        self.come += 1
        try:
            await behave(socket)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer had enough of it
        finally:
            socket.socket.close()

    @property
    def kinds(self) -> list[Callable[[trio.SocketStream], Awaitable[None]]]:
        return [
            self.say_nothing,
            self.drip_a_handshake,
            self.speak_another_protocol,
            self.say_no_hello,
            self.drip_a_hello,
            self.be_a_stranger,
            self.send_half_a_frame,
            self.send_too_long_a_frame,
            self.send_garbage,
            self.drip_an_object,
            self.take_nothing,
        ]


def test_a_mob_hinders_nobody_and_is_thrown_out(home: Household) -> None:
    """All of them at once, several of each; a sync and a repair go on as if they were alone."""
    home.sync().require(0)
    peer = home.peers[0]
    known = [Identity.new() for _ in range(4)]
    for identity in known:
        peer.accept(identity.peer_id)
    mob = Mob(home, known)

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for kind in mob.kinds:
                    for _ in range(1 if kind == mob.drip_an_object else EACH):
                        nursery.start_soon(mob.call, kind)
                while mob.come < len(mob.kinds):  # noqa: ASYNC110  # nothing tells
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(lambda: home.write("/meanwhile", b"x" * 50_000))
                (await trio.to_thread.run_sync(home.sync)).require(0)
                (await trio.to_thread.run_sync(home.audit)).require(0)

    trio.run(main)
    assert peer.is_running
    home.require_sound(1)
    assert "a fault of vaultfs" not in _log_of(peer)


def _log_of(peer: PeerMachine) -> str:
    assert peer.process is not None
    return peer.process.err + "".join(path.read_text() for path in (peer.root / "state").rglob("*.log"))


# --- rights


def test_one_that_is_revoked_in_mid_transfer_stores_nothing_more(make_household: MakeHousehold) -> None:
    home = make_household(2, is_large=True)
    peer = home.peers[1]
    running = begun(home, peer)
    peer.revoke(home.laptop.id)
    said = running.wait().require(ExitCode.PARTIAL)
    assert "too few copies" in said.err
    large = max(home.segments, key=home.segments.__getitem__)
    assert home.holders(large) == home.peers[:1]
    assert largest_partial_bytes(home, peer) < home.segments[large]
    refused = home.status().require(ExitCode.PARTIAL).json
    assert any("does not know this machine" in (each["error"] or "") for each in refused["peers"])
    peer.accept(home.laptop.id)
    home.require_sound()


@asynccontextmanager
async def talking(home: Household) -> AsyncIterator[PeerConnection]:
    peer = home.peers[0]
    connection = await dial(client_context(home.laptop.identity), peer.listens_at, peer.id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        yield connection
        await connection.aclose()


def test_orders_that_nobody_gave_delete_nothing(home: Household) -> None:
    """Unsigned, signed by somebody else, replayed on the same connection and on another; then a good one."""
    home.sync().require(0)
    peer = home.peers[0]
    header = VaultHeader.decode((home.vault / "vault.json").read_bytes())
    device = DeviceKey(header.unlock(Secret.password(PASSWORD)).current.device)
    first, second = (segment_key(name) for name in list(home.segments)[:2])  # type: ignore[arg-type]
    stranger = Identity.new()

    async def order(
        connection: PeerConnection, key: str, sign: Callable[[bytes], bytes], public: bytes = device.public
    ) -> bytes:
        nonce = (await connection.ask(Challenge, Nonce)).nonce
        signature = sign(delete_order(nonce, peer.id, home.vault_id, (key,)))
        await connection.ask(lambda number: Delete(number, home.vault_id, (key,), public, signature), Deleted)
        return signature

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with talking(home) as connection:
                for sign, public in (
                    (lambda _: bytes(64), device.public),
                    (stranger.sign, device.public),
                    (stranger.sign, stranger.public_key),
                ):
                    with pytest.raises(RemoteRefusedError):
                        await order(connection, second, sign, public)
                seen = await order(connection, first, device.sign)
                with pytest.raises(RemoteRefusedError):  # the same again, as it was
                    await connection.ask(
                        lambda number: Delete(number, home.vault_id, (first,), device.public, seen), Deleted
                    )
                for key in (first, second):
                    with pytest.raises(RemoteRefusedError):
                        await order(connection, key, lambda _: seen)
            async with talking(home) as connection:
                for key in (first, second):
                    with pytest.raises(RemoteRefusedError):
                        await order(connection, key, lambda _: seen)

    trio.run(main)
    assert not (home.stored(peer) / first).exists()
    assert (home.stored(peer) / second).exists()
    home.require_sound(1)
