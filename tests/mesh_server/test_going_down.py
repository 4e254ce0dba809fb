"""Going down in order, at once, and at a signal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from mesh_replicas.peer_objects import data_of, read, segment_key
from trio.testing import MockClock, wait_all_tasks_blocked

from vaultfs.errors import UsageError
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.message_codec import data_frame
from vaultfs.mesh.messages import Go, Ping, Pong, Stored
from vaultfs.mesh.server import Limits, open_listeners, stop_at_signals

from .running import LOCAL, NO_SCRUB_S, Peer, farewell, running

DATA = data_of(3, 2 * DATA_BYTES)
KEY = segment_key(DATA)


async def test_goodbye_is_said_on_all_connections_and_nobody_else_comes_in(peer: Peer) -> None:
    async with peer.call() as one, peer.call() as two, await peer.open_socket() as silent:
        await peer.until_connections(3)
        await one.ask(Ping(1), Pong)
        peer.stop.set()
        await farewell(one)
        await farewell(two)
        assert await silent.receive_some() == b""
        await peer.until_connections(0)
        with pytest.raises(OSError, match="all attempts to connect"):
            await peer.open_socket()


async def test_what_was_read_is_answered_first(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.say(b"".join(len(p).to_bytes(4, "big") + p for p in (b"\x92\x0a" + bytes([n]) for n in (1, 2, 3))))
        await wait_all_tasks_blocked(0.01)
        peer.stop.set()
        for number in (1, 2, 3):
            assert (await caller.hear(Pong)).request == number
        await farewell(caller)


async def test_an_object_under_way_is_finished(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await caller.say(data_frame(DATA[:DATA_BYTES]))
        peer.stop.set()
        await wait_all_tasks_blocked(0.01)
        await caller.say(data_frame(DATA[DATA_BYTES:]))
        await caller.hear(Stored)
        await farewell(caller)
    assert read(peer.store, KEY) == DATA


async def test_one_that_takes_too_long_is_cut_and_can_go_on_later(scratch: Path, mock_clock: MockClock) -> None:
    async with running(scratch / "peer") as peer, peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await caller.say(data_frame(DATA[:DATA_BYTES]))
        await wait_all_tasks_blocked(0.05)
        peer.stop.set()
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(9.9)
        await wait_all_tasks_blocked(0.01)
        assert peer.server.connections == 1
        mock_clock.jump(0.2)
        await peer.until_connections(0)
        await caller.hears_end()
    async with running(scratch / "peer") as again, again.call() as caller:
        assert (await caller.ask(caller.put(KEY, DATA), Go)).offset == DATA_BYTES
        caller.stream.abort()


async def test_cancelled_it_cuts_everything(scratch: Path) -> None:
    with trio.CancelScope() as scope:
        async with running(scratch / "peer") as peer, peer.call() as caller:
            await caller.ask(caller.put(KEY, DATA), Go)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert peer.server.connections == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_set_the_event(number: signal.Signals) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_at_signals, stop)
        await wait_all_tasks_blocked()
        os.kill(os.getpid(), number)
        await stop.wait()
        nursery.cancel_scope.cancel()


async def test_an_address_that_is_taken(peer: Peer) -> None:
    with pytest.raises(UsageError, match="choose another"):
        await open_listeners([Address(LOCAL, 0), Address(LOCAL, peer.port)])


async def test_no_time_to_go_down(scratch: Path) -> None:
    async with (
        running(scratch / "peer", Limits(closing_s=0, scrub_pause_s=NO_SCRUB_S)) as peer,
        peer.call() as caller,
    ):
        await caller.ask(caller.put(KEY, DATA), Go)
        peer.stop.set()
        await caller.hears_end()
