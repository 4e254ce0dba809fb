"""Bodies that threads move over TLS: how many turns that takes, and what becomes of errors, cancellation and aborts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from vaultfs.mesh import tls_stream
from vaultfs.mesh.outgoing_lot import LOT_SEND_BYTES
from vaultfs.mesh.tls_stream import TlsStream

from .test_tls_end import connected

MIB = 1 << 20
PIECE = bytes(range(256)) * 1024
PATIENCE_S = 30

_T = TypeVar("_T")


class Turns:
    """Does something in a thread, and counts."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, work: Callable[..., _T], *args: Any) -> _T:
        self.count += 1
        return await trio.to_thread.run_sync(work, *args)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on how fast the machine is."""
    monkeypatch.setattr(tls_stream, "LOT_S", 1e9)
    monkeypatch.setattr(tls_stream, "_LINGER_MS", 1000 * PATIENCE_S)


def frames_of(*frames: bytes) -> Callable[[], Sequence[bytes] | None]:
    """Frames in two parts each."""
    left: Iterator[Sequence[bytes]] = iter([(frame[:9], frame[9:]) if frame[9:] else (frame,) for frame in frames])
    return lambda: next(left, None)


async def take(stream: TlsStream, count: int, turns: Turns) -> bytes:
    """Read so many bytes, in threads."""
    buffer = bytearray(count)
    position = 0

    def read() -> int | None:
        nonlocal position
        while position < count:
            found = stream.read_now(memoryview(buffer)[position:])
            if not found:
                return found
            position += found
        return position

    while position < count:
        with stream.borrowed():
            found = await turns(read)
        assert found != 0, "the stream has ended"
        if found is None:
            await stream.wait_readable()
    return bytes(buffer)


@pytest.mark.usefixtures("unhurried")
async def test_sixteen_mib_take_one_turn_on_each_side() -> None:
    ours, theirs = await connected()
    sending, receiving = Turns(), Turns()
    pieces = [PIECE] * (16 * MIB // len(PIECE))
    found = []

    async def receive() -> None:
        found.append(await take(theirs, 16 * MIB, receiving))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        assert not await ours.send_some(frames_of(*pieces), sending)
    assert found == [b"".join(pieces)]
    assert (sending.count, receiving.count) == (1, 1)
    ours.abort()
    theirs.abort()


class Counted:
    """What is sealed, and how often it is taken out."""

    def __init__(self, stream: TlsStream) -> None:
        self._inner = stream._outgoing
        self.sizes: list[int] = []

    def read(self) -> bytes:
        data = self._inner.read()
        self.sizes.append(len(data))
        return data


@pytest.mark.usefixtures("unhurried")
async def test_the_head_of_a_frame_goes_along_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone it would be a packet of its own, and wake the other side."""
    ours, theirs = await connected()
    sealed = Counted(ours)
    monkeypatch.setattr(ours, "_outgoing", sealed)
    frames = [PIECE, PIECE[:9], PIECE[:100], PIECE + PIECE[:1]]
    found = []

    async def receive() -> None:
        found.append(await take(theirs, sum(map(len, frames)), Turns()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        assert not await ours.send_some(frames_of(*frames), Turns())
    assert found == [b"".join(frames)]
    assert len(sealed.sizes) == 2 + 1 + 1 + 2
    assert max(sealed.sizes) < LOT_SEND_BYTES + 512, "so much is held of what is sealed"
    ours.abort()
    theirs.abort()


async def test_bytes_come_whole_however_short_the_turns_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_stream, "LOT_S", 0.0)
    monkeypatch.setattr(tls_stream, "_LINGER_MS", 0)
    ours, theirs = await connected()
    pieces = [bytes([number]) * (number * 1000 + 1) for number in range(256)]
    next_frame = frames_of(*pieces)
    found = []

    async def receive() -> None:
        found.append(await take(theirs, sum(map(len, pieces)), Turns()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        while await ours.send_some(next_frame, Turns()):
            pass
    assert found == [b"".join(pieces)]
    await ours.aclose()
    with theirs.borrowed():
        assert await trio.to_thread.run_sync(theirs.read_now, memoryview(bytearray(1))) in {None, 0}
    theirs.abort()


@pytest.mark.usefixtures("unhurried")
async def test_what_goes_wrong_between_two_frames_leaves_the_stream() -> None:
    ours, theirs = await connected()

    def failing() -> Iterator[Sequence[bytes]]:
        yield (b"a", b"bc")
        raise OSError("the disk failed")

    left = failing()
    with pytest.raises(OSError, match="the disk failed"):
        await ours.send_some(lambda: next(left), Turns())
    await ours.send_all(b"def")
    assert await take(theirs, 6, Turns()) == b"abcdef"
    ours.abort()
    theirs.abort()


async def test_cancelled_in_the_midst_of_a_frame_nothing_more_can_be_sent() -> None:
    ours, theirs = await connected()
    next_frame = frames_of(*[PIECE] * 400)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                while await ours.send_some(next_frame, Turns()):
                    pass

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)  # nobody reads
            scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"x")
    ours.abort()
    theirs.abort()


async def test_after_a_wait_a_turn_ends_with_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes little at a time has the time of one frame for each, and not for all of them."""
    monkeypatch.setattr(tls_stream, "LOT_S", 1e9)
    monkeypatch.setattr(tls_stream, "_LINGER_MS", 0)
    ours, theirs = await connected()
    left = [PIECE] * 400
    has_more: list[bool] = []

    async def send() -> None:
        has_more.append(await ours.send_some(lambda: (left.pop(),) if left else None, Turns()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)  # the sockets are full
        count = (400 - len(left)) * len(PIECE)
        assert left
        await take(theirs, count, Turns())
    assert has_more == [True]
    assert (400 - len(left)) * len(PIECE) == count
    ours.abort()
    theirs.abort()


async def test_a_socket_is_closed_only_when_no_thread_uses_it() -> None:
    ours, theirs = await connected()
    has_begun, may_end = threading.Event(), threading.Event()
    numbers = []

    def next_frame() -> Sequence[bytes]:
        has_begun.set()
        assert may_end.wait(PATIENCE_S)
        numbers.append(ours._socket.socket.fileno())
        return (b"x",)

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await ours.send_some(next_frame, Turns())

        nursery.start_soon(send)
        assert await trio.to_thread.run_sync(has_begun.wait, PATIENCE_S)
        ours.abort()
        assert await theirs.receive_some() == b""  # the other side hears of it at once
        may_end.set()
    assert numbers != [-1]
    assert ours._socket.socket.fileno() == -1
    theirs.abort()


async def test_an_abort_ends_those_who_wait_while_a_thread_works() -> None:
    ours, theirs = await connected()
    with ours.borrowed():
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                    await ours.wait_readable()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            ours.abort()
        with pytest.raises(trio.ClosedResourceError):
            ours.read_now(memoryview(bytearray(1)))
    assert ours._socket.socket.fileno() == -1
    theirs.abort()
