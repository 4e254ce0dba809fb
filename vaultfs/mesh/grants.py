"""Who may do what at this peer: a file that a person's commands change and a running server reads.

``grants.json`` is strict and bounded: a file that is damaged, unknown or that others may write grants nothing to
anybody, and says so.  It is replaced whole and durably, under a lock, so that two commands at once lose no entry.  A
server looks at the file for every request; what is revoked ends at once.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.identity import format_peer_id, parse_peer_id
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.kept_file import FORMAT_VERSION, KeptFile

MOST_GRANTS: Final = 1000
LARGEST_FILE_BYTES: Final = 1 << 20
LARGEST_LABEL_CHARACTERS: Final = 64
ANY_VAULT: Final = "*"

_VAULT: Final = re.compile(r"[0-9a-f]{32}")
_LIMIT: Final = 1 << 63
_SETTLED_NS: Final = 10**9
"""A file that was changed less than a second ago is read anew for each request: its times go in steps of up to ten
milliseconds and numbers of files are used again, so another change might not show."""

Access = Literal["read", "write"]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peer: Annotated[str, msgspec.Meta(max_length=100)]
    vault: Annotated[str, msgspec.Meta(max_length=32)]
    access: Access
    quota_bytes: Annotated[int, msgspec.Meta(ge=0, le=_LIMIT - 1)] | None
    label: Annotated[str, msgspec.Meta(max_length=LARGEST_LABEL_CHARACTERS)]
    added_ns: Annotated[int, msgspec.Meta(ge=0, le=_LIMIT - 1)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    grants: Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MOST_GRANTS)]


@dataclass(frozen=True)
class Grant:
    """What a caller may do.

    Attributes:
        peer: who.
        vault: with which vault; None: with any for which the caller has no grant of its own.
        access: ``write`` includes ``read``.
        quota_bytes: of what the caller stores in all vaults together; None: only the peer's own quota counts.
        label: what the person calls the caller; at most 64 characters.
        added_ns: since 1970.
    """

    peer: PeerId
    vault: VaultId | None
    access: Access
    quota_bytes: int | None
    label: str
    added_ns: int

    @property
    def may_write(self) -> bool:
        """Whether it is more than reading."""
        return self.access == "write"


_Table = dict[tuple[PeerId, VaultId | None], Grant]
_Mark = tuple[int, int, int, int, int]
"""Which file it is: times of its bytes and of its owner and mode, length, number, and mode."""


class Grants:
    """The grants of a file, which need not exist.  Thread-safe.

    Args:
        path: the file; its directory is made when something is added.
        clock_ns: nanoseconds since 1970, as the file system has them.
    """

    def __init__(self, path: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._path: Final = path
        self._clock_ns: Final = clock_ns
        self._file: Final = KeptFile(
            path,
            _File,
            LARGEST_FILE_BYTES,
            title="the list of grants",
            advice="Nobody is granted anything until it is restored",
        )
        self._lock: Final = threading.Lock()
        self._mark: _Mark | None = None
        """Of the file that was read; None if it has to be read anew."""
        self._grants: _Table = {}

    def lookup(self, peer: PeerId, vault: VaultId) -> Grant | None:
        """What a caller may do with a vault; the grant for this vault counts before that for any.

        Raises:
            IntegrityError: the file is damaged, is something else, or others may write it: nobody is granted anything.
            FormatTooNewError: a newer vaultfs wrote it; likewise.
            StorageError: it cannot be read; likewise.
        """
        grants = self._current()
        return grants.get((peer, vault)) or grants.get((peer, None))

    def is_known(self, peer: PeerId) -> bool:
        """Whether a caller has any grant.

        Raises:
            IntegrityError, FormatTooNewError, StorageError: as `lookup`.
        """
        return any(known == peer for known, _ in self._current())

    def all(self) -> list[Grant]:
        """Every grant, in the order of peers and vaults.

        Raises:
            IntegrityError, FormatTooNewError, StorageError: as `lookup`.
        """
        return sorted(self._current().values(), key=_order)

    def add(self, grant: Grant) -> None:
        """Add a grant, in place of that for the same caller and vault; durable when this returns.

        Raises:
            UsageError: a value is out of its bounds, or there are `MOST_GRANTS`.
            IntegrityError, FormatTooNewError, VaultLockedError: the file is left as it is.
            NoSpaceError, ReadOnlyError, StorageError: it was not added.
        """
        with self._file.locked():
            grants = self._read()
            grants[grant.peer, grant.vault] = grant
            self._save(grants)

    def remove(self, peer: PeerId, vault: VaultId | None = None, *, every: bool = False) -> int:
        """Remove a grant; durable when this returns.

        Args:
            peer: whose.
            vault: for which vault; None: the one for any vault.
            every: all grants of this peer instead.

        Returns:
            How many there were.

        Raises:
            IntegrityError, FormatTooNewError, VaultLockedError, NoSpaceError, ReadOnlyError, StorageError: nothing was
                removed.
        """
        with self._file.locked():
            grants = self._read()
            gone = [which for which in grants if which[0] == peer and (every or which[1] == vault)]
            for which in gone:
                del grants[which]
            if gone:
                self._save(grants)
        return len(gone)

    def _current(self) -> _Table:
        with self._lock:
            mark = self._look()
            if mark is None or mark != self._mark:
                self._mark = None  # if the file cannot be read the old grants do not count any more
                self._grants = self._read() if mark is not None else {}
                if mark is not None and self._clock_ns() - max(mark[:2]) > _SETTLED_NS:
                    self._mark = mark
            return self._grants

    def _look(self) -> _Mark | None:
        with storage_errors(f"cannot look at {self._path}"):
            try:
                status = self._path.lstat()
            except FileNotFoundError:
                return None
        if status.st_mode & 0o022:
            raise IntegrityError(
                f"others may write {self._path}, so nobody is granted anything; look at it, then run: "
                f"chmod 600 {self._path}"
            )
        return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode)

    def _read(self) -> _Table:
        self._look()
        content = self._file.load()
        return self._table(content.grants) if content is not None else {}

    def _table(self, entries: Iterable[_Entry]) -> _Table:
        grants: _Table = {}
        for entry in entries:
            if entry.vault != ANY_VAULT and not _VAULT.fullmatch(entry.vault):
                raise self._file.damaged(f"{entry.vault!r} is no vault's id")
            try:
                peer = parse_peer_id(entry.peer)
            except UsageError as error:
                raise self._file.damaged(str(error)) from error
            vault = None if entry.vault == ANY_VAULT else VaultId(bytes.fromhex(entry.vault))
            if (peer, vault) in grants:
                raise self._file.damaged(f"two grants of {entry.peer} for {entry.vault}")
            grants[peer, vault] = Grant(peer, vault, entry.access, entry.quota_bytes, entry.label, entry.added_ns)
        return grants

    def _save(self, grants: _Table) -> None:
        entries = tuple(
            _Entry(
                peer=format_peer_id(grant.peer),
                vault=ANY_VAULT if grant.vault is None else grant.vault.hex(),
                access=grant.access,
                quota_bytes=grant.quota_bytes,
                label=grant.label,
                added_ns=grant.added_ns,
            )
            for grant in sorted(grants.values(), key=_order)
        )
        content = _File(FORMAT_VERSION, entries)
        try:
            self._table(msgspec.json.decode(msgspec.json.encode(content), type=_File).grants)
        except (msgspec.MsgspecError, UnicodeError, IntegrityError) as error:
            raise UsageError(f"such a grant cannot be kept: {error}") from error
        self._file.save(content)


def _order(grant: Grant) -> tuple[bytes, bytes]:
    return (grant.peer, grant.vault or b"")
