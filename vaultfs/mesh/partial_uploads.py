"""An object on its way to a peer: bytes in a file that has no key yet, hashed as they come.

The file lies in ``.mesh/partial`` of its vault and is named by the object's hash and the caller, so that an interrupted
transfer goes on where it ended, and one caller neither goes on with nor sees what another has sent.  What is there from
an earlier try is read and hashed again; all of it is believed only when the hash of the whole is right.  A second
transfer of the same bytes by the same caller at the same time gets a file of its own, which nobody resumes.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable
from typing import Final

import blake3

from vaultfs.errors import FormatTooNewError, IntegrityError, ObjectExistsError, RemoteError
from vaultfs.ids import PeerId
from vaultfs.mesh.replica_files import disk_errors
from vaultfs.mesh.replica_keys import ObjectKey
from vaultfs.mesh.replica_usage import Coming
from vaultfs.storage.durable import write_all

PIECE_BYTES: Final = 256 << 10
"""Read at once to be hashed: thirty-two transfers at once must not take 32 MiB."""
WRITE_OUT_BYTES: Final = 8 << 20
"""So much comes before the disk is told to begin with it: what it has written when the last byte comes, nobody waits
for then."""
KEPT_NS: Final = 7 * 24 * 3600 * 10**9
"""How long an interrupted transfer may go on."""

_NAME: Final = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})")


def partial_name(digest: bytes, caller: PeerId) -> str:
    """The name of the file of a transfer that may be resumed."""
    return f"{digest.hex()}-{caller.hex()}"


def single_name(digest: bytes, caller: PeerId) -> str:
    """The name of the file of one that may not."""
    return f"{partial_name(digest, caller)}-{secrets.token_hex(8)}.tmp"


def parse_partial_name(name: str) -> PeerId | None:
    """Whose transfer a file is, if it may be resumed."""
    match = _NAME.fullmatch(name)
    return PeerId(bytes.fromhex(match[2])) if match is not None else None


class Upload:
    """An object that is coming.  One thread at a time uses it, but any may abort it.

    After `finish`, whether it returned or raised, it is over.  After `write` has raised, `abort` it.  If all bytes are
    here from an earlier try, or there are none, `offset` equals `size_bytes`: `finish` it at once.

    Args:
        coming: what it counts for; hears of the bytes as they come.
        wanted: its key.
        size_bytes: how long it will be.
        digest: 32 bytes, the BLAKE3 that it must have.
        descriptor: the file, open for reading and writing; is closed here.
        accept: checks the object when all bytes are here and have the right hash, and gives it its name.
        settle: is called once at the end, with whether what came may be resumed.

    Attributes:
        offset: bytes that are here from an earlier try; the caller sends what comes after.
        received_bytes: with those.
    """

    def __init__(
        self,
        *,
        coming: Coming,
        wanted: ObjectKey,
        size_bytes: int,
        digest: bytes,
        descriptor: int,
        accept: Callable[[Upload], None],
        settle: Callable[[Upload, bool], None],
    ) -> None:
        self.coming: Final = coming
        self.wanted: Final = wanted
        self.size_bytes: Final = size_bytes
        self.digest: Final = digest
        self.descriptor: Final = descriptor
        self.offset = 0
        self.received_bytes = 0
        self._written_out_bytes = 0
        self._accept: Final = accept
        self._settle: Final = settle
        self._hasher: Final = blake3.blake3()
        self._is_over = False
        self._lock: Final = threading.Lock()

    def resume(self) -> None:
        """Hash what is here from an earlier try.

        Raises:
            OSError: it cannot be read.
        """
        os.ftruncate(self.descriptor, min(os.fstat(self.descriptor).st_size, self.size_bytes))
        while piece := os.pread(self.descriptor, PIECE_BYTES, self.received_bytes):
            self._take(piece)
        os.lseek(self.descriptor, self.received_bytes, os.SEEK_SET)
        self.offset = self._written_out_bytes = self.received_bytes

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            IntegrityError: more than was announced.
            NoSpaceError, RemoteError: the disk; or it is over.
        """
        with self._lock:
            self._require_open()
            if len(data) > self.size_bytes - self.received_bytes:
                raise IntegrityError(f"more than the {self.size_bytes} bytes came that were announced")
            with disk_errors(f"store {self.wanted.key}"):
                write_all(self.descriptor, data)
                self._take(data)
                self._write_out()

    def finish(self) -> None:
        """Check everything and give the object its name; it is durable when this returns.

        Raises:
            IntegrityError, FormatTooNewError: too few bytes, which are kept; or wrong ones, which are removed.
            ObjectExistsError: somebody else was faster, or a newer ``vault.json`` is there.
            NoSpaceError, RemoteError: the disk; what came is kept for another try.
        """
        with self._lock:
            self._require_open()
            keep = True
            try:
                if self.received_bytes != self.size_bytes:
                    raise IntegrityError(f"{self.received_bytes} of {self.size_bytes} bytes came of {self.wanted.key}")
                keep = False
                if self._hasher.digest() != self.digest:
                    raise IntegrityError(f"what came as {self.wanted.key} has another hash than was announced")
                with disk_errors(f"store {self.wanted.key}"):
                    os.fsync(self.descriptor)  # if that fails the kernel may forget what it did not write
                keep = True
                try:
                    self._accept(self)
                except (IntegrityError, FormatTooNewError, ObjectExistsError):
                    keep = False
                    raise
            finally:
                self._end(keep)

    def abort(self, *, keep: bool) -> None:
        """Give up.  Harmless when it is over.

        Args:
            keep: what came may be resumed within seven days.
        """
        with self._lock:
            if not self._is_over:
                self._end(keep and self.received_bytes > 0)

    def _write_out(self) -> None:
        """Have the disk begin with what has come; waits for nothing."""
        begin, count = self._written_out_bytes, self.received_bytes - self._written_out_bytes
        if count >= WRITE_OUT_BYTES:
            # Pages that are still to be written stay in memory, whatever the name of this says.
            os.posix_fadvise(self.descriptor, begin, count, os.POSIX_FADV_DONTNEED)
            self._written_out_bytes = self.received_bytes

    def _take(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        self.received_bytes += len(data)
        self.coming.awaited_bytes = self.size_bytes - self.received_bytes

    def _end(self, keep: bool) -> None:
        self._is_over = True
        os.close(self.descriptor)
        self._settle(self, keep)

    def _require_open(self) -> None:
        if self._is_over:
            raise RemoteError(f"the transfer of {self.wanted.key} is over")
