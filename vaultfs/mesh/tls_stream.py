"""TLS over a socket, with large reads: one system call and one turn of the loop for four records instead of one.

A `trio.abc.Stream` like `trio.SSLStream`, with the differences that a mesh wants:

- it does not insist on a farewell of TLS at the end: frames tell whether something was cut;
- `abort` closes at once and awaits nothing, so that a pool can let go of a connection in a cancelled task;
- what it holds is bounded: `RECEIVE_BYTES` as they came and as they were opened, and `SEND_BYTES` sealed, whatever
  the other side asks of TLS;
- bodies are moved by threads, in lots: a thread that reads, opens, hashes and writes until nothing more is there
  takes a third less of the processor's time than one to which the loop hands over each piece.

One task may send while another receives.  A send that was cancelled leaves half a record on the way, so nothing more
is sent then; a receive may be cancelled, and called again.
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import trio

from vaultfs.mesh.outgoing_lot import OutgoingLot

RECORD_BYTES: Final = 16 << 10
"""Most bytes of plaintext that TLS puts into one record."""
RECEIVE_BYTES: Final = 64 << 10
BIO_BYTES: Final = 32 << 10
"""Given to OpenSSL at once, which keeps room for the most that it ever held."""
SEND_BYTES: Final = 64 << 10
LOT_RECEIVE_BYTES: Final = 128 << 10
LOT_BIO_BYTES: Final = 64 << 10
"""`BIO_BYTES` of a body.  With half of it both sides took 4 % longer, and with twice as much 7 % less, in single
trials; but then 128 connections that have brought one would keep 22 MiB."""
LOT_S: Final = 0.1
"""How long a thread moves bytes before it lets others, and a cancellation, have their turn."""
KEY_ANSWERS_BYTES: Final = 4 << 10
"""While bytes are read in a thread nothing is sent.  For each 27 bytes that ask for new keys of TLS an answer of 27
bytes waits for that; who asks more than 150 times within one object wants to fill the memory."""
_LINGER_MS: Final = 20
"""How long a thread waits for the other side before it leaves that to the loop.  A turn there costs some 0.2 ms of the
processor, and two sides that take turns make each other wait: with 2 ms it was a tenth of all that a body takes."""
_FAREWELL_S: Final = 1.0


class TlsStream(trio.abc.Stream):
    """One side of a connection.

    Args:
        socket: connected; it belongs to this stream from now on.
        context: of `vaultfs.mesh.tls`.
        is_server: whether this side was called.
    """

    def __init__(self, socket: trio.SocketStream, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._socket: Final = socket
        self._incoming: Final = ssl.MemoryBIO()
        self._outgoing: Final = ssl.MemoryBIO()
        self._tls: Final = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._sealed = memoryview(b"")
        self._sealing: Final = threading.Lock()
        """OpenSSL's connection is for one thread at a time."""
        self._borrowers = 0
        self._sending: Final = trio.StrictFIFOLock()
        self._is_send_broken = False
        self._has_ended = False
        self._is_closed = False

    def selected_alpn_protocol(self) -> str | None:
        """What both sides speak inside, after the handshake."""
        return self._tls.selected_alpn_protocol()

    def certificate(self) -> bytes | None:
        """What the other side showed, in DER, after the handshake."""
        return self._tls.getpeercert(binary_form=True)

    async def do_handshake(self) -> None:
        """Agree on keys, and see the other side's certificate.

        Cancelled or failed, it leaves a stream that can only be closed.

        Raises:
            trio.BrokenResourceError: the other side went away, or speaks no TLS that is accepted here; it was told why.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError as error:
                await self._flush()  # the alert
                raise trio.BrokenResourceError(_reason(error)) from error
            else:
                await self._flush()
                return
            came = await self._socket.receive_some(RECEIVE_BYTES)
            if not came:
                raise trio.BrokenResourceError("the other side went away during the handshake")
            self._incoming.write(came)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What came, `RECEIVE_BYTES` or so at most; nothing at the end, whether that was announced or not.

        Cancelled, it has lost nothing.

        Raises:
            trio.BrokenResourceError: the connection broke, or what came was not sealed by the other side.
            trio.ClosedResourceError: this side closed it.
        """
        most_bytes = RECEIVE_BYTES + RECORD_BYTES if max_bytes is None else max_bytes
        if most_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError("this side has closed the connection")
            data = self._open(most_bytes)
            if data or self._has_ended:
                if not has_waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return data
            if self._outgoing.pending:  # the other side asked for new keys
                await self._flush()
            self._sealed = memoryview(await self._socket.receive_some(RECEIVE_BYTES))
            has_waited = True
            self._has_ended = not self._sealed

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes.  Cancelled, nobody knows how many went, and nothing more can be sent.

        Raises:
            trio.BrokenResourceError: the connection broke, or a send was cancelled before.
            trio.ClosedResourceError: this side closed it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._sending:
            self._require_sendable()
            with memoryview(data) as view:
                for start in range(0, len(view), SEND_BYTES):
                    self._is_send_broken = True  # until all of it went: half a message is of no use
                    with self._sealing:
                        try:
                            self._tls.write(view[start : start + SEND_BYTES])
                        except ssl.SSLError as error:
                            raise trio.BrokenResourceError(_reason(error)) from error
                        sealed = self._outgoing.read()
                    await self._socket.send_all(sealed)
            self._is_send_broken = False

    async def send_some(
        self,
        next_frame: Callable[[], Sequence[bytes | memoryview] | None],
        in_thread: Callable[[Callable[[], bool | None]], Awaitable[bool | None]],
    ) -> bool:
        """Send at least one frame, in a thread; as many as it can in `LOT_S` without waiting, and each of them whole.

        Cancelled in the midst of a frame, nothing more can be sent.

        Args:
            next_frame: gives the parts of a frame; None at the end.
            in_thread: calls something in a thread and waits for it, cancelled or not.

        Returns:
            Whether there may be more.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
            Exception: what ``next_frame`` raises; the frames before that one were sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._sending:
            self._require_sendable()
            lot = OutgoingLot(next_frame)
            try:
                while True:
                    with self.borrowed():
                        has_more = await in_thread(partial(self._send_lot, lot))
                    if has_more is not None:
                        return has_more
                    await trio.lowlevel.wait_writable(self._socket.socket)
            finally:
                self._is_send_broken = not lot.is_between_frames

    def _send_lot(self, lot: OutgoingLot) -> bool | None:
        """In a thread: send a lot.  Returns whether there may be more frames; None: one waits for the other side."""
        descriptor = self._socket.socket.fileno()
        end_s = time.monotonic() + LOT_S
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError("this side has closed the connection")
            if lot.sealed:
                try:
                    lot.sealed = lot.sealed[os.write(descriptor, lot.sealed) :]
                except BlockingIOError:
                    if not _is_ready(descriptor, select.POLLOUT):
                        lot.is_blocked = True
                        return None
                except OSError as error:
                    raise trio.BrokenResourceError(str(error)) from error
                continue
            if lot.is_between_frames:
                if lot.has_sent and (lot.is_blocked or time.monotonic() > end_s):
                    return True
                if not lot.begin_frame():
                    return False
            with self._sealing:
                try:
                    lot.seal_next(self._tls.write, self._outgoing.read)
                except ssl.SSLError as error:
                    raise trio.BrokenResourceError(_reason(error)) from error

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """While a thread uses the connection: who aborts it meanwhile shuts it down, and it is closed at the end.

        The number of a closed socket may be another's already when the thread uses it.
        """
        self._borrowers += 1
        try:
            yield
        finally:
            self._borrowers -= 1
            if self._is_closed and not self._borrowers:
                self._socket.socket.close()

    def read_now(self, into: memoryview) -> int | None:
        """In a thread, while it is `borrowed`: what has come, or comes at once.

        Args:
            into: where to; what is not asked for here stays.

        Returns:
            How many bytes; 0 at the end; None: nothing is there.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: as `receive_some`.
        """
        count, wanted, read = 0, len(into), self._tls.read
        end_s = 0.0  # a record may come in pieces; one that holds new keys only can be followed by the next for ever
        while not self._is_closed:
            with self._sealing:
                try:
                    while count < wanted:
                        came = read(RECORD_BYTES, into[count:])
                        if not came:  # the farewell of TLS
                            self._has_ended = True
                            break
                        count += came  # type: ignore[operator]  # typeshed: bytes, whether there is a buffer or not
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    raise trio.BrokenResourceError(_reason(error)) from error
                if self._outgoing.pending > KEY_ANSWERS_BYTES:
                    raise trio.BrokenResourceError("TLS: the other side asks for new keys all the time")
            if count:
                return count
            if self._has_ended:
                return 0
            if not self._sealed:
                now_s = time.monotonic()
                end_s = end_s or now_s + LOT_S
                if now_s > end_s or not self._receive_now():
                    return None
            self._incoming.write(self._sealed[:LOT_BIO_BYTES])
            self._sealed = self._sealed[LOT_BIO_BYTES:]
        raise trio.ClosedResourceError("this side has closed the connection")

    def _receive_now(self) -> bool:
        """In a thread: receive what is not opened yet.  Whether something came, or the end."""
        descriptor = self._socket.socket.fileno()
        try:
            self._sealed = memoryview(os.read(descriptor, LOT_RECEIVE_BYTES))
        except BlockingIOError:
            return _is_ready(descriptor, select.POLLIN) and self._receive_now()
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._has_ended = not self._sealed
        return True

    async def wait_readable(self) -> None:
        """Wait until something comes, when `read_now` has found nothing.

        Raises:
            trio.ClosedResourceError: this side closed it.
        """
        await trio.lowlevel.wait_readable(self._socket.socket)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes something."""
        async with self._sending:
            self._require_sendable()
            await self._socket.wait_send_all_might_not_block()

    async def finish_sending(self) -> None:
        """Tell the other side that nothing more comes; it may still be heard.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
        """
        async with self._sending:
            self._require_sendable()
            with contextlib.suppress(ssl.SSLError):  # it would wait for the other side's farewell, which nobody needs
                self._tls.unwrap()
            await self._send_sealed()
            self._is_send_broken = True
            await self._socket.send_eof()

    async def aclose(self) -> None:
        """Say goodbye within a second, and close.  Cancelled, it has closed."""
        try:
            if not self._is_closed and not self._is_send_broken and not self._sending.locked():
                with trio.move_on_after(_FAREWELL_S):
                    await self.finish_sending()
        except (trio.BrokenResourceError, trio.ClosedResourceError):  # another task may abort it meanwhile
            pass
        finally:
            self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Close at once.  Tasks that wait in it get `trio.ClosedResourceError`."""
        self._is_closed = True
        if not self._borrowers:
            self._socket.socket.close()
            return
        trio.lowlevel.notify_closing(self._socket.socket)
        with contextlib.suppress(OSError):  # the other side has gone already
            self._socket.socket.shutdown(trio.socket.SHUT_RDWR)

    def _open(self, most_bytes: int) -> bytes:
        """What can be opened of what came."""
        with self._sealing:
            return self._open_alone(most_bytes)

    def _open_alone(self, most_bytes: int) -> bytes:
        parts: list[bytes] = []
        left = most_bytes
        while left:
            try:
                part = self._tls.read(min(left, RECORD_BYTES))
            except ssl.SSLWantReadError:
                if not self._sealed:
                    break
                self._incoming.write(self._sealed[:BIO_BYTES])
                self._sealed = self._sealed[BIO_BYTES:]
                continue
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(_reason(error)) from error
            if not part:  # the farewell of TLS
                self._has_ended = True
                break
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _require_sendable(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this side has closed the connection")
        if self._is_send_broken:
            raise trio.BrokenResourceError("nothing more can be sent on this connection")

    async def _flush(self) -> None:
        async with self._sending:
            self._require_sendable()
            await self._send_sealed()

    async def _send_sealed(self) -> None:
        """Send the records that are ready, while the lock is held."""
        sealed = self._outgoing.read()
        if not sealed:
            return
        self._is_send_broken = True
        await self._socket.send_all(sealed)
        self._is_send_broken = False


def _is_ready(descriptor: int, event: int) -> bool:
    """Whether a socket becomes ready within `_LINGER_MS`; in a thread."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(_LINGER_MS))


def _reason(error: ssl.SSLError) -> str:
    return f"TLS: {(error.reason or type(error).__name__).lower().replace('_', ' ')}"
