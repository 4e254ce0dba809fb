"""The end of a TLS stream, when two tasks bring it about at once."""

from __future__ import annotations

import trio
import trio.testing

from vaultfs.mesh.identity import Identity
from vaultfs.mesh.tls import client_context, handshake, server_context
from vaultfs.mesh.tls_stream import TlsStream


async def connected() -> tuple[TlsStream, TlsStream]:
    """Both ends of a connection over a socket of this machine."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    caller = await trio.testing.open_stream_to_socket_listener(listener)
    called = await listener.accept()
    await listener.aclose()
    streams: list[TlsStream] = []

    async def greet(socket: trio.SocketStream, *, server_side: bool) -> None:
        context = server_context(Identity.new()) if server_side else client_context(Identity.new())
        stream, _ = await handshake(socket, context, server_side=server_side)
        streams.append(stream)

    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await greet(called, server_side=True)

        nursery.start_soon(answer)
        await greet(caller, server_side=False)
    return streams[0], streams[1]


async def test_a_polite_end_that_is_overtaken_by_an_abrupt_one() -> None:
    """As when the peer answers a goodbye by closing, and the task that reads notices first."""
    for steps in range(5):
        ours, theirs = await connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.aclose)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            ours.abort()
        theirs.abort()


async def test_a_polite_end_while_the_other_side_ends_too() -> None:
    ours, theirs = await connected()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.aclose)
        nursery.start_soon(theirs.aclose)
