"""The caller's end of a connection to a peer: requests in, answers out, several under way at once.

Answers come in the order of the requests, so those who wait stand in a queue.  One task, `PeerConnection.run`, reads;
it hands each answer to the first of the queue, and it reads no further while a body is not taken, which is the
back-pressure.  Who is cancelled leaves its place in the queue, and the answer is dropped when it comes.  Who is
cancelled in the midst of a body or of a frame leaves the connection in a state that nobody can know, so it is closed.

A body, in either direction, needs the connection alone (an exclusive lease of the pool).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

import trio

from vaultfs.errors import RemoteError, RemoteRefusedError, RemoteUnreachableError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.failure_codes import error_of
from vaultfs.mesh.frames import FIRST_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, FrameError
from vaultfs.mesh.incoming_body import IncomingBody
from vaultfs.mesh.message_codec import decode_from_peer
from vaultfs.mesh.message_stream import ConnectionLostError, MessageStream
from vaultfs.mesh.messages import (
    MAGIC,
    SHARE_AUDITS,
    VERSION,
    Abort,
    Body,
    Data,
    Fail,
    FromPeer,
    Get,
    Go,
    Goodbye,
    Hello,
    Message,
    Ping,
    Pong,
    Put,
    Request,
    Stored,
    Welcome,
)
from vaultfs.mesh.outgoing_object import DataSource

QUESTION_S: Final = 20.0
"""How long a peer may be silent when it was asked something small; who is connected and silent is not to cost more."""
ANSWER_S: Final = 60.0
"""Likewise where it may have to hash a segment first, on a slow disk, or sends one."""
HELLO_S: Final = 10.0
FEATURES: Final = ("shares", "witness", SHARE_AUDITS)
AGENT: Final = "vaultfs"
_HELD_FRAMES: Final = 4
_REQUEST_LIMIT: Final = 1 << 32

_A = TypeVar("_A", bound=FromPeer)
_T = TypeVar("_T")

ReadPiece = Callable[[], bytes]
"""Gives the next bytes of an object, at most 1 MiB; nothing at its end.  Called in a thread."""


class UnansweredError(RemoteUnreachableError):
    """The peer can be reached, and does not answer, or with something else than what is due."""


class Peer(NamedTuple):
    """Who is on the other side.

    Attributes:
        peer_id: proved by TLS.
        name: for messages.
    """

    peer_id: PeerId
    name: str


class _Answer:
    """A place in the queue of those who wait."""

    __slots__ = ("bodies", "event", "last", "message", "number")

    def __init__(
        self, number: int, bodies: trio.MemorySendChannel[bytes] | None = None, last: _Answer | None = None
    ) -> None:
        self.number: Final = number
        self.last: Final = last
        """What takes the same place once this one is `Go`."""
        self.event: Final = trio.Event()
        self.message: FromPeer | None = None
        self.bodies: trio.MemorySendChannel[bytes] | None = bodies


class PeerConnection:
    """A connection on which the peer has said welcome.

    Args:
        stream: after `say_hello`.
        peer: who it is.
        welcome: what it said.

    Attributes:
        peer: who it is.
        is_known: whether the peer knows this machine; if not, only `Ping` and `Pair` are answered.
        features: that both know.
    """

    def __init__(self, stream: MessageStream, peer: Peer, welcome: Welcome) -> None:
        self.peer: Final = peer
        self.is_known: Final = welcome.is_known
        self.features: Final = frozenset(welcome.features)
        self._stream: Final = stream
        self._queue: Final[deque[_Answer]] = deque()
        self._sending: Final = trio.Lock()
        self._next_number = 1
        self._failure: VaultError | None = None
        self._is_leaving = False
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "leaving" if self._is_leaving else "open"
        return f"PeerConnection({self.peer.name}, {state}, {len(self._queue)} under way)"

    @property
    def is_closed(self) -> bool:
        """Whether no further request can be made."""
        return self._is_closed or self._is_leaving

    # --- the task that reads

    async def run(self) -> None:
        """Read answers until the connection ends, for whatever reason; cancelled, it closes the connection."""
        try:
            while not self._is_closed:
                payload = await self._stream.receive_payload()
                if payload is None:
                    self._fail(RemoteUnreachableError(f"{self.peer.name} has closed the connection"))
                    return
                await self._take(decode_from_peer(payload))
        except FrameError as error:
            self._fail(RemoteError(f"{self.peer.name}: {error}"))
        except VaultError as error:
            self._fail(error)
        finally:
            self.abort()

    async def _take(self, message: FromPeer) -> None:
        if isinstance(message, Goodbye):
            self._is_leaving = True
            if not self._queue:
                self._fail(RemoteUnreachableError(f"{self.peer.name} says goodbye: {_printable(message.text)}"))
            return
        if not self._queue:
            if isinstance(message, Fail):
                self._fail(error_of(message.code, f"{self.peer.name}: {_printable(message.text)}"))
                return
            raise FrameError("an answer came to no request")
        first = self._queue[0]
        if isinstance(message, Data):
            if first.bodies is None:
                raise FrameError("bytes of an object came where none were due")
            try:
                await first.bodies.send(message.data)
            except trio.BrokenResourceError:  # who wanted it has gone, and closes the connection
                self._fail(RemoteUnreachableError(f"the request to {self.peer.name} was given up"))
            except trio.ClosedResourceError:
                pass  # the connection was closed meanwhile, and all who wait have been told
            return
        number = getattr(message, "request", None)
        if isinstance(message, Fail) and number == 0:
            self._fail(error_of(message.code, f"{self.peer.name}: {_printable(message.text)}"))
            return
        if number != first.number:
            raise FrameError(f"the answer to request {first.number} is due, and one to {number} came")
        if first.event.is_set():  # a body is under way, and ends early
            if not isinstance(message, Fail) or first.bodies is None:
                raise FrameError("a second answer came to one request")
            self._fail(error_of(message.code, f"{self.peer.name}: {_printable(message.text)}"))
            return
        first.message = message
        first.event.set()
        if first.bodies is None or not isinstance(message, Body) or not message.body_bytes:
            self._queue.popleft()
            if first.bodies is not None:
                first.bodies.close()
            if first.last is not None and isinstance(message, Go):
                self._queue.appendleft(first.last)  # now, as the last answer may come in the same moment

    def _fail(self, error: VaultError) -> None:
        """The first failure counts; everybody who waits hears of it."""
        if self._failure is None:
            name = self.peer.name
            self._failure = error if name in str(error) else type(error)(f"{name}: {error}")
        self._is_closed = True
        while self._queue:
            answer = self._queue.popleft()
            if answer.bodies is not None:
                answer.bodies.close()
            answer.event.set()

    def failure(self) -> VaultError:
        """Why the connection has ended, as a new error."""
        error = self._failure or RemoteUnreachableError(f"the connection to {self.peer.name} was closed")
        return type(error)(str(error))

    def broken(self, what: str) -> VaultError:
        """Close the connection because of what the peer does, and return the error."""
        self._fail(UnansweredError(f"{self.peer.name} {what}"))
        self.abort()
        return self.failure()

    # --- requests

    async def ask(self, make: Callable[[int], Request], kind: type[_A], *, is_long: bool = False) -> _A:
        """Make a request that is answered by one message.

        Others may be under way.  Cancelled while it waits, the answer is dropped when it comes.

        Args:
            make: makes it of its number.
            kind: the answer that is due.
            is_long: the peer may have to read much for it.

        Raises:
            VaultError: what the peer said instead.
            RemoteUnreachableError: it is gone, or does not answer.
        """
        answer = await self._send(make)
        return await self._answer(answer, kind, ANSWER_S if is_long else min(QUESTION_S, ANSWER_S))

    async def ping(self) -> None:
        """See that the peer answers.

        Raises:
            RemoteError: it does not.
        """
        await self.ask(Ping, Pong)

    @asynccontextmanager
    async def get(
        self, vault: VaultId, key: str, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[IncomingBody]:
        """Read an object or a part of it.  The connection must be leased alone; it is closed if not all is taken.

        Raises:
            ObjectMissingError: the peer has none.
            VaultError: as `ask`.
        """
        sender, receiver = trio.open_memory_channel[bytes](_HELD_FRAMES)
        answer = await self._send(lambda number: Get(number, vault, key, offset, length), sender)
        body: IncomingBody | None = None
        try:
            found = await self._answer(answer, Body)
            body = IncomingBody(self, found, receiver, ANSWER_S)
            yield body
        finally:
            receiver.close()
            if body is None or not body.is_complete:
                self._give_up(answer)
            elif self._queue and self._queue[0] is answer:
                self._queue.popleft()
                sender.close()

    async def put(
        self,
        vault: VaultId,
        key: str,
        size_bytes: int,
        digest: bytes,
        open_at: Callable[[int], Awaitable[ReadPiece]],
        *,
        if_absent: bool = False,
        revision: int = 0,
    ) -> int:
        """Store an object.  The connection must be leased alone; it is closed if not all could be sent.

        Args:
            vault: whose it is.
            key: its name.
            size_bytes: its length.
            digest: BLAKE3 of it, 32 bytes.
            open_at: opens it at an offset, because an earlier try may have brought a part.
            if_absent: refuse to replace an object.
            revision: of ``vault.json``; else 0.

        Returns:
            How many bytes were sent; none if the peer had it.

        Raises:
            NoSpaceError, ObjectExistsError, IntegrityError, RemoteRefusedError: the peer does not take it.
            VaultError: as `ask`, and what reading the object raises.
        """
        answer = await self._send(
            lambda number: Put(number, vault, key, size_bytes, digest, if_absent, revision), has_two=True
        )
        final = answer.last
        assert final is not None, "it was asked for"
        try:
            found = await self._message(answer)
        except VaultError:
            raise
        except BaseException:  # cancelled: the peer may wait for bytes from now on
            self.abort()
            raise
        if isinstance(found, Stored):
            return 0
        if not isinstance(found, Go):
            raise self._unexpected(found, Go)
        if found.offset > size_bytes:
            raise self.broken("wants more of an object than there is")
        try:
            sent = await self._send_body(final, await open_at(found.offset), size_bytes - found.offset)
            await self._answer(final, Stored)
        finally:
            if not final.event.is_set():
                self.abort()
        return sent

    async def _send_body(self, final: _Answer, read: ReadPiece, count: int) -> int:
        """Send the bytes, as long as the peer does not say that it is in vain."""
        source = DataSource(read, count, final.event.is_set)
        async with self._sending:
            try:
                await self._stream.send_frames(source.next_frame, _in_thread)
            except ConnectionLostError as error:
                self._fail(error)  # the peer may have said why before it closed; who reads has it then
                raise self.failure() from error
            if source.sent_bytes < count:
                await self._write(Abort(final.number))
        return source.sent_bytes

    async def _send(
        self,
        make: Callable[[int], Request],
        bodies: trio.MemorySendChannel[bytes] | None = None,
        *,
        has_two: bool = False,
    ) -> _Answer:
        """Make a request; ``has_two``: `Go` is followed by another answer to it."""
        async with self._sending:
            if self.is_closed:
                raise self.failure()
            answer = _Answer(self._next_number, bodies, _Answer(self._next_number) if has_two else None)
            self._next_number = self._next_number % (_REQUEST_LIMIT - 1) + 1
            self._queue.append(answer)
            await self._write(make(answer.number))
            return answer

    async def _write(self, message: Request | Abort | Goodbye) -> None:
        """Send a message whole, or close the connection."""
        is_sent = False
        try:
            with trio.move_on_after(ANSWER_S):
                await self._stream.send(message)
                is_sent = True
        except VaultError as error:
            # The peer may have said why before it closed; who reads has it then.
            self._fail(error)
        finally:
            if not is_sent:
                self.abort()
        if not is_sent:
            if self._failure is None:
                raise self.broken(f"has taken nothing for {ANSWER_S:.0f} s")
            raise self.failure()

    async def _answer(self, answer: _Answer, kind: type[_A], patience_s: float | None = None) -> _A:
        message = await self._message(answer, patience_s)
        if not isinstance(message, kind):
            raise self._unexpected(message, kind)
        return message

    async def _message(self, answer: _Answer, patience_s: float | None = None) -> FromPeer:
        patience_s = ANSWER_S if patience_s is None else patience_s
        with trio.move_on_after(patience_s):
            await answer.event.wait()
            message = answer.message
            if message is None:
                raise self.failure()
            if isinstance(message, Fail):
                raise error_of(message.code, f"{self.peer.name}: {_printable(message.text)}")
            return message
        raise self.broken(f"has not answered for {patience_s:.0f} s")

    def _unexpected(self, message: FromPeer, kind: type[Message]) -> VaultError:
        return self.broken(f"answers {type(message).__name__} where {kind.__name__} is due")

    def _give_up(self, answer: _Answer) -> None:
        """End a body that nobody wants any more: nothing can follow it on this connection but all of it."""
        if answer.message is None or isinstance(answer.message, Body):
            self.abort()

    # --- the end

    def abort(self) -> None:
        """Close at once.  Never waits; doing it twice is harmless."""
        self._fail(RemoteUnreachableError(f"the connection to {self.peer.name} was closed"))
        self._stream.abort()

    async def aclose(self) -> None:
        """Close politely; cancelled, it closes all the same."""
        try:
            if not self.is_closed and not self._queue:
                async with self._sending:
                    await self._write(Goodbye("done"))
                await self._stream.aclose()
        except VaultError:
            return  # it has ended already, which is what was wanted
        finally:
            self.abort()


async def say_hello(stream: MessageStream, peer: Peer) -> PeerConnection:
    """Begin a conversation.

    Args:
        stream: after the handshake of TLS, with the identity checked.
        peer: who it is.

    Raises:
        RemoteRefusedError, RemoteUnreachableError, RemoteError: the peer does not want to talk.
    """
    stream.set_limit(FIRST_PAYLOAD_BYTES)
    with trio.move_on_after(HELLO_S):
        await stream.send(Hello(MAGIC, (VERSION,), FEATURES, AGENT))
        payload = await stream.receive_payload()
        if payload is None:
            raise RemoteUnreachableError(f"{peer.name} has closed the connection")
        answer = decode_from_peer(payload)
        if isinstance(answer, Fail):
            raise error_of(answer.code, f"{peer.name}: {_printable(answer.text)}")
        if not isinstance(answer, Welcome) or answer.version != VERSION:
            raise RemoteError(f"{peer.name} speaks another protocol; use the same version of vaultfs on both sides")
        stream.set_limit(MAX_PAYLOAD_BYTES)
        return PeerConnection(stream, peer, answer)
    raise RemoteUnreachableError(f"{peer.name} does not answer")


def require_known(connection: PeerConnection, own_id: str) -> None:
    """See that the peer knows this machine.

    Raises:
        RemoteRefusedError: it does not.
    """
    if not connection.is_known:
        raise RemoteRefusedError(
            f"{connection.peer.name} does not know this machine; run there: vaultfs peer accept {own_id}"
        )


async def _in_thread(work: Callable[..., _T], *args: Any) -> _T:
    return await trio.to_thread.run_sync(work, *args)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
