"""One caller that asks for much on all its connections leaves threads to others, and its limit goes with it."""

from __future__ import annotations

import gc
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from mesh_replicas.peer_objects import VAULT, put_segment, segment_key
from trio.testing import MockClock, wait_all_tasks_blocked

from vaultfs.mesh.conversation import MOST_BODIES_OF_ONE, MOST_COSTLY, PLACE_S, Resources
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.message_codec import data_frame
from vaultfs.mesh.messages import (
    Audit,
    Body,
    Data,
    Fail,
    Get,
    Go,
    Have,
    Holds,
    List,
    Listing,
    Message,
    Ping,
    Pong,
    Put,
    Range,
    Size,
    Stat,
    Stored,
)
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import Limits

from .running import ALICE, BOB, NO_SCRUB_S, Caller, Peer, running

CONNECTIONS = 12
REAL_S = 0.01


@pytest.mark.parametrize("kind", ["audit", "have", "list", "put"])
async def test_costly_requests_of_one_caller(peer: Peer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    peer.grant(BOB)
    key = put_segment(peer.store, b"data")
    name = bytes.fromhex(key[-64:])
    message: Message = {
        "audit": Audit(1, VAULT, bytes(32), (Range(name, 0, 4),)),
        "have": Have(1, VAULT, name),
        "list": List(1, VAULT, "", ""),
        "put": Put(1, VAULT, key, 4, name, False, 0),
    }[kind]
    method = {"audit": "audit", "have": "have", "list": "listing", "put": "begin_put"}[kind]
    real = getattr(ReplicaStore, method)
    lock, go_on = threading.Lock(), threading.Event()
    at_once = most = 0

    def slow(*args: object) -> object:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        go_on.wait()
        with lock:
            at_once -= 1
        return real(*args)

    monkeypatch.setattr(ReplicaStore, method, slow)
    async with AsyncExitStack() as stack:
        greedy = [await stack.enter_async_context(peer.call(ALICE)) for _ in range(CONNECTIONS)]
        other: Caller = await stack.enter_async_context(peer.call(BOB))
        for caller in greedy:
            await caller.say(message)
        while at_once < MOST_COSTLY:
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked(REAL_S)
        assert most == MOST_COSTLY
        assert (await other.ask(Stat(1, VAULT, key), Size)).size_bytes == 4
        go_on.set()
        for caller in greedy:
            assert await caller.stream.receive_payload() is not None
    assert most == MOST_COSTLY


async def test_limits_go_with_their_callers(peer: Peer) -> None:
    resources: Resources = peer.server._resources
    async with peer.call() as one, peer.call() as two:
        await one.ask(Have(1, VAULT, b""), Holds)
        await two.ask(List(1, VAULT, "", ""), Listing)
        assert list(resources._shares) == [ALICE.peer_id]
    await peer.until_connections(0)
    async with await peer.open_socket():  # who accepts holds the last one
        await peer.until_connections(1)
    await peer.until_connections(0)
    gc.collect()
    assert not list(resources._shares)


async def test_bodies_of_one_caller(peer: Peer, mock_clock: MockClock) -> None:
    peer.grant(BOB)
    data = [bytes([number]) * 100 for number in range(MOST_BODIES_OF_ONE + 2)]
    async with AsyncExitStack() as stack:
        for each in data[:MOST_BODIES_OF_ONE]:
            slow = await stack.enter_async_context(peer.call(ALICE))
            await slow.ask(slow.put(segment_key(each), each), Go)
        waiting = await stack.enter_async_context(peer.call(ALICE))
        await waiting.say(waiting.put(segment_key(data[-1]), data[-1]))
        other = await stack.enter_async_context(peer.call(BOB))
        await other.ask(other.put(segment_key(data[-2]), data[-2]), Go)
        await other.say(data_frame(data[-2]))
        await other.hear(Stored)
        for _ in range(2):  # those that are slow go on just in time
            await wait_all_tasks_blocked(REAL_S)
            mock_clock.jump(PLACE_S / 2 + 0.1)
        assert (await waiting.hear(Fail)).code is Code.BUSY
        await waiting.ask(Ping(2), Pong)
        await peer.until_connections(2)
        waiting.number = 2
        await waiting.ask(waiting.put(segment_key(data[-1]), data[-1]), Go)


async def test_a_place_is_given_back_by_who_waits_in_vain(scratch: Path, mock_clock: MockClock) -> None:
    limits = Limits(bodies=1, scrub_pause_s=NO_SCRUB_S)
    async with running(scratch / "peer", limits) as peer, peer.call() as first:
        peer.grant(BOB)
        key = put_segment(peer.store, b"data")
        async with peer.server._resources.bodies:
            for number in range(1, MOST_BODIES_OF_ONE + 2):
                await first.say(Get(number, VAULT, key, 0, None))
                await wait_all_tasks_blocked(REAL_S)
                mock_clock.jump(PLACE_S + 1)
                assert (await first.hear(Fail)).code is Code.BUSY
        async with peer.call() as second:
            assert (await second.ask(Get(1, VAULT, key, 0, None), Body)).body_bytes == 4
            assert (await second.hear(Data)).data == b"data"
