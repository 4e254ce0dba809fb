"""Peers that are not what they should be: some speak any bytes, some are real ones whose store lies.

They run in threads of the tests, and are called by real processes.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import trio

from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.frames import FrameDecoder
from vaultfs.mesh.grants import Grant, Grants
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.message_codec import decode_from_caller, encode
from vaultfs.mesh.messages import FromCaller, Hello, Message, Range, Welcome
from vaultfs.mesh.pairing import Pairings
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_reading import Reader
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import Limits, open_listeners, serve
from vaultfs.mesh.tls import handshake, server_context
from vaultfs.mesh.tls_stream import TlsStream

from .machines import DEADLINE_S, HOME

LIMITS: Final = Limits(closing_s=1.0, scrub_pause_s=3600.0)
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Caller:
    """Somebody who has called a hostile peer."""

    def __init__(self, stream: TlsStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()

    async def hear(self) -> FromCaller:
        """What it says next."""
        while (payload := next(self._decoder.payloads(), None)) is None:
            data = await self.stream.receive_some()
            if not data:
                raise trio.BrokenResourceError
            self._decoder.feed(data)
        return decode_from_caller(payload)

    async def say(self, *messages: Message | bytes) -> None:
        """Send messages, or bytes."""
        for message in messages:
            await self.stream.send_all(message if isinstance(message, bytes) else encode(message))

    async def greet(self) -> None:
        """As an honest peer would."""
        assert isinstance(await self.hear(), Hello)
        await self.say(Welcome(1, ("shares", "witness"), "hostile", True))

    async def be_silent(self) -> None:
        """Read, and say nothing, until it goes away."""
        while await self.stream.receive_some():
            pass


Script = Callable[[Caller], Awaitable[None]]
Raw = Callable[[trio.SocketStream], Awaitable[None]]


class HostilePeer:
    """Listens, and does with each caller what a script says.

    Attributes:
        script: after the handshake of TLS.
        raw: in its place, with the bare socket.
        calls: how many there were.
        open: how many are connected.
    """

    def __init__(self, script: Script | None = None, raw: Raw | None = None, identity: Identity | None = None) -> None:
        self.script = script
        self.raw = raw
        self.identity = identity or Identity.new()
        self.calls = 0
        self.open = 0
        self.faults: list[BaseException] = []
        self._runner = _Runner(self._run)
        self.address = Address(HOME, self._runner.ready())

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    async def _run(self, stop: trio.Event, started: Callable[[int], None]) -> None:
        listeners = await open_listeners([Address(HOME, 0)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._talk, listeners)
            started(listeners[0].socket.getsockname()[1])
            await stop.wait()
            nursery.cancel_scope.cancel()

    async def _talk(self, socket: trio.SocketStream) -> None:
        self.calls += 1
        self.open += 1
        try:
            if self.raw is not None:
                await self.raw(socket)
                return
            tls, _ = await handshake(socket, server_context(self.identity), server_side=True)
            if self.script is not None:
                await self.script(Caller(tls))
        except _GONE:
            pass
        except Exception as error:
            self.faults.append(error)
        finally:
            self.open -= 1
            socket.socket.close()

    def close(self) -> None:
        self._runner.close()
        assert self.faults == [], "the script of the test is wrong"


class _Runner:
    """An event loop in a thread."""

    def __init__(self, run: Callable[[trio.Event, Callable[[int], None]], Awaitable[None]]) -> None:
        self._run = run
        self._is_ready = threading.Event()
        self._port = 0
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._main, name="hostile peer")

    def ready(self) -> int:
        """Start; the port."""
        self._thread.start()
        assert self._is_ready.wait(DEADLINE_S)
        if self._failures:
            raise self._failures[0]
        return self._port

    def _main(self) -> None:
        try:
            trio.run(self._loop)
        except BaseException as error:
            self._failures.append(error)
        finally:
            self._is_ready.set()

    async def _loop(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        await self._run(self._stop, self._started)

    def _started(self, port: int) -> None:
        self._port = port
        self._is_ready.set()

    def close(self) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if self._failures:
            raise self._failures[0]


class _SpoiltReader(Reader):
    """Gives other bytes than those that are there."""

    def read(self, most_bytes: int) -> bytes:
        piece = super().read(most_bytes)
        return bytes([piece[0] ^ 1]) + piece[1:] if piece else b""


class LyingStore(ReplicaStore):
    """A store that lies as it is told.

    Attributes:
        claims: segments that it says it has besides, by name, and their sizes.
        drops: says of segments that it has stored them, and has not; it claims them from then on.
        spoils: sends wrong bytes of segments, whole or in part.
        proves: makes the answer to an audit of the honest one.
    """

    claims: dict[str, int]
    drops = False
    spoils = False
    proves: Callable[[bytes], bytes] | None = None

    def have(self, vault: VaultId, names: bytes) -> list[int]:
        found = super().have(vault, names)
        asked = [names[start : start + 32].hex() for start in range(0, len(names), 32)]
        return [size or self.claims.get(name, 0) for size, name in zip(found, asked, strict=True)]

    def listing(self, vault: VaultId, prefix: str, after: str, most: int) -> tuple[list[tuple[str, int]], bool]:
        found, has_more = super().listing(vault, prefix, after, most)
        assert not has_more
        keys = {f"segments/{name[:2]}/{name}": size for name, size in self.claims.items()}
        invented = {key: size for key, size in keys.items() if key.startswith(prefix) and key > after}
        return sorted({**invented, **dict(found)}.items()), False

    def begin_put(self, caller: PeerId, vault: VaultId, key: str, size_bytes: int, *rest: Any) -> Upload | None:
        if self.drops and key.startswith("segments/"):
            self.claims[key.rpartition("/")[2]] = size_bytes
            return None
        return super().begin_put(caller, vault, key, size_bytes, *rest)

    def audit(self, vault: VaultId, key: bytes, ranges: Sequence[Range]) -> bytes:
        honest = super().audit(vault, key, ranges)
        return honest if self.proves is None else self.proves(honest)

    def reader(self, vault: VaultId, key: str, offset: int = 0, length: int | None = None) -> Reader:
        made = super().reader(vault, key, offset, length)
        if self.spoils and key.startswith("segments/"):
            made.__class__ = _SpoiltReader
        return made


class LyingPeer:
    """A peer whose server is real, and whose store lies.

    Args:
        root: its directory.
        caller: who may store there.

    Attributes:
        lies: its store, which may be told how to lie.
    """

    def __init__(self, root: Path, caller: PeerId) -> None:
        root.mkdir()
        self.root = root
        self.identity = Identity.new()
        self.grants = Grants(root / "grants.json")
        self.accept(caller)
        self.place = root / "store"
        self.lies = LyingStore.open(self.place, None, reserve_bytes=0)
        self.lies.claims = {}
        self._runner = _Runner(self._run)
        self.address = Address(HOME, self._runner.ready())

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    def accept(self, caller: PeerId) -> None:
        """Store for somebody."""
        self.grants.add(Grant(caller, None, "write", None, "", 1))

    async def _run(self, stop: trio.Event, started: Callable[[int], None]) -> None:
        listeners = await open_listeners([Address(HOME, 0)])
        started(listeners[0].socket.getsockname()[1])
        pairings = Pairings(self.root / "pairing.json")
        await serve(self.identity, self.lies, self.grants, pairings, listeners, LIMITS, stop=stop)

    def close(self) -> None:
        self._runner.close()
        self.lies.close()


@contextmanager
def closing_all(things: list[Any]) -> Iterator[list[Any]]:
    """Close what a test has made."""
    try:
        yield things
    finally:
        for thing in things:
            thing.close()
