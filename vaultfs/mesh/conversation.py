"""One connection of a peer: hello, then requests, each answered before the next is read.

Order and back-pressure come of that: what a caller sends ahead waits in TCP, so a caller costs one frame and what is
under way.  The disk is used in threads.  Every wait for the caller ends: see docs/mesh-protocol.md, section 14.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import trio

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.answers import Answers, RevokedError, SimpleRequest, failure
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import DATA_BYTES, FIRST_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, FrameError
from vaultfs.mesh.identity import short_peer_id
from vaultfs.mesh.incoming_object import End, IncomingObject
from vaultfs.mesh.message_codec import decode_from_caller, encode
from vaultfs.mesh.message_stream import ConnectionLostError, MessageStream, SilenceError
from vaultfs.mesh.messages import (
    MAGIC,
    SHARE_AUDITS,
    VERSION,
    Abort,
    Audit,
    Body,
    Challenge,
    Data,
    Delete,
    Fail,
    FromCaller,
    Get,
    Go,
    Goodbye,
    Have,
    Hello,
    List,
    Message,
    Nonce,
    Pair,
    Paired,
    Ping,
    Put,
    Stored,
    Welcome,
)
from vaultfs.mesh.outgoing_object import DataSource
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.quiet_log import QuietLog
from vaultfs.mesh.replica_reading import Reader

log = logging.getLogger(__name__)

FEATURES: Final = frozenset({"shares", "witness", SHARE_AUDITS})
AGENT: Final = "vaultfs"
IDLE_S: Final = 330.0
MOST_BODIES: Final = 32
_MOST_THREADS: Final = 16
MOST_BODIES_OF_ONE: Final = 8
"""Of one caller at once.  Who takes what is sent as slowly as is allowed keeps a place for hours."""
PLACE_S: Final = 50.0
"""For a body to wait for a place; callers wait for an answer for 60 s, and are to hear why there is none."""
MOST_COSTLY: Final = 4
"""Requests of one caller that are worked on at once of those that can cost much for few bytes, as 64 MiB are read for
an audit, and 128 MiB to find that an object is there already: so one that asks on all its connections all the time
leaves threads and disk to others."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Share:
    """What one caller may take at once, on all its connections together.

    Attributes:
        bodies: taken while an object is on its way.
        costly: taken by a request that can cost much.
    """

    def __init__(self) -> None:
        self.bodies: Final = trio.CapacityLimiter(MOST_BODIES_OF_ONE)
        self.costly: Final = trio.CapacityLimiter(MOST_COSTLY)


