"""Objects, in both directions: back-pressure, early ends, cancellation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteError,
    RemoteUnreachableError,
    StorageError,
)
from vaultfs.mesh import connection as module
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.incoming_body import IncomingBody
from vaultfs.mesh.messages import Abort, Body, Data, Fail, Get, Go, Pong, Put, Stored

from .scripted import VAULT, ScriptedPeer, conversation

DIGEST = bytes(32)


def opened(data: bytes, piece_bytes: int = 1 << 20) -> Callable[[int], Awaitable[module.ReadPiece]]:
    async def open_at(offset: int) -> module.ReadPiece:
        at = offset

        def read() -> bytes:
            nonlocal at
            piece = data[at : at + piece_bytes]
            at += len(piece)
            return piece

        return read

    return open_at


async def received(body: IncomingBody) -> bytes:
    parts = []
    while piece := await body.receive():
        parts.append(piece)
    return b"".join(parts)


async def test_a_body_comes_whole_and_the_connection_goes_on() -> None:
    async def script(peer: ScriptedPeer) -> None:
        heard = await peer.hear()
        assert isinstance(heard, Get)
        assert (heard.key, heard.offset, heard.length) == ("k", 3, 6)
        await peer.say(Body(heard.request, 100, 6), Data(b"abc"), Data(b"def"))
        await peer.hear()
        await peer.say(Pong(2))

    async with conversation(script) as (connection, _):
        async with connection.get(VAULT, "k", 3, 6) as body:
            assert (body.size_bytes, body.body_bytes) == (100, 6)
            assert await received(body) == b"abcdef"
        await connection.ping()
        assert not connection.is_closed


async def test_an_empty_body() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, 0, 0))
        await peer.hear()
        await peer.say(Pong(2))

    async with conversation(script) as (connection, _):
        async with connection.get(VAULT, "k") as body:
            assert await received(body) == b""
        await connection.ping()


async def test_what_is_missing_does_not_end_the_connection() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Fail(1, Code.MISSING, "no such object"))
        await peer.hear()
        await peer.say(Pong(2))

    async with conversation(script) as (connection, _):
        with pytest.raises(ObjectMissingError, match="no such object"):
            async with connection.get(VAULT, "k"):
                pytest.fail("there is no body")
        await connection.ping()


async def test_a_failure_in_the_midst_is_told() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, 6, 6), Data(b"abc"), Fail(1, Code.FAILED, "the disk failed"))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteError, match="the disk failed"):
            async with connection.get(VAULT, "k") as body:
                await received(body)
        assert connection.is_closed


async def test_more_than_announced_is_refused() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, 4, 4), Data(b"abcdef"))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteUnreachableError, match="more than it has announced"):
            async with connection.get(VAULT, "k") as body:
                await received(body)
        assert connection.is_closed


async def test_a_body_that_nobody_wants_any_more_ends_the_connection() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, 6, 6), Data(b"abc"))
        await peer.hears_end()

    async with conversation(script) as (connection, transport):
        async with connection.get(VAULT, "k") as body:
            assert await body.receive() == b"abc"
        assert connection.is_closed
    assert transport.is_aborted


async def test_a_reader_that_is_cancelled_before_the_body_ends_the_connection() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with trio.move_on_after(0):
            async with connection.get(VAULT, "k"):
                pytest.fail("there is no body")
        assert not connection.is_closed  # nothing was sent: the request was not begun
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()

                nursery.start_soon(cancel)
                async with connection.get(VAULT, "k"):
                    pytest.fail("there is no body")
        assert connection.is_closed


async def test_a_body_is_not_read_faster_than_it_is_taken() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, 100, 100))
        for _ in range(100):
            await peer.say(Data(b"x"))

    async with conversation(script) as (connection, _), connection.get(VAULT, "k") as body:
        await trio.testing.wait_all_tasks_blocked()
        statistics = body._pieces.statistics()
        assert statistics.current_buffer_used == statistics.max_buffer_size
        assert await received(body) == b"x" * 100


async def test_a_silent_body_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, 6, 6), Data(b"abc"))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteUnreachableError, match="sent nothing for 60 s"):
            async with connection.get(VAULT, "k") as body:
                await received(body)
        assert connection.is_closed


async def test_a_body_that_dribbles_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that is never silent for long could hold up a reader for months."""
    size = 1 << 20

    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, size, size), Data(bytes(DATA_BYTES)))
        try:
            while True:
                await trio.sleep(19)
                await peer.say(Data(b"x"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader has gone, as it should

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteUnreachableError, match="too slowly"):
            async with connection.get(VAULT, "k") as body:
                await received(body)
        assert connection.is_closed


async def test_a_slow_body_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    count = 8

    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, count * DATA_BYTES, count * DATA_BYTES))
        for _ in range(2 * count):
            await trio.sleep(25)
            await peer.say(Data(bytes(DATA_BYTES // 2)))

    async with conversation(script) as (connection, _), connection.get(VAULT, "k") as body:
        assert len(await received(body)) == count * DATA_BYTES


async def hear_object(peer: ScriptedPeer, count: int) -> bytes:
    parts = []
    while count:
        heard = await peer.hear()
        assert isinstance(heard, Data)
        parts.append(heard.data)
        count -= len(heard.data)
    return b"".join(parts)


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize("offset", [0, 3, 9])
async def test_an_object_is_sent_from_where_the_peer_wants_it(offset: int, piece_bytes: int) -> None:
    heard: list[bytes] = []

    async def script(peer: ScriptedPeer) -> None:
        put = await peer.hear()
        assert isinstance(put, Put)
        assert (put.key, put.size_bytes, put.digest, put.if_absent, put.revision) == ("k", 9, DIGEST, True, 4)
        await peer.say(Go(put.request, offset))
        heard.append(await hear_object(peer, 9 - offset))
        await peer.say(Stored(put.request))
        await peer.hear()
        await peer.say(Pong(2))

    async with conversation(script) as (connection, _):
        sent = await connection.put(
            VAULT, "k", 9, DIGEST, opened(b"123456789", piece_bytes), if_absent=True, revision=4
        )
        assert sent == 9 - offset
        await connection.ping()
    assert heard == [b"123456789"[offset:]]


async def test_large_pieces_are_cut_into_frames() -> None:
    data = bytes(range(256)) * 4096

    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Go(1, 0))
        first = await peer.hear()
        assert isinstance(first, Data)
        assert len(first.data) == DATA_BYTES
        assert first.data + await hear_object(peer, len(data) - DATA_BYTES) == data
        await peer.say(Stored(1))

    async with conversation(script) as (connection, _):
        assert await connection.put(VAULT, "k", len(data), DIGEST, opened(data)) == len(data)


async def test_what_the_peer_has_is_not_sent() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Stored(1))

    async def never(offset: int) -> module.ReadPiece:
        pytest.fail("it was opened")

    async with conversation(script) as (connection, _):
        assert await connection.put(VAULT, "k", 9, DIGEST, never) == 0
        assert not connection.is_closed


async def test_a_refusal_before_the_first_byte_leaves_the_connection() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Fail(1, Code.FULL, "the quota is used up"))
        await peer.hear()
        await peer.say(Pong(2))

    async with conversation(script) as (connection, _):
        with pytest.raises(NoSpaceError, match="quota"):
            await connection.put(VAULT, "k", 9, DIGEST, opened(b"123456789"))
        await connection.ping()


