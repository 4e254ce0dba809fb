"""A vault opened for looking at: locked and unlocked, HEAD judged but not obeyed, nothing recovered.

A mount refuses a vault that HEAD or the witness contradicts; fsck and scrub want to see it all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError, RollbackError, StorageError, VaultError
from vaultfs.metadata.database import MetadataDatabase, database_failures
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.vault.adoption_record import AdoptionRecord, load_adoption
from vaultfs.vault.head import Head, witness_path
from vaultfs.vault.opening import load_header, open_database

if TYPE_CHECKING:
    import os

    from vaultfs.crypto.head import HeadRecord
    from vaultfs.crypto.keys import Keyring
    from vaultfs.crypto.slots import Secret


class Problem(NamedTuple):
    """Something wrong with the vault as a whole."""

    code: str
    message: str


@dataclass
class Inspection:
    """What can be said before the database is read.

    Attributes:
        layout: where the vault is.
        keyring: its keys.
        lock: held.
        head: to write a new HEAD with.
        record: what HEAD says; None if it cannot be read.
        seen_generation: the largest one that HEAD or the witness knows.
        problems: with HEAD, the witness, and how the database fits them.
        database: open, or None if it cannot be.
        has_foreign_wal: a log lies beside a database that does not need one.
        adoption: one that was interrupted.
    """

    layout: VaultLayout
    keyring: Keyring
    lock: VaultLock
    head: Head
    record: HeadRecord | None = None
    seen_generation: int = 0
    problems: list[Problem] = field(default_factory=list)
    database: MetadataDatabase | None = None
    has_foreign_wal: bool = False
    adoption: AdoptionRecord | None = None

    @property
    def was_closed(self) -> bool:
        """Whether HEAD says that the vault was unmounted in order."""
        return self.record is not None and self.record.state == "clean"

    def wal_paths(self) -> list[Path]:
        """The log beside the database, and what SQLite keeps with it, as far as they exist."""
        paths = [Path(f"{self.layout.database}{suffix}") for suffix in ("-wal", "-shm")]
        return [path for path in paths if path.is_symlink() or path.exists()]


@contextmanager
def inspecting(
    path: str | os.PathLike[str],
    secret: Secret,
    *,
    purpose: str,
    writable: bool,
    on_unlocked: Callable[[], None] | None = None,
) -> Iterator[Inspection]:
    """Lock and unlock a vault, look at HEAD, and open the database if that is possible.

    Args:
        path: the vault's directory.
        secret: opens a key slot.
        purpose: shown to others that want the vault.
        writable: the database will be changed.
        on_unlocked: called once the key derivation is done.

    Raises:
        NotAVaultError, FormatTooNewError, WrongPasswordError, VaultLockedError: as their names say.
        IntegrityError: ``vault.json`` is damaged; without it there are no keys.
        StorageError: the disk failed.
    """
    layout = VaultLayout(Path(path))
    load_header(layout)
    with VaultLock.acquire(layout, purpose=purpose) as lock:
        keyring = load_header(layout).unlock(secret)
        if on_unlocked is not None:
            on_unlocked()
        inspection = Inspection(layout, keyring, lock, Head(layout, keyring), adoption=load_adoption(layout, keyring))
        _look_at_head(inspection)
        _look_at_database(inspection)
        try:
            _open_database(inspection, writable=writable)
            yield inspection
        finally:
            if inspection.database is not None:
                inspection.database.close()


def _look_at_head(inspection: Inspection) -> None:
    head = inspection.head
    try:
        inspection.record = head.load()
    except RollbackError as error:
        inspection.problems.append(Problem("rollback", str(error)))
    except VaultError as error:
        inspection.problems.append(Problem("head-damaged", str(error)))
    if inspection.record is None:
        with contextlib.suppress(VaultError):  # reported just now
            inspection.record = head.load(accept_any=True)
    generations = [0 if inspection.record is None else inspection.record.generation]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged witness was reported just now
        generations.append(int(msgspec.json.decode(witness_path(inspection.keyring).read_bytes())["generation"]))
    inspection.seen_generation = max(generations)


def _look_at_database(inspection: Inspection) -> None:
    if inspection.record is None:
        return
    wal = [path for path in inspection.wal_paths() if path.name.endswith("-wal")]
    if inspection.was_closed and wal and (wal[0].is_symlink() or not wal[0].is_file() or wal[0].stat().st_size):
        inspection.has_foreign_wal = True
    try:
        inspection.head.verify_database()
    except VaultError as error:
        code = "foreign-log" if inspection.has_foreign_wal else "database-replaced"
        inspection.problems.append(Problem(code, str(error)))


def _open_database(inspection: Inspection, *, writable: bool) -> None:
    # After a clean unmount the file is complete without its log, and need not be changed for looking at it.
    immutable = not writable and inspection.was_closed
    if writable and inspection.has_foreign_wal:
        return  # not before the log is out of the way; see reopen
    try:
        inspection.database = open_database(inspection.layout, inspection.keyring, immutable=immutable)
        if not writable and not immutable:
            inspection.database.keep_log()  # or SQLite would move it into the file at close
        generation = inspection.database.setting("generation")
    except FormatTooNewError:
        raise
    except (IntegrityError, StorageError, database_failures()) as error:
        inspection.problems.append(Problem("database-unreadable", f"metadata.db cannot be opened: {error}"))
        if inspection.database is not None:
            inspection.database.close()
            inspection.database = None
        return
    inspection.seen_generation = max(inspection.seen_generation, generation)
    if inspection.record is None:
        return
    if inspection.adoption is not None and inspection.adoption.is_carried_out(inspection.database):
        manifest_hash = bytes.fromhex(inspection.adoption.snapshot_id)
        inspection.record = replace(inspection.record, manifest_hash=manifest_hash)
    try:
        inspection.head.verify_generation(generation)
    except VaultError as error:
        inspection.problems.append(Problem("generation", str(error)))


def reopen(inspection: Inspection) -> None:
    """Try to open the database again, for changing it, after what was in the way has been moved."""
    inspection.has_foreign_wal = False
    _open_database(inspection, writable=True)
