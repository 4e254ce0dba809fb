"""Faults of vaultfs itself: they end one connection, are logged, and take nothing else with them."""

from __future__ import annotations

import logging
from typing import NoReturn

import pytest
from mesh_replicas.peer_objects import VAULT, data_of, segment_key

from vaultfs.mesh.message_codec import data_frame
from vaultfs.mesh.messages import Get, Go, Ping, Pong, Stat, Status
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.quiet_log import INTERVAL_S, QuietLog
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import EventKind

from .running import Peer

DATA = data_of(5, 1000)


def fault(*_: object, **__: object) -> NoReturn:
    raise KeyError("a fault")


@pytest.mark.parametrize("what", ["stat", "reader", "begin_put", "state"])
async def test_a_fault_in_the_store(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(ReplicaStore, what, fault)
    key = segment_key(DATA)
    async with peer.call() as other, peer.call() as caller:
        requests = {
            "stat": Stat(1, VAULT, key),
            "reader": Get(1, VAULT, key, 0, None),
            "begin_put": caller.put(key, DATA),
            "state": Status(1, VAULT),
        }
        await caller.say(requests[what])
        await caller.hears_end()
        await peer.until_connections(1)
        await other.ask(Ping(1), Pong)
    assert "a fault of vaultfs ended the connection" in caplog.text
    assert "KeyError" in caplog.text


async def test_a_fault_while_an_object_comes(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Upload, "write", fault)
    async with peer.call() as other, peer.call() as caller:
        await caller.ask(caller.put(segment_key(DATA), DATA), Go)
        await caller.say(data_frame(DATA))
        await caller.hears_end()
        await peer.until_connections(1)
        await other.ask(Ping(1), Pong)
    assert "KeyError" in caplog.text
    assert peer.count(EventKind.ENDED) == 1


def test_the_log_is_not_filled(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    quiet = QuietLog(logging.getLogger("test"), lambda: now_s)
    for number in range(5):
        quiet.warning("refused %s", number)
    quiet.warning("another kind")
    now_s = INTERVAL_S
    quiet.warning("refused %s", 9)
    quiet.warning("refused %s", 10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["refused 0", "another kind", "refused 9 (and 4 more since the last line)"]