async def test_a_failure_in_the_midst_stops_the_sending() -> None:
    heard: list[object] = []

    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Go(1, 0))
        await peer.hear()
        await peer.say(Fail(1, Code.FULL, "the disk is full"))
        while not isinstance(message := await peer.hear(), Abort):
            heard.append(message)
        await peer.hear()
        await peer.say(Pong(2))

    data = bytes(DATA_BYTES) * 64
    async with conversation(script) as (connection, _):
        with pytest.raises(NoSpaceError, match="disk is full"):
            await connection.put(VAULT, "k", len(data), DIGEST, opened(data, DATA_BYTES))
        assert len(heard) < 63
        await connection.ping()
        assert not connection.is_closed


async def test_bytes_that_were_not_those_announced() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Go(1, 0))
        await hear_object(peer, 9)
        await peer.say(Fail(1, Code.WRONG_BYTES, "another hash"))

    async with conversation(script) as (connection, _):
        with pytest.raises(IntegrityError, match="another hash"):
            await connection.put(VAULT, "k", 9, DIGEST, opened(b"123456789"))
        assert not connection.is_closed


@pytest.mark.parametrize("data", [b"12345678", b"1234567890"])
async def test_an_object_of_another_length_is_not_sent_to_its_end(data: bytes) -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Go(1, 0))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteError, match="changed its length"):
            await connection.put(VAULT, "k", 9, DIGEST, opened(data))
        assert connection.is_closed


async def test_a_source_that_fails_ends_the_connection() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Go(1, 0))
        await peer.hears_end()

    async def failing(offset: int) -> module.ReadPiece:
        def read() -> bytes:
            raise StorageError("the disk failed")

        return read

    async with conversation(script) as (connection, _):
        with pytest.raises(StorageError, match="the disk failed"):
            await connection.put(VAULT, "k", 9, DIGEST, failing)
        assert connection.is_closed


@pytest.mark.parametrize("answer", [Go(1, 10), Pong(1)])
async def test_an_answer_that_makes_no_sense_ends_the_connection(answer: Go | Pong) -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(answer)
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteUnreachableError):
            await connection.put(VAULT, "k", 9, DIGEST, opened(b"123456789"))
        assert connection.is_closed


class Countdown(trio.abc.Instrument):
    """Cancels when a task has been scheduled so many times."""

    def __init__(self, task: trio.lowlevel.Task, left: int, scope: trio.CancelScope) -> None:
        self.left = left
        self._task = task
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.left -= 1
            if not self.left:
                self._scope.cancel()


async def test_cancelled_anywhere_a_put_leaves_the_connection_closed_or_usable() -> None:
    """At each checkpoint in turn: afterwards the connection is closed, or a further request is answered."""
    data = bytes(DATA_BYTES * 3)
    for step in range(1, 200):
        is_done = False

        async def script(peer: ScriptedPeer) -> None:
            put = await peer.hear()
            while isinstance(put, Put):
                await peer.say(Go(put.request, 0))
                await hear_object(peer, len(data))
                await peer.say(Stored(put.request))
                put = await peer.hear()
            await peer.say(Pong(put.request))  # type: ignore[union-attr]

        async def guarded(peer: ScriptedPeer) -> None:
            try:
                await script(peer)
            except (AssertionError, trio.BrokenResourceError, trio.ClosedResourceError):
                peer.transport.abort()

        async with conversation(guarded) as (connection, _):
            scope = trio.CancelScope()
            instrument = Countdown(trio.lowlevel.current_task(), step, scope)
            with scope:
                trio.lowlevel.add_instrument(instrument)
                try:
                    await connection.put(VAULT, "k", len(data), DIGEST, opened(data, 100_000))
                    is_done = True
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            with trio.fail_after(5):
                if not connection.is_closed:
                    await connection.ping()
        if is_done and instrument.left > 0:
            assert step > 5
            return
    pytest.fail("it never ran through")
