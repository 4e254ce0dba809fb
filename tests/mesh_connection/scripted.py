"""A peer in memory whose answers a test writes, byte by byte if it likes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

import trio
import trio.testing

from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.connection import Peer, PeerConnection, say_hello
from vaultfs.mesh.frames import FrameDecoder
from vaultfs.mesh.message_codec import decode_from_caller, encode
from vaultfs.mesh.message_stream import InThread, MessageStream, NextFrame
from vaultfs.mesh.messages import FromCaller, Hello, Message, Welcome

PEER = Peer(PeerId(bytes(32)), "peer aaaaaaaa at nas.example:7741")
VAULT = VaultId(bytes(16))


class MemoryTransport:
    """One end of a pair in memory, as `vaultfs.mesh.message_stream.Transport`."""

    def __init__(
        self, stream: trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]
    ) -> None:
        self._stream = stream
        self.is_aborted = False

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def send_some(self, next_frame: NextFrame, in_thread: InThread) -> bool:
        frame = next_frame()
        await self._stream.send_all(b"".join(frame or ()))
        return frame is not None

    def borrowed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read_now(self, into: memoryview) -> int | None:
        raise AssertionError("who calls takes messages only")

    async def wait_readable(self) -> None:
        raise AssertionError("who calls takes messages only")

    async def receive_some(self) -> bytes:
        return bytes(await self._stream.receive_some(65536))

    async def finish_sending(self) -> None:
        await self._stream.send_stream.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        self.is_aborted = True
        self._stream.send_stream.close()
        self._stream.receive_stream.close()


class ScriptedPeer:
    """The other end."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self._decoder = FrameDecoder()

    async def hear(self) -> FromCaller:
        while (payload := next(self._decoder.payloads(), None)) is None:
            data = await self.transport.receive_some()
            assert data, "the caller has closed the connection"
            self._decoder.feed(data)
        return decode_from_caller(payload)

    async def hears_end(self) -> None:
        while data := await self.transport.receive_some():
            self._decoder.feed(data)

    async def say(self, *messages: Message | bytes) -> None:
        for message in messages:
            await self.transport.send_all(message if isinstance(message, bytes) else encode(message))


def pair() -> tuple[MemoryTransport, ScriptedPeer]:
    ours, theirs = trio.testing.memory_stream_pair()
    return MemoryTransport(ours), ScriptedPeer(MemoryTransport(theirs))


@asynccontextmanager
async def conversation(
    script: Callable[[ScriptedPeer], Awaitable[None]],
) -> AsyncIterator[tuple[PeerConnection, MemoryTransport]]:
    """A connection that is run, and a script that runs beside it after the greeting; both have ended at the end."""
    transport, peer = pair()
    stream = MessageStream(transport)

    async def talk() -> None:
        assert isinstance(await peer.hear(), Hello)
        await peer.say(Welcome(1, ("witness",), "scripted", True))
        await script(peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        connection = await say_hello(stream, PEER)
        nursery.start_soon(connection.run)
        yield connection, transport
        connection.abort()
