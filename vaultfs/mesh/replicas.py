"""The replicas that a peer holds for others: checked before they get their names, bounded, and durable when it says so.

Synchronous and thread-safe; no event loop.  docs/mesh-protocol.md, sections 6 to 10, says what is promised to callers,
who may be anybody.  Who may do what is not decided here, but by `vaultfs.mesh.grants` and the server.

- An object gets its name when all its bytes are here, have the right hash, and are on the disk.
- Quotas: what is coming counts in full from its beginning, so that many at once stay within; what was interrupted
  counts for what is there, and gives way when its caller, or the disk, has no other room.
- A manifest is remembered durably before it gets its name.  Whoever asks a witness hears of it from then on.
- "It is there already" is said only after the object was read again, and synced: an earlier server may have died in
  between.
- The disk keeps a reserve: other programs of the machine need room, and so does deleting.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Self

import blake3

from vaultfs.errors import ObjectMissingError, RemoteRefusedError, UsageError, VaultLockedError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import replica_files
from vaultfs.mesh.messages import HASH_BYTES, MOST_AUDITED_BYTES, Range
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_files import disk_errors
from vaultfs.mesh.replica_intake import ReplicaIntake
from vaultfs.mesh.replica_keys import Kind, ObjectKey, require_object_key
from vaultfs.mesh.replica_ledger import Ledger, Room
from vaultfs.mesh.replica_names import ObjectNames
from vaultfs.mesh.replica_reading import Reader, proof_of
from vaultfs.mesh.replica_record import Device
from vaultfs.mesh.replica_scrub import Scrubbed, scrub_step
from vaultfs.mesh.replica_vault import HeldVault
from vaultfs.mesh.witness import Head
from vaultfs.remotes.keys import require_prefix
from vaultfs.storage.anchored_paths import directory_below
from vaultfs.storage.durable import storage_errors

_LOCK: Final = ".lock"


class ReplicaStore:
    """All replicas of one peer, in one directory.  Made by `open`.

    Attributes:
        warnings: what was found wrong at opening, one line each, for the log.
    """

    def __init__(
        self, root: int, lock: int, quota_bytes: int | None, clock_ns: Callable[[], int], reserve_bytes: int | None
    ) -> None:
        self.warnings: list[str] = []
        self._root: Final = root
        self._lock: Final = lock
        self._clock_ns: Final = clock_ns
        self._ledger: Final = Ledger(root, quota_bytes, reserve_bytes)
        self._names: Final = ObjectNames(root, self._ledger)
        self._intake: Final = ReplicaIntake(root, self._ledger, self._names, clock_ns)
        self._is_closed = False

    @classmethod
    def open(
        cls,
        root: Path,
        quota_bytes: int | None,
        clock_ns: Callable[[], int] = time.time_ns,
        *,
        reserve_bytes: int | None = None,
    ) -> Self:
        """Open the directory of the replicas, count what is there, and remove transfers interrupted long ago.

        Args:
            root: the directory, absolute; it is made if the one above exists.
            quota_bytes: of all callers together; None: as much as the disk has.
            clock_ns: nanoseconds since 1970.
            reserve_bytes: of the disk, stays free; None: a hundredth, but 64 MiB at least and 1 GiB at most.

        Raises:
            VaultLockedError: another server works there.
            FormatTooNewError: a newer vaultfs has been there.
            StorageError, NoSpaceError, ReadOnlyError, RemoteError: the disk failed.
        """
        with storage_errors(f"cannot open {root}, where this peer keeps what others store"):
            with suppress(FileExistsError):
                root.mkdir(mode=0o700)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock = replica_files.take_lock(descriptor, _LOCK)
            except BaseException:
                os.close(descriptor)
                raise
        if lock < 0:
            os.close(descriptor)
            raise VaultLockedError(f"another peer works on {root}; stop it first")
        store = cls(descriptor, lock, quota_bytes, clock_ns, reserve_bytes)
        try:
            store.warnings += store._ledger.load(clock_ns())
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Interrupt what is coming, which may go on later, and give the lock back.  Doing it twice is harmless.

        Nothing else is used any more.
        """
        if not self._is_closed:
            self._is_closed = True
            self._intake.interrupt_all()
            os.close(self._root)
            os.close(self._lock)

    def vaults(self) -> list[VaultId]:
        """The vaults of which something was stored, in ascending order."""
        return self._ledger.vaults()

    def have(self, vault: VaultId, names: bytes) -> list[int]:
        """Which segments are there, by name and size.

        Args:
            vault: its id.
            names: their hashes of 32 bytes, joined.

        Returns:
            The sizes in bytes, in the same order; 0 where there is none.

        Raises:
            RemoteRefusedError: half a name.
            RemoteError: the disk failed.
        """
        if len(names) % HASH_BYTES:
            raise RemoteRefusedError(f"names of segments have {HASH_BYTES} bytes each; {len(names)} came")
        sizes = [0] * (len(names) // HASH_BYTES)
        shards: dict[int, list[int]] = {}
        for index in range(len(sizes)):
            shards.setdefault(names[index * HASH_BYTES], []).append(index)
        with disk_errors("look for segments"):
            for shard, indexes in sorted(shards.items()):
                with directory_below(self._root, [vault.hex(), "segments", f"{shard:02x}"]) as above:
                    if above is not None:
                        for index in indexes:
                            name = names[index * HASH_BYTES : (index + 1) * HASH_BYTES].hex()
                            sizes[index] = replica_files.size_bytes(above, [name]) or 0
        return sizes

    def listing(self, vault: VaultId, prefix: str, after: str, most: int) -> tuple[list[tuple[str, int]], bool]:
        """A part of the keys, in ascending order.

        Args:
            vault: its id.
            prefix: empty, or ends with ``/``.
            after: only keys after this one.
            most: keys at once.

        Returns:
            Keys and sizes in bytes, and whether there are more.

        Raises:
            RemoteRefusedError: not a prefix.
            RemoteError: the disk failed.
        """
        try:
            require_prefix(prefix)
        except UsageError as error:
            raise RemoteRefusedError(str(error)) from error
        found: list[tuple[str, int]] = []
        with disk_errors("list objects"), closing(HeldVault(self._root, vault).objects(prefix, after)) as objects:
            for wanted, size_bytes in objects:
                if len(found) == most:
                    return found, True
                found.append((wanted.key, size_bytes))
        return found, False

    def stat(self, vault: VaultId, key: str) -> tuple[int | None, int]:
        """The length of an object, None if there is none; and the revision of ``vault.json``, 0 for all else.

        Raises:
            RemoteRefusedError: no object has such a key.
            RemoteError: the disk failed.
        """
        wanted = require_object_key(key)
        with disk_errors(f"look for {key}"):
            if wanted.kind is not Kind.HEADER:
                return replica_files.size_bytes(self._root, [vault.hex(), *wanted.parts]), 0
            data = self._intake.header(vault)
        if data is None:
            return None, 0
        held = self._ledger.existing(vault)
        with self._ledger.lock:
            return len(data), held.record.revision_of(blake3.blake3(data).digest()) if held is not None else 0

    def reader(self, vault: VaultId, key: str, offset: int = 0, length: int | None = None) -> Reader:
        """Open an object for reading; `Reader.close` it.

        Args:
            vault: its id.
            key: of the object.
            offset: bytes from its start.
            length: bytes; to its end if None.

        Raises:
            RemoteRefusedError: no object has such a key.
            ObjectMissingError: there is none.
            RemoteError: the part does not lie inside it, or the disk failed.
        """
        wanted = require_object_key(key)
        with disk_errors(f"read {key}"):
            descriptor = replica_files.open_file(self._root, [vault.hex(), *wanted.parts])
        if descriptor < 0:
            raise ObjectMissingError(f"there is no {key}")
        return Reader(key, descriptor, offset, length)

    def begin_put(
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
        """Take an object, unless it is there, whole and right, and durable: then None.

        Args:
            caller: who stores it.
            vault: its id.
            key: of the object.
            size_bytes: how long it will be.
            digest: 32 bytes, the BLAKE3 that it will have.
            if_absent: refuse if it is there, also if it is the same.
            revision: of ``vault.json``; counts for nothing else.
            quota_bytes: of the caller in all vaults; None: there is none.

        Raises:
            RemoteRefusedError: no object has such a key, or too many callers store in this vault. IntegrityError,
            FormatTooNewError: key, length, hash or revision do not fit; or what is there is no manifest.
            ObjectExistsError: ``if_absent``, and it is there; or a newer ``vault.json`` is. NoSpaceError: a quota, or
            the disk. RemoteError: the disk failed.
        """
        return self._intake.begin(caller, vault, key, size_bytes, digest, if_absent, revision, quota_bytes)

    def delete(self, vault: VaultId, keys: Sequence[str]) -> int:
        """Delete objects, durably; whoever calls has verified the order, and `may_delete`.

        Args:
            vault: its id.
            keys: of the objects.

        Returns:
            How many were there.

        Raises:
            RemoteRefusedError: no object has such a key; nothing was deleted.
            RemoteError: the disk failed; some may be gone.
        """
        objects = [require_object_key(key) for key in keys]
        with disk_errors("delete objects"):
            return self._names.remove(vault, objects)

    def forget(self, vault: VaultId, key: str) -> int:
        """Delete a note, durably.

        Returns:
            How many were there.

        Raises:
            RemoteRefusedError: it is something else than a note.
            RemoteError: the disk failed.
        """
        wanted = require_object_key(key)
        if wanted.kind is not Kind.NOTE:
            raise RemoteRefusedError(f"{key} is no note: a device of the vault has to sign an order to delete it")
        with disk_errors(f"delete {key}"):
            return self._names.remove(vault, [wanted])

    def may_delete(self, vault: VaultId, device: bytes) -> bool:
        """Whether a device may order deletions now; whether it did is not looked at.

        Args:
            vault: its id.
            device: its key, 32 bytes.
        """
        held = self._ledger.existing(vault)
        with self._ledger.lock:
            return held is not None and held.record.may_delete(device, self._clock_ns())

    def devices(self, vault: VaultId) -> dict[bytes, Device]:
        """Who has signed manifests of a vault, by key: for the person who confirms one."""
        held = self._ledger.existing(vault)
        with self._ledger.lock:
            return dict(held.record.devices) if held is not None else {}

    def confirm_device(self, vault: VaultId, device: bytes) -> None:
        """A person at this peer says that a device is the vault's: it may order deletions from now on.

        Args:
            vault: its id.
            device: its key, 32 bytes.

        Raises:
            ObjectMissingError: nothing was stored of this vault.
            NoSpaceError: too many are confirmed, or the disk is full.
            RemoteError: the disk failed.
        """
        held = self._ledger.existing(vault)
        if held is None:
            raise ObjectMissingError(f"nothing was stored of vault {vault.hex()}")
        with self._ledger.lock, disk_errors("remember a device"):
            held.record.confirm(device, self._clock_ns())
            held.save()

    def audit(self, vault: VaultId, key: bytes, ranges: Sequence[Range]) -> bytes:
        """Prove that parts of segments, or of shares, are there.

        Args:
            vault: its id.
            key: 32 bytes, drawn for this audit.
            ranges: at most `MOST_AUDITED_BYTES` in all.

        Returns:
            32 bytes for each range; zeros where it is not all there, or cannot be read.

        Raises:
            RemoteRefusedError: too many bytes.
            RemoteError: this machine lacks descriptors or memory, which is no proof that a segment is lost.
        """
        if sum(wanted.length for wanted in ranges) > MOST_AUDITED_BYTES:
            raise RemoteRefusedError(f"an audit asks for at most {MOST_AUDITED_BYTES} bytes")

        def open_object(named: ObjectKey) -> int:
            return replica_files.open_file(self._root, [vault.hex(), *named.parts])

        with disk_errors("read segments for an audit"):
            return b"".join(proof_of(open_object, key, wanted) for wanted in ranges)

    def usage(self, caller: PeerId) -> int:
        """Bytes that count for a caller, in all vaults, with what is coming; in blocks of 4 KiB for each object."""
        return self._ledger.used_bytes(caller)

    def state(self, caller: PeerId, vault: VaultId, quota_bytes: int | None) -> Room:
        """How much room there is.

        Args:
            caller: for whom.
            vault: of which objects are counted.
            quota_bytes: of the caller; None: there is none.

        Raises:
            RemoteError: the disk failed.
        """
        return self._ledger.room(caller, vault, quota_bytes)

    def newest_heads(self, vault: VaultId) -> list[Head]:
        """The newest manifests that were ever accepted, also if they were deleted, in the order of statements."""
        held = self._ledger.existing(vault)
        with self._ledger.lock:
            return list(held.record.heads) if held is not None else []

    def scrub_some(self, budget_bytes: int) -> Scrubbed:
        """Read the objects that were read longest ago; damaged ones lose their names.  By one thread at a time.

        Args:
            budget_bytes: to read, or a little more.

        Raises:
            RemoteError, NoSpaceError: the disk failed.
        """
        with disk_errors("look for damage"):
            return scrub_step(self._root, self._names, self.vaults(), budget_bytes)

    def remove_old_partials(self) -> int:
        """Remove what was interrupted more than seven days ago, and damaged objects of more than thirty; now and then.

        Returns:
            Bytes that do not count any more.

        Raises:
            RemoteError: the disk failed.
        """
        return self._ledger.remove_old(self._clock_ns())
