"""Who asks for new keys of TLS all the time, which costs it nothing, neither fills memory nor keeps a thread."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio
from mesh_replicas.peer_objects import VAULT, begin, data_of, segment_key
from trio.testing import MockClock

from mesh_server.forged_records import ForgedRecords, logging_context
from vaultfs.mesh import tls_stream
from vaultfs.mesh.answers import failure
from vaultfs.mesh.incoming_object import IncomingObject
from vaultfs.mesh.message_codec import data_frame, encode
from vaultfs.mesh.message_stream import ConnectionLostError, MessageStream
from vaultfs.mesh.messages import Go, Ping, Pong, Stored, Welcome
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.tls import server_context
from vaultfs.mesh.tls_stream import TlsStream

from .running import ALICE, HELLO, PEER, Caller, Peer

MANY = 400

T = TypeVar("T")


async def begins(peer: Peer, caller: Caller, log: Path, data: bytes) -> ForgedRecords:
    forged = ForgedRecords(log)
    await caller.socket.send_all(forged.record(encode(HELLO)))
    await caller.hear(Welcome)
    await caller.socket.send_all(forged.record(encode(caller.put(segment_key(data), data))))
    await caller.hear(Go)
    return forged


async def test_some_new_keys_in_the_middle_of_an_object_do_no_harm(peer: Peer, tmp_path: Path) -> None:
    data = data_of(1, 5000)
    log = tmp_path / "keys"
    async with peer.connected(ALICE, logging_context(ALICE, log)) as caller:
        forged = await begins(peer, caller, log, data)
        for start in range(0, len(data), 1000):
            update = forged.key_update(is_answer_wanted=start % 2000 == 0)
            await caller.socket.send_all(update + forged.record(data_frame(data[start : start + 1000])))
        await caller.hear(Stored)
    assert peer.store.stat(VAULT, segment_key(data))[0] == len(data)


async def test_answers_to_new_keys_do_not_fill_memory(peer: Peer, tmp_path: Path) -> None:
    data = data_of(1, 10_000)
    log = tmp_path / "keys"
    async with peer.connected(ALICE, logging_context(ALICE, log)) as caller:
        forged = await begins(peer, caller, log, data)
        for byte in range(MANY):
            update = forged.key_update(is_answer_wanted=True)
            try:
                await caller.socket.send_all(update + forged.record(data_frame(data[byte : byte + 1])))
            except trio.BrokenResourceError:
                break
        await peer.until_connections(0)
    assert [event.text for event in peer.events if "new keys" in event.text]
    async with peer.call() as other:
        await other.ask(Ping(1), Pong)


async def test_a_thread_that_gets_new_keys_only_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    left, right = socket.socketpair()
    log = tmp_path / "keys"
    server = TlsStream(trio.SocketStream(trio.socket.from_stdlib_socket(left)), server_context(PEER), is_server=True)
    client = TlsStream(
        trio.SocketStream(trio.socket.from_stdlib_socket(right)), logging_context(ALICE, log), is_server=False
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    forged = ForgedRecords(log)

    def updates() -> Iterator[bytes]:
        for _ in range(MANY):
            yield forged.key_update(is_answer_wanted=False)

    made = updates()
    monkeypatch.setattr(tls_stream, "LOT_S", -1.0)
    main = threading.get_ident()
    read = os.read

    def forge(descriptor: int, count: int) -> bytes:
        return read(descriptor, count) if threading.get_ident() == main else next(made)

    monkeypatch.setattr(os, "read", forge)

    def take() -> int | None:
        with server.borrowed():
            return server.read_now(memoryview(bytearray(100)))

    assert await trio.to_thread.run_sync(take) is None
    server.abort()
    client.abort()


class NoBytes:
    """A stream on which something comes all the time, and never a byte."""

    def borrowed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read_now(self, into: memoryview) -> int | None:
        return None

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_what_comes_without_bytes_is_no_progress(mock_clock: MockClock, scratch: Path) -> None:
    lots = 0

    async def disk(work: Callable[..., T], *args: Any) -> T:
        nonlocal lots
        lots += 1
        assert lots < 100
        mock_clock.jump(1)
        await trio.lowlevel.checkpoint()
        return work(*args)

    data = data_of(1, 1000)
    with closing(ReplicaStore.open(scratch / "replicas", None, reserve_bytes=0)) as store:
        upload = begin(store, segment_key(data), data)
        assert upload is not None
        stream = cast("MessageStream", NoBytes())
        with pytest.raises(ConnectionLostError, match="within 30 s"):
            await IncomingObject(stream, upload, disk, partial(failure, 1)).take(1)
        upload.abort(keep=False)
    assert lots in {30, 31}
