"""Reading from a mesh: when a peer fails the next is asked, and what has a hash is checked before it is given out.

A whole segment, manifest or share is written to a file without a name while its hash is computed.  A peer that sends
other bytes is passed over from then on, as far as others have what is wanted.  A part of a segment cannot be checked
here; it has to open with the vault's key.  If the same part is asked for again soon, because it did not, another
peer is asked first.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

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
from vaultfs.storage.durable import storage_error
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES

log = logging.getLogger(__name__)

SPOOLED_BYTES: Final = 4 << 20
"""Up to here, what comes stays in memory; a reader of a clone asks for as much."""
_REMEMBERED: Final = 4096


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
        self._served: Final[OrderedDict[tuple[str, int, int | None], PeerId]] = OrderedDict()

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
        failures: list[VaultError] = []
        for peer in self._in_order(peers):
            file = self._spool(most_bytes)
            hashing = HashingFile(file, most_bytes)
            try:
                await client.fetch(peer, self._vault_id, key, cast("BinaryIO", hashing))
                if digest is not None and hashing.hexdigest() != digest:
                    raise IntegrityError(f"{client.name(peer)} sent other bytes than those of {key}")
            except VaultError as error:
                file.close()
                if hashing.failure is not None:
                    raise hashing.failure from error
                failures.append(error)
                self._judge(peer, error)
            except BaseException:
                file.close()
                raise
            else:
                file.seek(0)
                return file
        raise worst_of(failures, key)

    async def part(
        self, client: MeshClient, peers: Sequence[PeerId], key: str, offset: int, length: int | None
    ) -> BinaryIO:
        """A part of an object, in a file at its start, which the caller closes; nobody has checked it.

        Raises:
            VaultError: as `whole`.
        """
        part = (key, offset, length)
        order = self._in_order(peers)
        last = self._served.pop(part, None)
        if last in order:  # it was asked for again, so what came may have been wrong
            order = [*(peer for peer in order if peer != last), last]
        failures: list[VaultError] = []
        for peer in order:
            most_bytes = LARGEST_SEGMENT_BYTES if length is None else length
            file = self._spool(most_bytes)
            sink = HashingFile(file, most_bytes)
            try:
                await client.fetch(peer, self._vault_id, key, cast("BinaryIO", sink), offset=offset, length=length)
            except VaultError as error:
                file.close()
                if sink.failure is not None:
                    raise sink.failure from error
                failures.append(error)
                self._judge(peer, error)
            except BaseException:
                file.close()
                raise
            else:
                self._served[part] = peer
                if len(self._served) > _REMEMBERED:
                    self._served.popitem(last=False)
                file.seek(0)
                return file
        raise worst_of(failures, key)

    def distrust(self, peer: PeerId) -> None:
        """Ask this peer after all others."""
        self._distrusted.add(peer)

    def _in_order(self, peers: Sequence[PeerId]) -> list[PeerId]:
        return sorted(peers, key=self._distrusted.__contains__)

    def _judge(self, peer: PeerId, error: VaultError) -> None:
        if isinstance(error, IntegrityError):
            self._distrusted.add(peer)
        if not isinstance(error, ObjectMissingError):
            log.info("%s", error)

    def _spool(self, most_bytes: int) -> BinaryIO:
        if most_bytes <= SPOOLED_BYTES:
            return io.BytesIO()
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self._scratch, buffering=0))  # the caller's