class Resources:
    """What the connections of a peer share.

    Args:
        answers: permission and store.
        bodies: so many objects are on their way at once; others wait.

    Attributes:
        answers: permission and store.
        bodies: taken while an object is on its way.
        failures: where those are logged that any request could cause.
    """

    def __init__(self, answers: Answers, bodies: int = MOST_BODIES) -> None:
        self.answers: Final = answers
        self.bodies: Final = trio.CapacityLimiter(bodies)
        self.failures: Final = QuietLog(log)
        self._threads: Final = trio.CapacityLimiter(_MOST_THREADS)
        self._shares: Final[WeakValueDictionary[PeerId, Share]] = WeakValueDictionary()

    def share(self, caller: PeerId) -> Share:
        """A caller's: the same for all its connections, which keep it."""
        found = self._shares.get(caller)
        if found is None:
            found = self._shares[caller] = Share()
        return found

    async def disk(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something in a thread.  Once it has begun it is waited for, cancelled or not."""
        return await trio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._threads)


@dataclass
class Served:
    """What a connection did, for counters."""

    requests: int = 0
    stored: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Conversation:
    """One connection.

    Args:
        stream: after the handshake; it belongs to the conversation from now on.
        caller: who TLS has proved to be there.
        is_known: whether there is a grant for it.
        resources: shared with other connections.
        on_known: called when an unknown caller has paired.
        idle_s: so long it may say nothing between two requests.

    Attributes:
        caller: who is there.
        is_known: whether it had a grant when it came, or has paired since.
        served: what was done.
    """

    def __init__(
        self,
        stream: MessageStream,
        caller: PeerId,
        *,
        is_known: bool,
        resources: Resources,
        on_known: Callable[[], None] = lambda: None,
        idle_s: float = IDLE_S,
    ) -> None:
        self.caller: Final = caller
        self.is_known = is_known
        self.served: Final = Served()
        self._stream: Final = stream
        self._resources: Final = resources
        self._answers: Final = resources.answers
        self._on_known: Final = on_known
        self._idle_s: Final = idle_s
        self._share: Final = resources.share(caller)
        self._last_request = 0
        self._nonce: bytes | None = None
        self._farewell: str | None = None
        self._waiting: trio.CancelScope | None = None
        self._is_over = False

    def leave(self, why: str) -> None:
        """Say goodbye as soon as what was read is answered; ``why`` is for the caller."""
        self._farewell = why
        if self._waiting is not None:
            self._waiting.cancel()

    async def greet(self) -> bool:
        """Hear the caller's hello and answer it.

        Returns:
            Whether the conversation goes on.

        Raises:
            ConnectionLostError: the caller went away, or took too long.
            FrameError: it says something else; it was told so.
        """
        self._stream.set_limit(FIRST_PAYLOAD_BYTES)
        payload = await self._stream.receive_payload()
        if payload is None:
            return False
        hello = decode_from_caller(payload)
        if not isinstance(hello, Hello) or hello.magic != MAGIC:
            raise FrameError("a conversation begins with hello")
        if VERSION not in hello.versions:
            raise FrameError(f"this peer speaks version {VERSION} of the protocol only; update vaultfs")
        features = tuple(word for word in dict.fromkeys(hello.features) if word in FEATURES)
        await self._stream.send(Welcome(VERSION, features, AGENT, self.is_known))
        self._stream.set_limit(MAX_PAYLOAD_BYTES)
        return True

    async def run(self) -> None:
        """Answer requests until one side leaves.  Cancelled or failed, the stream is still to be closed.

        Raises:
            ConnectionLostError: the caller went away, or was too slow.
            FrameError: it does not keep to the protocol.
            RevokedError: its grant is gone.
        """
        while not self._is_over and (payload := await self._next_payload()) is not None:
            message = decode_from_caller(payload)
            del payload
            if isinstance(message, Goodbye):
                break
            if isinstance(message, Abort) and message.request == self._last_request:
                continue  # of a transfer that has failed here meanwhile; the caller has heard of it, or will
            answer = await self._answer(message)
            frame = None if answer is None else encode(answer)
            # Up to 256 KiB each, which 128 connections must not keep that are idle, or do not read their answers.
            del message, answer
            if frame is not None:
                await self._stream.send(frame)
            del frame
        if self._farewell is not None:
            await self._stream.send(Goodbye(self._farewell))
        await self._stream.aclose()

    async def _next_payload(self) -> bytes | None:
        payload = self._stream.next_payload()
        if payload is not None or self._farewell is not None:
            return payload
        with trio.CancelScope() as self._waiting:
            try:
                payload = await self._stream.receive_payload(self._idle_s)
            except SilenceError:
                self._farewell = "nothing was asked for a long time"
        self._waiting = None
        return payload

    async def _answer(self, message: FromCaller) -> Message | None:
        """The answer to a request; None if it was given, as to those with a body."""
        if isinstance(message, Hello | Goodbye | Data | Abort):
            raise FrameError(f"{type(message).__name__} came where a request was due")
        if message.request <= self._last_request:
            raise FrameError("the numbers of requests do not rise")
        self._last_request = message.request
        self.served.requests += 1
        nonce, self._nonce = self._nonce, None
        if not self.is_known and not isinstance(message, Ping | Pair):
            return Fail(message.request, Code.REFUSED, "this peer does not know you")
        if isinstance(message, Get):
            await self._get(message)
        elif isinstance(message, Put):
            await self._put(message)
        else:
            return await self._answer_of(message, nonce)
        return None

    async def _answer_of(self, message: Challenge | SimpleRequest, nonce: bytes | None) -> Message:
        try:
            if isinstance(message, Challenge):
                self._nonce = await self._resources.disk(self._answers.challenge, self.caller)
                return Nonce(message.request, self._nonce)
            async with self._share.costly if isinstance(message, Audit | Have | List) else nullcontext():
                answer = await self._resources.disk(self._answers.answer, self.caller, message, nonce)
        except RevokedError:
            raise
        except VaultError as error:
            return self._failure(message.request, error)
        if isinstance(message, Delete):
            log.info("peer %s deleted objects of vault %s", short_peer_id(self.caller), message.vault.hex())
        elif isinstance(answer, Paired):
            log.info("peer %s has paired", short_peer_id(self.caller))
            self.is_known = True
            self._on_known()
        return answer

    @asynccontextmanager
    async def _place(self, request: int) -> AsyncIterator[bool]:
        """A place for an object; or not, when none has become free in time, which the caller was told then."""
        async with AsyncExitStack() as places:
            with trio.move_on_after(PLACE_S) as waiting:
                await places.enter_async_context(self._share.bodies)
                await places.enter_async_context(self._resources.bodies)
            if waiting.cancelled_caught:
                await self._stream.send(Fail(request, Code.BUSY, "too many objects are on their way"))
            yield not waiting.cancelled_caught

    async def _get(self, message: Get) -> None:
        async with self._place(message.request) as has_place:
            if not has_place:
                return
            try:
                reader = await self._resources.disk(self._answers.open_reader, self.caller, message)
            except RevokedError:
                raise
            except VaultError as error:
                await self._stream.send(self._failure(message.request, error))
                return
            try:
                await self._stream.send(Body(message.request, reader.size_bytes, reader.body_bytes))
                await self._send_body(message.request, reader)
            finally:
                reader.close()

    async def _send_body(self, request: int, reader: Reader) -> None:
        source = DataSource(partial(reader.read, DATA_BYTES), reader.body_bytes)
        try:
            await self._stream.send_frames(source.next_frame, self._resources.disk)
        except ConnectionLostError:
            raise
        except VaultError as error:
            await self._stream.send(self._failure(request, error))
        finally:
            self.served.sent_bytes += source.sent_bytes

    async def _put(self, message: Put) -> None:
        disk = self._resources.disk
        async with self._place(message.request) as has_place:
            if not has_place:
                return
            try:
                async with self._share.costly:
                    upload = await disk(self._answers.begin_put, self.caller, message)
            except RevokedError:
                raise
            except VaultError as error:
                await self._stream.send(self._failure(message.request, error))
                return
            if upload is None:
                await self._stream.send(Stored(message.request))
                return
            try:
                await self._stream.send(Go(message.request, upload.offset))
                answer = await self._take_object(message, upload)
            finally:
                # no deadline: it closes files, which cannot be abandoned; after `finish` it does nothing
                with trio.CancelScope(shield=True):
                    await disk(upload.abort, keep=True)
            if answer is not None:
                await self._stream.send(answer)

    async def _take_object(self, message: Put, upload: Upload) -> Message | None:
        """The last answer to a `Put`; None if it was given while bytes were still coming."""
        incoming = IncomingObject(self._stream, upload, self._resources.disk, partial(self._failure, message.request))
        try:
            end = await incoming.take(message.request)
        finally:
            self.served.received_bytes += incoming.received_bytes
            if incoming.is_last:
                self._is_over = True
        if end is End.FAILED:
            return None
        if end is End.ABORTED:
            return Fail(message.request, Code.FAILED, "the transfer was given up")
        try:
            await self._resources.disk(self._answers.finish_put, self.caller, message, upload)
        except RevokedError:
            raise
        except VaultError as error:
            return self._failure(message.request, error)
        self.served.stored += 1
        return Stored(message.request)

    def _failure(self, request: int, error: VaultError) -> Fail:
        told = failure(request, error)
        if told.code in {Code.FAILED, Code.FULL}:
            self._resources.failures.warning(f"a request of peer {short_peer_id(self.caller)} failed: %s", error)
        return told
