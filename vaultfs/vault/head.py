"""HEAD and the witness: which state of the vault is the newest, told inside and outside of it.

Page encryption authenticates pages, not the database: an old page, or the whole old file, put back would open.  So a
clean unmount stores the keyed hash of the database and a generation number in HEAD; a mount verifies them, and says
``open`` in HEAD, durably, before it changes anything.  A copy of generation and HEAD's hash, the witness, stays in the
user's state directory, so that replacing the whole vault by an older copy of itself is seen on this machine.

Every HEAD has a new generation.  One that says ``open`` also names the generation that the database had before; after
a crash the database must be of one of the two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import blake3
import msgspec
from platformdirs import user_state_dir

from vaultfs.crypto.head import HeadRecord, hash_database
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError, RollbackError, StorageError, VaultError
from vaultfs.ids import Generation
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.layout import VaultLayout

LARGEST_HEAD_BYTES: Final = 4096


@dataclass(frozen=True)
class _Witness:
    generation: int
    epoch: int
    head: str


def witness_path(keyring: Keyring) -> Path:
    """Where this user's witness of a vault lies."""
    return Path(user_state_dir("vaultfs")) / "witness" / f"{keyring.vault_id.hex()}.json"


class Head:
    """HEAD of one vault, and its witness.

    Args:
        layout: where the vault is.
        keyring: seals HEAD.
    """

    def __init__(self, layout: VaultLayout, keyring: Keyring) -> None:
        self._layout = layout
        self._keyring = keyring
        self._witness = witness_path(keyring)
        self.record: HeadRecord | None = None

    def load(self, *, accept_any: bool = False) -> HeadRecord:
        """Read HEAD and check it against the witness.

        Args:
            accept_any: do not ask the witness (fsck does so to repair).

        Raises:
            IntegrityError: HEAD is missing or does not open.
            RollbackError: this machine has seen a newer HEAD, or another one of the same generation.
        """
        data = self._read()
        record = HeadRecord.open(self._keyring, data)
        witness = self._load_witness()
        if witness is not None and not accept_any:
            self._compare(record, blake3.blake3(data).hexdigest(), witness)
        self.record = record
        return record

    def _compare(self, record: HeadRecord, digest: str, witness: _Witness) -> None:
        way_out = f"If you put back a backup on purpose, delete {self._witness} and try again"
        if self._keyring.epoch < witness.epoch:
            # Whoever put the old header back may be one whose key was revoked.
            raise RollbackError(
                f"{self._layout.header} is from before the last key rotation that this machine has seen. {way_out}"
            )
        # A crash between writing HEAD and its witness leaves a newer HEAD; never an equal, different one.
        if record.generation < witness.generation or (
            record.generation == witness.generation and digest != witness.head
        ):
            raise RollbackError(
                f"{self._layout.root} is an older copy, or a fork, of the vault: it has generation "
                f"{record.generation}, and this machine has seen {witness.generation}. {way_out}"
            )

    def _read(self) -> bytes:
        path = self._layout.head
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}:
                raise StorageError(f"cannot read {path}: {error.strerror}") from error
            raise IntegrityError(f"{path}: {error.strerror}; restore it, or run vaultfs fsck --repair") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IntegrityError(f"{path} is not a regular file; restore it, or run vaultfs fsck --repair")
            with storage_errors(f"cannot read {path}"):
                return os.read(descriptor, LARGEST_HEAD_BYTES)
        finally:
            os.close(descriptor)

    def verify_database(self) -> None:
        """Check the database against HEAD before it is opened.

        Raises:
            IntegrityError: HEAD says that the vault was closed, and the database is another one.
        """
        record = self._loaded()
        if record.state != "clean":
            return
        path = self._layout.database
        if path.is_symlink() or not path.is_file():
            raise IntegrityError(f"{path} is missing or not a regular file; restore it, or run vaultfs fsck --repair")
        wal = Path(f"{path}-wal")
        if wal.is_symlink() or (wal.exists() and wal.stat().st_size):
            raise IntegrityError(f"{wal} belongs to no state of this vault; move it away, or run vaultfs fsck")
        assert record.epoch is not None
        if hash_database(self._keyring.subkeys(record.epoch), path) != record.database_hash:
            raise IntegrityError(
                f"{path} is not the database that was written at the last unmount: it was changed or replaced; "
                "restore it, or run vaultfs fsck"
            )

    def verify_generation(self, generation: int) -> None:
        """Check what the database says of itself, after a crash.

        Args:
            generation: the database's.

        Raises:
            IntegrityError: it is neither the one that HEAD was written for, nor the one that it announced.
        """
        record = self._loaded()
        announced = {record.generation, int.from_bytes(record.database_hash, "little")}
        if record.state == "open" and generation not in announced:
            raise IntegrityError(
                f"{self._layout.database} is of generation {generation} and HEAD of {record.generation}: one of them "
                "was replaced; restore both together, or run vaultfs fsck"
            )

    def _loaded(self) -> HeadRecord:
        if self.record is None:
            raise IntegrityError("HEAD was never read")
        return self.record

    def write_open(self, generation: int, base: int, *, manifest_hash: bytes | None) -> None:
        """Announce, durably, that the database changes from generation ``base`` to ``generation``.

        Raises:
            NoSpaceError, StorageError: HEAD could not be written.
        """
        # Nothing is known of the database's hash while it is open; the field holds the generation it comes from.
        self._write(HeadRecord(Generation(generation), "open", base.to_bytes(32, "little"), manifest_hash))

    def write_clean(self, generation: int, *, manifest_hash: bytes | None) -> None:
        """Store, durably, which database the vault was closed with; it must be closed and durable.

        Args:
            generation: a new one, so that the witness of the one before does not mistake this HEAD for a fork.
            manifest_hash: of the newest snapshot.

        Raises:
            NoSpaceError, StorageError: HEAD could not be written.
        """
        digest = hash_database(self._keyring.current, self._layout.database)
        self._write(HeadRecord(Generation(generation), "clean", digest, manifest_hash))

    def _write(self, record: HeadRecord) -> None:
        """Store HEAD, and then the witness.

        A witness that cannot be written is no error, as some users have no state directory; the older one stays good.
        """
        data = record.seal(self._keyring.current, self._keyring.vault_id)
        atomic_replace(self._layout.head, data)
        self.record = record
        witness = _Witness(record.generation, self._keyring.epoch, blake3.blake3(data).hexdigest())
        with contextlib.suppress(VaultError, OSError):
            self._witness.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_replace(self._witness, msgspec.json.encode(witness))

    def seen_generation(self) -> int:
        """The newest generation of this vault that this machine has seen; 0 if none.

        Raises:
            IntegrityError: the witness cannot be read.
        """
        witness = self._load_witness()
        return 0 if witness is None else witness.generation

    def _load_witness(self) -> _Witness | None:
        try:
            with self._witness.open("rb") as file:
                data = file.read(LARGEST_HEAD_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IntegrityError(f"cannot read {self._witness}: {error.strerror}") from error
        try:
            return msgspec.json.decode(data, type=_Witness)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise IntegrityError(f"{self._witness} is damaged; delete it if you trust the vault's directory") from None
