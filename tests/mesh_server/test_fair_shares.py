"""One caller that asks for much on all its connections leaves threads to others, and its limit goes with it."""

from __future__ import annotations

import gc
import threading
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.mesh_replicas.peer_objects import VAULT, put_segment
from tests.mesh_server.running import ALICE, BOB, Caller, Peer
from vaultfs.mesh.conversation import MOST_COSTLY, Resources
from vaultfs.mesh.messages import Audit, Have, Holds, List, Listing, Message, Put, Range, Size, Stat
from vaultfs.mesh.replicas import ReplicaStore

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
            await trio.sleep(0)
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
        assert list(resources._costly) == [ALICE.peer_id]
    await peer.until_connections(0)
    async with await peer.open_socket():  # who accepts holds the last one
        await peer.until_connections(1)
    await peer.until_connections(0)
    gc.collect()
    assert not list(resources._costly)
