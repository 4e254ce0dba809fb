"""How many may come at once, and what happens when they are too many, or descriptors run out."""

from __future__ import annotations

import errno
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.messages import Ping, Pong, Welcome
from vaultfs.mesh.server import EventKind, Limits

from .running import ALICE, BOB, HELLO, NO_SCRUB_S, STRANGER, Peer, running

FEW = Limits(connections=5, of_one=3, of_strangers=2, scrub_pause_s=NO_SCRUB_S)


async def test_one_identity_has_so_many_connections(scratch: Path) -> None:
    async with running(scratch / "peer", FEW) as peer, AsyncExitStack() as stack:
        peer.grant(BOB)
        callers = [await stack.enter_async_context(peer.call()) for _ in range(3)]
        async with peer.connected(ALICE) as caller:
            await caller.say(HELLO)
            assert (await caller.hears_failure_and_end()).code is Code.BUSY
        async with peer.call(BOB):
            pass
        callers[0].stream.abort()
        await peer.until_connections(2)
        async with peer.call() as caller:
            await caller.ask(Ping(1), Pong)


async def test_strangers_have_few_connections_together(scratch: Path) -> None:
    async with running(scratch / "peer", FEW) as peer, AsyncExitStack() as stack:
        strangers = [Identity.new() for _ in range(3)]
        for who in strangers[:2]:
            await stack.enter_async_context(peer.call(who))
        async with peer.connected(strangers[2]) as caller:
            await caller.say(HELLO)
            assert (await caller.hears_failure_and_end()).code is Code.BUSY
        async with peer.call() as caller:
            await caller.ask(Ping(1), Pong)


async def test_who_proves_nothing_gives_way(scratch: Path) -> None:
    async with running(scratch / "peer", FEW) as peer, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(await peer.open_socket()) for _ in range(5)]
        await peer.until_connections(5)
        async with peer.call() as one, peer.call() as two:
            assert await silent[0].receive_some() == b""
            await one.ask(Ping(1), Pong)
            await two.ask(Ping(1), Pong)
            await peer.until_connections(5)
        assert peer.count(EventKind.REFUSED) == 2


async def test_all_places_are_taken_by_those_who_are_known(scratch: Path) -> None:
    async with running(scratch / "peer", FEW) as peer, AsyncExitStack() as stack:
        peer.grant(BOB)
        callers = [await stack.enter_async_context(peer.call(who)) for who in (ALICE, ALICE, ALICE, BOB, BOB)]
        async with await peer.open_socket() as socket:
            assert await socket.receive_some() == b""
        assert peer.server.connections == 5
        for caller in callers:
            await caller.ask(Ping(1), Pong)


async def test_descriptors_that_run_out_are_waited_for(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    accept = trio.SocketListener.accept
    failures = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]

    async def fail(listener: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise OSError(failures.pop(), "no room")
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", fail)
    async with await peer.open_socket(), await peer.open_socket():  # the accept that waits already is the real one
        for left in (3, 2, 1, 0):
            await wait_all_tasks_blocked(0.01)
            assert len(failures) == left
            assert peer.server.connections == 1
            mock_clock.jump(1)
        await peer.until_connections(2)
    async with peer.call() as caller:
        await caller.ask(Ping(1), Pong)


async def test_places_are_given_back(peer: Peer) -> None:
    for _ in range(2 * Limits().of_one):
        async with peer.call():
            pass
        await peer.until_connections(0)
    async with peer.connected(STRANGER) as caller:
        await caller.ask(HELLO, Welcome)
    await wait_all_tasks_blocked()
    await peer.until_connections(0)
    assert peer.count(EventKind.CONNECTED) == peer.count(EventKind.ENDED) == 2 * Limits().of_one + 1
