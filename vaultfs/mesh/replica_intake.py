"""How an object comes to a peer: what is announced, what comes of it, and what is checked before it gets its name.

Whoever sends may be anybody, and may stop anywhere; so may this machine.  The order is: bytes synced; a manifest or a
revision remembered, durably; the name given; the name synced; only then is it said to be stored.  A crash in between
leaves an object that is right but was never said to be there, or a memory of one that is not there, which does no harm:
it was checked, so it exists.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import blake3

from vaultfs.errors import FormatTooNewError, IntegrityError, NotAVaultError, ObjectExistsError, RemoteError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import replica_files
from vaultfs.mesh.manifest_check import check_manifest
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_files import disk_errors
from vaultfs.mesh.replica_keys import Kind, ObjectKey, check_announced, require_object_key
from vaultfs.mesh.replica_ledger import Ledger
from vaultfs.mesh.replica_names import FileMark, ObjectNames, mark_of
from vaultfs.mesh.replica_reading import hash_of
from vaultfs.mesh.replica_vault import HeldVault
from vaultfs.mesh.witness import Head
from vaultfs.sync.public_header import LARGEST_HEADER_BYTES, PublicHeader
from vaultfs.sync.remote_layout import HEADER_KEY

SMALL_BEYOND_BYTES: Final = 32 << 20
"""Manifests, notes and headers may exceed quotas by so much: the newest manifest must get to a peer that is full of
segments, or nobody could restore the snapshot from it, nor prune it to make room."""


@dataclass(frozen=True)
class _Announced:
    """What was said of an object that is coming, and found in its place."""

    if_absent: bool
    revision: int
    damaged: FileMark | None


class ReplicaIntake:
    """Thread-safe.

    Args:
        root: the peer's directory, open; stays its owner's.
        ledger: counts, and has the vaults.
        names: of objects.
        clock_ns: nanoseconds since 1970.
    """

    def __init__(self, root: int, ledger: Ledger, names: ObjectNames, clock_ns: Callable[[], int]) -> None:
        self._root: Final = root
        self._ledger: Final = ledger
        self._names: Final = names
        self._clock_ns: Final = clock_ns
        self._announced: Final[dict[Upload, _Announced]] = {}
        self._checking: Final = threading.Lock()
        """One manifest at a time is in memory."""

    def begin(
        self,
        caller: PeerId,
        vault: VaultId,
        key: str,
        size_bytes: int,
        digest: bytes,
        if_absent: bool,
        revision: int,
        quota_bytes: int | None,
    ) -> Upload | None:
        """As `vaultfs.mesh.replicas.ReplicaStore.begin_put`."""
        wanted = require_object_key(key)
        check_announced(wanted, size_bytes, digest, revision)
        with disk_errors(f"store {key}"):
            if wanted.kind is Kind.HEADER:
                damaged = None
                is_there = self._is_header_there(vault, digest, if_absent, revision)
            else:
                is_there, damaged = self._is_there(vault, wanted, digest, if_absent)
            if is_there:
                return None
            beyond_bytes = 0 if wanted.kind in {Kind.SEGMENT, Kind.SHARE} else SMALL_BEYOND_BYTES
            coming, descriptor = self._ledger.reserve(
                caller, vault, digest, size_bytes, quota_bytes, self._clock_ns(), beyond_bytes=beyond_bytes
            )
            upload = Upload(
                coming=coming,
                wanted=wanted,
                size_bytes=size_bytes,
                digest=digest,
                descriptor=descriptor,
                accept=self._accept,
                settle=self._settle,
            )
            with self._ledger.lock:
                self._announced[upload] = _Announced(if_absent, revision, damaged)
            try:
                upload.resume()
            except BaseException:
                upload.abort(keep=False)
                raise
        return upload

    def interrupt_all(self) -> None:
        """End what is coming; it may go on later."""
        with self._ledger.lock:
            uploads = list(self._announced)
        for upload in uploads:
            upload.abort(keep=True)

    def header(self, vault: VaultId) -> bytes | None:
        """The bytes of ``vault.json``, or as many as a header may have and one more; None if there is none.

        Raises:
            OSError: the disk failed.
        """
        return replica_files.read_file(self._root, [vault.hex(), HEADER_KEY], LARGEST_HEADER_BYTES)

    def _is_there(
        self, vault: VaultId, wanted: ObjectKey, digest: bytes, if_absent: bool
    ) -> tuple[bool, FileMark | None]:
        """Whether an object is there, whole, right and durable; and which file is not right, but has its name."""
        path = [vault.hex(), *wanted.parts]
        descriptor = replica_files.open_file(self._root, path)
        if descriptor < 0:
            return False, None
        try:
            found, _ = hash_of(descriptor)
            if found != digest and wanted.digest is not None:
                return False, mark_of(os.fstat(descriptor))
            if if_absent:
                raise ObjectExistsError(f"there is {wanted.key} already")
            if found != digest:
                return False, None
            if wanted.kind is Kind.HEAD:
                # it may have come another way than through here, or the record be older than it
                self._remember_manifest(
                    self._ledger.held(vault, self._clock_ns()), wanted, descriptor, is_of_owner=False
                )
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._names.make_durable(path[:-1])
        replica_files.sync_directory(self._root, path[:-1])
        return True, None

    def _is_header_there(self, vault: VaultId, digest: bytes, if_absent: bool, revision: int) -> bool:
        """Whether this header is there, durable, and has at least this revision."""
        with self._names.changing():
            data = self.header(vault)
            if data is None:
                return False
            if if_absent:
                raise ObjectExistsError(f"there is {HEADER_KEY} already")
            current = blake3.blake3(data).digest()
            held = self._ledger.held(vault, self._clock_ns())
            with self._ledger.lock:
                known = held.record.revision_of(current)
                if current != digest:
                    if revision <= known:
                        raise ObjectExistsError(
                            f"there is {HEADER_KEY} of revision {known} already, not below {revision}"
                        )
                    return False
                if revision > known:
                    epoch = _decoded(data, vault).epoch
                    held.record.expect_header(current, digest, revision, epoch)
                    held.save()
            replica_files.sync_file(self._root, [vault.hex(), HEADER_KEY])
            return True

    def _accept(self, upload: Upload) -> None:
        wanted = upload.wanted
        with disk_errors(f"store {wanted.key}"):
            held = self._ledger.held(upload.coming.vault, self._clock_ns())
            announced = self._announced[upload]
            if wanted.kind is Kind.HEAD:
                is_of_first = held.record.writers[:1] == [upload.coming.caller]
                self._remember_manifest(held, wanted, upload.descriptor, is_of_owner=is_of_first)
            with self._names.changing():
                if wanted.kind is Kind.HEADER:
                    self._expect_header(held, upload, announced)
                self._names.give(held, upload, if_absent=announced.if_absent, damaged=announced.damaged)
            self._names.sync(held, wanted)

    def _remember_manifest(self, held: HeldVault, wanted: ObjectKey, descriptor: int, *, is_of_owner: bool) -> None:
        """Check a manifest, and remember it durably.

        The first that comes to a vault decides who may delete at once, if it comes from whoever stored there first: a
        first replication takes hours, and nobody who is accepted for any vault shall get in before its manifest.  One
        that lies there already, and was not remembered, decides nothing: nobody knows how it came.
        """
        digest = wanted.digest or b""
        with self._checking:
            data = os.pread(descriptor, min(os.fstat(descriptor).st_size, wanted.largest_bytes), 0)
            check_manifest(data, held.vault, wanted.device, wanted.seq, digest)
            del data
        with self._ledger.lock:
            held.remember(Head(wanted.seq, digest, wanted.device), self._clock_ns(), is_of_owner=is_of_owner)

    def _expect_header(self, held: HeldVault, upload: Upload, announced: _Announced) -> None:
        """Check a header against what is there, and remember its revision durably, before it takes the place."""
        data = os.pread(upload.descriptor, upload.size_bytes, 0)
        if blake3.blake3(data).digest() != upload.digest:
            raise RemoteError(f"the peer cannot store {HEADER_KEY}: its disk gives back other bytes than were written")
        header = _decoded(data, held.vault)
        before = self.header(held.vault)
        current = blake3.blake3(before).digest() if before is not None else None
        with self._ledger.lock:
            epoch = known = 0
            if before is not None and current is not None:
                if announced.if_absent:
                    raise ObjectExistsError(f"there is {HEADER_KEY} already")
                epoch = max(held.record.epoch, _epoch_of(before, held.vault))
                known = held.record.revision_of(current)
            if header.epoch < epoch:
                raise ObjectExistsError(
                    f"{HEADER_KEY} has epoch {header.epoch}; there was one of epoch {epoch} already"
                )
            if announced.revision <= known and current != upload.digest:
                raise ObjectExistsError(
                    f"there is {HEADER_KEY} of revision {known} already, not below {announced.revision}"
                )
            if before is not None and current != upload.digest and _epoch_of(before, held.vault):
                held.keep_header(before, self._clock_ns())  # nobody here can tell which of the two is genuine
            held.record.expect_header(current, upload.digest, max(announced.revision, known), header.epoch)
            held.save()

    def _settle(self, upload: Upload, keep: bool) -> None:
        with self._ledger.lock:
            self._announced.pop(upload, None)
            self._ledger.settle(upload.coming, keep=keep)


def _decoded(data: bytes, vault: VaultId) -> PublicHeader:
    try:
        header = PublicHeader.decode(data, HEADER_KEY)
    except NotAVaultError as error:
        raise IntegrityError(str(error)) from error
    if header.vault_id != vault:
        raise IntegrityError(f"{HEADER_KEY} is that of vault {header.vault_id.hex()}, not of {vault.hex()}")
    return header


def _epoch_of(data: bytes, vault: VaultId) -> int:
    """The epoch of what lies there; 0 if it is damaged, or of a format that nobody here has accepted."""
    try:
        return _decoded(data, vault).epoch
    except (IntegrityError, FormatTooNewError):
        return 0
