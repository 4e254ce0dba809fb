"""HEAD and the witness: which state of the vault is the newest, told inside and outside of it.

Page encryption authenticates pages, not the database: an old page, or the whole old file, put back would open.  So a
clean unmount stores the keyed hash of the database and a generation number in HEAD; a mount verifies them, and says
``open`` in HEAD, durably, before it changes anything.  A copy of generation and HEAD's hash, the witness, stays in the
user's state directory, so that replacing the whole vault by an older copy of itself is seen on this machine.

While HEAD says ``open``, the database must be of its generation or, if the crash came first, of the one before.
"""

from __future__ import annotations

import contextlib
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
from vaultfs.errors import IntegrityError, RollbackError, VaultError
from vaultfs.ids import Generation
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.layout import VaultLayout

LARGEST_HEAD_BYTES: Final = 4096


@dataclass(frozen=True)
class _Witness:
    generation: int
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
            digest = blake3.blake3(data).hexdigest()
            if record.generation < witness.generation or (
                record.generation == witness.generation and digest != witness.head
                # A crash between writing HEAD and its witness leaves a newer HEAD; never an equal, different one.
            ):
                raise RollbackError(
                    f"{self._layout.root} is an older copy, or a fork, of the vault: it has generation "
                    f"{record.generation}, and this machine has seen {witness.generation}. If you put back a backup on "
                    f"purpose, delete {self._witness} and try again"
                )
        self.record = record
        return record

    def _read(self) -> bytes:
        path = self._layout.head
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise IntegrityError(f"{path}: {error.strerror}; restore it, or run vaultfs fsck --repair") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IntegrityError(f"{path} is not a regular file; restore it, or run vaultfs fsck --repair")
            with storage_errors(f"cannot read {path}"):
                return os.read(descriptor, LARGEST_HEAD_BYTES)
        finally:
            os.close(descriptor)

    def verify_database(self, generation: int | None) -> None:
        """Check the database against HEAD.

        Args:
            generation: what the database says of itself; None: before it is opened, so that only its hash counts.

        Raises:
            IntegrityError: it is not the one that HEAD describes.
        """
        record = self.record
        assert record is not None
        path = self._layout.database
        if record.state == "clean":
            assert record.epoch is not None
            wal = Path(f"{path}-wal")
            if wal.is_symlink() or (wal.exists() and wal.stat().st_size):
                raise IntegrityError(f"{wal} belongs to no state of this vault; move it away, or run vaultfs fsck")
            if generation is None and hash_database(self._keyring.subkeys(record.epoch), path) != record.database_hash:
                raise IntegrityError(
                    f"{path} is not the database that was written at the last unmount: it was changed or replaced; "
                    "restore it, or run vaultfs fsck"
                )
        if generation is not None:
            allowed = {record.generation} if record.state == "clean" else {record.generation, record.generation - 1}
            if generation not in allowed:
                raise IntegrityError(
                    f"{path} is of generation {generation} and HEAD of {record.generation}: one of them was replaced; "
                    "restore both together, or run vaultfs fsck"
                )

    def write(self, generation: int, *, is_clean: bool, manifest_hash: bytes | None) -> None:
        """Store HEAD durably, and then the witness.  With ``is_clean`` the database must be closed.

        Raises:
            NoSpaceError, StorageError: HEAD could not be written.  A witness that cannot be written is no error, as
                some users have no state directory; the file itself says then what was seen last.
        """
        subkeys = self._keyring.current
        record = HeadRecord(
            Generation(generation),
            "clean" if is_clean else "open",
            hash_database(subkeys, self._layout.database) if is_clean else bytes(32),
            manifest_hash,
        )
        data = record.seal(subkeys, self._keyring.vault_id)
        atomic_replace(self._layout.head, data)
        self.record = record
        witness = _Witness(generation, blake3.blake3(data).hexdigest())
        with contextlib.suppress(VaultError, OSError):
            self._witness.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_replace(self._witness, msgspec.json.encode(witness))

    def _load_witness(self) -> _Witness | None:
        try:
            data = self._witness.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IntegrityError(f"cannot read {self._witness}: {error.strerror}") from error
        try:
            return msgspec.json.decode(data, type=_Witness)
        except msgspec.DecodeError:
            raise IntegrityError(f"{self._witness} is damaged; delete it if you trust the vault's directory") from None
