"""Objects that come and go: whole, in parts, interrupted, wrong, and while the disk fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from mesh_replicas.peer_objects import VAULT, data_of, digest_of, put_segment, read, segment_key

from vaultfs.errors import NoSpaceError, RemoteError
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.message_codec import data_frame
from vaultfs.mesh.messages import Abort, Body, Data, Fail, Get, Go, Goodbye, Message, Ping, Pong, Put, Stored
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_reading import Reader
from vaultfs.mesh.server import Limits

from .running import ALICE, NO_SCRUB_S, Caller, Peer, running

DATA = data_of(7, 3 * DATA_BYTES + 1000)
KEY = segment_key(DATA)


async def send(caller: Caller, data: bytes, piece_bytes: int = DATA_BYTES) -> None:
    for start in range(0, len(data), piece_bytes):
        await caller.say(data_frame(data[start : start + piece_bytes]))


async def body(caller: Caller, count: int) -> bytes:
    parts = []
    while count:
        part = (await caller.hear(Data)).data
        parts.append(part)
        count -= len(part)
    assert count == 0
    return b"".join(parts)


@pytest.mark.parametrize("piece_bytes", [1009, 70_000, DATA_BYTES])
async def test_an_object_comes_and_goes(peer: Peer, piece_bytes: int) -> None:
    async with peer.call() as caller:
        assert (await caller.ask(caller.put(KEY, DATA), Go)).offset == 0
        await send(caller, DATA, piece_bytes)
        assert (await caller.hear(Stored)).request == 1
        assert (await caller.ask(caller.put(KEY, DATA), Stored)).request == 2
        found = await caller.ask(Get(caller.next(), VAULT, KEY, 0, None), Body)
        assert found == Body(3, len(DATA), len(DATA))
        assert await body(caller, len(DATA)) == DATA
        found = await caller.ask(Get(caller.next(), VAULT, KEY, 1000, 300_000), Body)
        assert (found.size_bytes, found.body_bytes) == (len(DATA), 300_000)
        assert await body(caller, 300_000) == DATA[1000:301_000]
        await caller.ask(Ping(caller.next()), Pong)


async def test_small_frames_take_little_memory_and_are_written_in_order(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = Upload.write

    def spy(upload: Upload, data: bytes) -> None:
        sizes.append(len(data))
        write(upload, data)

    monkeypatch.setattr(Upload, "write", spy)
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await send(caller, DATA[:3000], 100)
        await send(caller, DATA[3000:])
        await caller.hear(Stored)
    assert sum(sizes) == len(DATA)
    assert len(sizes) <= 1 + len(DATA) // DATA_BYTES
    assert read(peer.store, KEY) == DATA


async def test_what_is_missing_or_outside_is_said(peer: Peer) -> None:
    put_segment(peer.store, DATA)
    async with peer.call() as caller:
        missing = await caller.ask(Get(1, VAULT, segment_key(b"other"), 0, None), Fail)
        assert (missing.request, missing.code) == (1, Code.MISSING)
        assert (await caller.ask(Get(2, VAULT, KEY, len(DATA), 1), Fail)).request == 2
        assert (await caller.ask(Get(3, VAULT, KEY, len(DATA), 0), Body)).body_bytes == 0
        await caller.ask(Ping(4), Pong)


async def test_wrong_bytes_are_not_stored(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await send(caller, DATA[:-1] + bytes([DATA[-1] ^ 1]))
        fail = await caller.hear(Fail)
        assert (fail.request, fail.code) == (1, Code.WRONG_BYTES)
        assert (await caller.ask(Put(2, VAULT, KEY, 5, digest_of(b"other"), False, 0), Fail)).code is Code.WRONG_BYTES
        await caller.ask(Ping(3), Pong)
    assert peer.store.stat(VAULT, KEY)[0] is None


async def test_an_interrupted_object_goes_on_where_it_was(peer: Peer) -> None:
    cut = DATA_BYTES + 5000
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await send(caller, DATA[:cut])
        fail = await caller.ask(Abort(1), Fail)
        assert fail.request == 1
        assert (await caller.ask(caller.put(KEY, DATA), Go)).offset == cut
        await send(caller, DATA[cut : 2 * cut])
        await trio.testing.wait_all_tasks_blocked(0.05)
    await peer.until_connections(0)
    async with peer.call() as caller:
        go = await caller.ask(caller.put(KEY, DATA), Go)
        assert go.offset >= cut
        await send(caller, DATA[go.offset :])
        await caller.hear(Stored)
    assert read(peer.store, KEY) == DATA


async def test_an_object_that_came_whole_earlier_needs_no_bytes(peer: Peer) -> None:
    upload = peer.store.begin_put(ALICE.peer_id, VAULT, KEY, len(DATA), digest_of(DATA), False, 0, None)
    assert upload is not None
    upload.write(DATA)
    upload.abort(keep=True)
    async with peer.call() as caller:
        assert (await caller.ask(caller.put(KEY, DATA), Go)).offset == len(DATA)
        await caller.hear(Stored)
    assert read(peer.store, KEY) == DATA


@pytest.mark.parametrize("is_aborted", [True, False])
async def test_a_disk_that_fails_is_said_at_once_and_the_rest_is_dropped(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, is_aborted: bool
) -> None:
    def fail(upload: Upload, data: bytes) -> None:
        raise NoSpaceError("/secret/path is full")

    async with peer.call() as caller:
        with monkeypatch.context() as patch:
            patch.setattr(Upload, "write", fail)
            await caller.ask(caller.put(KEY, DATA), Go)
            await send(caller, DATA[:DATA_BYTES])
            told = await caller.hear(Fail)
            assert (told.request, told.code) == (1, Code.FULL)
            assert "secret" not in told.text
            if is_aborted:
                await caller.say(Abort(1))
            else:
                await send(caller, DATA[DATA_BYTES:])
            await caller.ask(Ping(caller.next()), Pong)
        await caller.ask(caller.put(KEY, DATA), Go)
        await send(caller, DATA)
        await caller.hear(Stored)


async def test_a_disk_that_fails_while_an_object_is_read_ends_the_body(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_segment(peer.store, DATA)
    reads = 0
    read_some = Reader.read

    def fail(reader: Reader, most: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 3:
            raise RemoteError("/secret/path: Input/output error")
        return read_some(reader, most)

    monkeypatch.setattr(Reader, "read", fail)
    async with peer.call() as caller:
        await caller.ask(Get(1, VAULT, KEY, 0, None), Body)
        assert await body(caller, 2 * DATA_BYTES) == DATA[: 2 * DATA_BYTES]
        told = await caller.hear(Fail)
        assert (told.request, told.code) == (1, Code.FAILED)
        assert "secret" not in told.text
        await caller.ask(Ping(2), Pong)


@pytest.mark.parametrize("message", [Ping(2), Abort(2), data_frame(DATA[:DATA_BYTES])], ids=["ping", "abort", "more"])
async def test_what_does_not_belong_into_an_object_ends_the_connection(peer: Peer, message: Message | bytes) -> None:
    async with peer.call() as caller:
        await caller.ask(Ping(1), Pong)
        small = DATA[:1000]
        await caller.ask(Put(2, VAULT, segment_key(small), 1000, digest_of(small), False, 0), Go)
        await caller.say(data_frame(small[:900]))
        await caller.say(message if message != Abort(2) else Abort(1))
        assert (await caller.hears_failure_and_end()).code is Code.NOT_UNDERSTOOD
    assert peer.store.stat(VAULT, segment_key(small))[0] is None


async def test_a_goodbye_in_the_midst_is_heard_after_the_object(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await send(caller, DATA[:1000])
        await caller.say(Goodbye("soon"))
        await send(caller, DATA[1000:])
        await caller.hear(Stored)
        await caller.hears_end()


async def test_a_caller_that_is_revoked_in_the_midst_stores_nothing(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await send(caller, DATA[:1000])
        peer.revoke(ALICE)
        await send(caller, DATA[1000:])
        assert (await caller.hears_failure_and_end()).code is Code.REFUSED
    assert peer.store.stat(VAULT, KEY)[0] is None


async def test_bodies_wait_for_each_other(scratch: Path) -> None:
    limits = Limits(bodies=1, scrub_pause_s=NO_SCRUB_S)
    other = data_of(8, 1000)
    async with (
        running(scratch / "peer", limits) as peer,
        peer.call() as first,
        peer.call() as second,
    ):
        await first.ask(first.put(KEY, DATA), Go)
        await second.say(second.put(segment_key(other), other))
        await first.say(data_frame(DATA[:1000]))
        async with trio.open_nursery() as nursery:
            heard: list[Go] = []

            async def wait() -> None:
                heard.append(await second.hear(Go))

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not heard
            await send(first, DATA[1000:])
            await first.hear(Stored)
        await send(second, other)
        await second.hear(Stored)
