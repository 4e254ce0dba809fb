"""Reading from a mesh: when a peer fails the next is asked, and what has a hash is checked before it is given out.

A whole segment, manifest or share is written to a file without a name while its hash is computed.  A peer that sends
other bytes is passed over from then on, as far as others have what is wanted.  A part of a segment cannot be checked
here; it has to open with the vault's key.  If any of it is asked for again soon, because it did not, another peer is
asked first.

A peer that sends nothing costs three seconds and not the minute that a connection may be silent: then the next is asked
too, and whoever is first counts.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, cast

import trio
from blake3 import blake3

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    ReadOnlyError,
    StorageError,
    VaultError,
)
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.asking import worst_of
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.served_parts import ServedParts
from vaultfs.storage.durable import storage_error
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES

log = logging.getLogger(__name__)

SPOOLED_BYTES: Final = 4 << 20
"""Up to here, what comes stays in memory; a reader of a clone asks for as much."""
SILENT_S: Final = 3.0
"""A peer that has sent nothing for so long is left to itself, and another is asked too; who reads a file waits."""
SHUNNED_S: Final = 300.0
"""After that it is asked last for so long."""


class HashingFile(io.RawIOBase):
    """A file of this machine that hashes what is written to it.

    Args:
        file: what it is written to.
        most_bytes: it may become so long.
        take: is told of bytes before they are written; may make them wait.

    Attributes:
        count: bytes written.
        failure: what this machine's disk said; None: nothing so far.
    """

    def __init__(self, file: BinaryIO, most_bytes: int, take: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        self._file: Final = file
        self._most_bytes: Final = most_bytes
        self._take: Final = take
        self._hash: Final = blake3()
        self.count = 0
        self.failure: StorageError | NoSpaceError | ReadOnlyError | None = None

    def writelines(self, lines: Iterable[bytes], /) -> None:  # type: ignore[override]  # bytes are all that comes
        """Write pieces.

        Raises:
            IntegrityError: there are more than there may be.
            NoSpaceError, StorageError: the disk is full, or failed.
        """
        for piece in lines:
            self._take(len(piece))
            self.count += len(piece)
            if self.count > self._most_bytes:
                raise IntegrityError(f"more than the {self._most_bytes} bytes came that there may be")
            self._hash.update(piece)
            self._write(piece)

    def _write(self, piece: bytes) -> None:
        """Write a piece whole: a file without a buffer takes a part when the disk is nearly full."""
        view = memoryview(piece)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self.failure = storage_error("cannot keep what a peer sends", error)
            raise self.failure from error

    def hexdigest(self) -> str:
        """Of all that was written."""
        return self._hash.hexdigest()


class _Attempt:
    """One peer's bytes.

    Args:
        file: where they go.
        most_bytes: there may be so many.

    Attributes:
        file: likewise.
        sink: likewise, hashed.
        is_kept: somebody else closes the file.
    """

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self.file: Final = file
        self.sink: Final = HashingFile(file, most_bytes)
        self.is_kept = False
        self._left: Final = trio.Event()

    def leave(self) -> None:
        """It is over."""
        self._left.set()
        if not self.is_kept:
            self.file.close()

    async def is_silent(self) -> bool:
        """Wait until it is over, or until nothing has come for `SILENT_S`; return whether that is so."""
        came = -1
        while not self._left.is_set() and came < self.sink.count:
            came = self.sink.count
            with trio.move_on_after(SILENT_S):
                await self._left.wait()
        return not self._left.is_set()


@dataclass
class _Race:
    """Several peers that are asked for the same thing."""

    failures: list[VaultError] = field(default_factory=list)
    fatal: VaultError | None = None
    winner: tuple[PeerId, _Attempt] | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def won(self, peer: PeerId, attempt: _Attempt) -> None:
        """Somebody has brought it; the second to do so is too late."""
        if self.winner is None:
            attempt.is_kept = True
            self.winner = peer, attempt
            self.scope.cancel()

    def end(self, error: VaultError) -> None:
        """Nobody can bring it."""
        self.fatal = self.fatal or error
        self.scope.cancel()

    def discard(self) -> None:
        """What came is not wanted."""
        if self.winner is not None:
            self.winner[1].file.close()


class Reader:
    """Reads objects of one vault from its peers.

    Args:
        vault_id: whose.
        scratch: the directory of files without a name; None: the system's.
    """

    def __init__(self, vault_id: VaultId, scratch: Path | None = None) -> None:
        self._vault_id: Final = vault_id
        self._scratch: Final = scratch
        self._distrusted: Final[set[PeerId]] = set()
        self._silent_until_s: Final[dict[PeerId, float]] = {}
        self._served: Final[ServedParts[PeerId]] = ServedParts()

    @property
    def distrusted(self) -> frozenset[PeerId]:
        """Peers that have sent wrong bytes."""
        return frozenset(self._distrusted)

    async def whole(
        self, client: MeshClient, peers: Sequence[PeerId], key: str, digest: str | None, most_bytes: int
    ) -> BinaryIO:
        """An object, in a file at its start, which the caller closes.

        Args:
            client: to ask with.
            peers: whom, in this order.
            key: the object.
            digest: the BLAKE3 that it must have, in hexadecimal; None if nobody knows it.
            most_bytes: it may be so long.

        Raises:
            ObjectMissingError: all answered, and none has it.
            NoSpaceError, StorageError: this machine's disk cannot take it.
            VaultError: what the first that failed said.
        """

        async def fetch(peer: PeerId, sink: HashingFile) -> None:
            await client.fetch(peer, self._vault_id, key, cast("BinaryIO", sink))
            if digest is not None and sink.hexdigest() != digest:
                raise IntegrityError(f"{client.name(peer)} sent other bytes than those of {key}")

        return (await self._first(self._in_order(peers), key, most_bytes, fetch))[1]

    async def part(
        self, client: MeshClient, peers: Sequence[PeerId], key: str, offset: int, length: int | None
    ) -> BinaryIO:
        """A part of an object, in a file at its start, which the caller closes; nobody has checked it.

        Raises:
            VaultError: as `whole`.
        """
        served = self._served.of(key, offset, length)  # who has sent it before may have sent something wrong
        order = sorted(self._in_order(peers), key=lambda peer: 1 + served.index(peer) if peer in served else 0)

        async def fetch(peer: PeerId, sink: HashingFile) -> None:
            await client.fetch(peer, self._vault_id, key, cast("BinaryIO", sink), offset=offset, length=length)

        most_bytes = LARGEST_SEGMENT_BYTES if length is None else length
        peer, file = await self._first(order, key, most_bytes, fetch)
        self._served.note(key, offset, length, peer)
        return file

    async def _first(
        self,
        order: Sequence[PeerId],
        key: str,
        most_bytes: int,
        fetch: Callable[[PeerId, HashingFile], Awaitable[None]],
    ) -> tuple[PeerId, BinaryIO]:
        """What the first peer brings that succeeds: the next is asked when one has failed, or sends nothing."""
        race = _Race()

        async def ask(peer: PeerId, attempt: _Attempt) -> None:
            try:
                await fetch(peer, attempt.sink)
            except VaultError as error:
                if attempt.sink.failure is not None:  # of this disk: nobody else can help
                    race.end(attempt.sink.failure)
                race.failures.append(error)
                self._judge(peer, error)
            else:
                self._silent_until_s.pop(peer, None)
                race.won(peer, attempt)
            finally:
                attempt.leave()

        try:
            async with trio.open_nursery() as nursery:
                race.scope = nursery.cancel_scope
                for peer in order:
                    try:
                        attempt = _Attempt(self._spool(most_bytes), most_bytes)
                    except OSError as error:
                        race.end(storage_error("cannot keep what a peer sends", error))
                        break
                    nursery.start_soon(ask, peer, attempt)
                    if await attempt.is_silent():
                        log.info("a peer has sent nothing of %s for %g s; another is asked", key, SILENT_S)
                        self._silent_until_s[peer] = trio.current_time() + SHUNNED_S
        except BaseException:
            race.discard()
            raise
        if race.fatal is not None:
            race.discard()
            raise race.fatal
        if race.winner is None:
            raise worst_of(race.failures, key)
        peer, attempt = race.winner
        attempt.file.seek(0)
        return peer, attempt.file

    def distrust(self, peer: PeerId) -> None:
        """Ask this peer after all others."""
        self._distrusted.add(peer)

    def _in_order(self, peers: Sequence[PeerId]) -> list[PeerId]:
        now_s = trio.current_time()
        return sorted(peers, key=lambda peer: (peer in self._distrusted, self._silent_until_s.get(peer, 0.0) > now_s))

    def _judge(self, peer: PeerId, error: VaultError) -> None:
        if isinstance(error, IntegrityError):
            self._distrusted.add(peer)
        if not isinstance(error, ObjectMissingError):
            log.info("%s", error)

    def _spool(self, most_bytes: int) -> BinaryIO:
        if most_bytes <= SPOOLED_BYTES:
            return io.BytesIO()
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self._scratch, buffering=0))  # the caller's
