"""What is known to lie on a remote, kept on this machine: so a sync need not ask for what it has sent itself.

A file for each vault and remote, ``$XDG_STATE_HOME/vaultfs/sync/<vault id>/<remote>/ledger``.  Each line is a statement
and the first 16 digits of its BLAKE3; a line that is damaged counts as not written.

    ledger 1 <vault id> <hash of the remote's name>     the first line
    listed                      all segments of the remote were listed once, and what was found stands below
    offered <hash>              a vault.json that is about to be put, or was
    header <hash>               the vault.json that is there
    put <segment> <size>        acknowledged by the remote, but not asked for yet
    there <segment> <size>      known to be there
    known <device> <seq> <hash>   a snapshot of ours, or before ours, that the remote has
    whole <device> <seq> <hash>   likewise, and all its segments are there
    branch <device> <seq> <hash>  a snapshot of another history, which a person has accepted beside ours
    dropped <device> <seq> <hash>  a snapshot that `prune` has given up there: not to be sent again
    gone <segment>              must not be relied upon any more: a prune may delete it, or it was asked for in vain
    claim <token>               of a prune of this machine, which was interrupted if that is there still
    condemned <hash>            the record of a prune whose ``dropped`` and ``gone`` stand above, or the mark of one

Lines are only added, and each is true when it is written.  So a lost one costs a request or sending something again,
never a gap on the remote: the last line may be cut by a crash, and nothing needs to be synced but what a prune takes
away.  If more is damaged, or the file is lost or of another remote, the remote is listed anew.  One process at a time
writes: it holds ``lock``.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import blake3
from platformdirs import user_state_path

from vaultfs.errors import UsageError, VaultLockedError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.storage.durable import atomic_replace, storage_errors, write_all
from vaultfs.storage.layout import is_segment_name
from vaultfs.sync.remote_layout import RemoteHead, head_key, parse_head

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_SIZE: Final = re.compile(r"[1-9][0-9]{0,18}")
_CHECK_DIGITS: Final = 16
_LONGEST_LINE: Final = 400
_FILE_FLAGS: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass
class Holdings:
    """What a ledger says.

    Attributes:
        is_listed: the remote was listed once, and nothing of that was lost.
        header: hash of the vault.json that is there, as far as known.
        offered: hashes of every vault.json that this machine ever put, or tried to.
        put: segments acknowledged only, and their sizes.
        there: segments that are there, and their sizes.
        heads: snapshots of this vault's history, by hash.
        whole: hashes of those whose segments are all there.
        branches: snapshots of other histories that were accepted beside ours, by hash.
        dropped: snapshots that are not to be sent again, by hash; not always ours.
        claims: tokens of the claims of prunes of this machine.
        condemned: hashes of the records, and tokens of the marks, of prunes that this ledger has taken in.
    """

    is_listed: bool = False
    header: str | None = None
    offered: set[str] = field(default_factory=set)
    put: dict[SegmentName, int] = field(default_factory=dict)
    there: dict[SegmentName, int] = field(default_factory=dict)
    heads: dict[str, RemoteHead] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    branches: dict[str, RemoteHead] = field(default_factory=dict)
    dropped: dict[str, RemoteHead] = field(default_factory=dict)
    claims: set[str] = field(default_factory=set)
    condemned: set[str] = field(default_factory=set)

    def apply(self, statement: str) -> bool:
        """Believe a line; False if it makes no sense."""
        match statement.split(" "):
            case ["listed"]:
                self.is_listed = True
            case [("offered" | "header") as kind, digest] if is_segment_name(digest):
                self.offered.add(digest)
                if kind == "header":
                    self.header = digest
            case ["put", name, size] if is_segment_name(name) and _SIZE.fullmatch(size):
                self.there.pop(SegmentName(name), None)
                self.put[SegmentName(name)] = int(size)
            case ["there", name, size] if is_segment_name(name) and _SIZE.fullmatch(size):
                self.put.pop(SegmentName(name), None)
                self.there[SegmentName(name)] = int(size)
            case ["gone", name] if is_segment_name(name):
                self.put.pop(SegmentName(name), None)
                self.there.pop(SegmentName(name), None)
            case ["claim", token] if is_segment_name(token):
                self.claims.add(token)
            case ["condemned", digest] if is_segment_name(digest):
                self.condemned.add(digest)
            case [("known" | "whole" | "branch" | "dropped") as kind, device, seq, digest]:
                head = parse_head(f"heads/{device}/{seq}-{digest}")
                if head is None:
                    return False
                self._apply_head(kind, head)
            case _:
                return False
        return True

    def _apply_head(self, kind: str, head: RemoteHead) -> None:
        match kind:
            case "branch":
                self.branches[head.hash] = head
            case "dropped":
                self.whole.discard(head.hash)
                self.dropped[head.hash] = head
            case "known":
                self.heads[head.hash] = head
            case "whole":
                self.heads[head.hash] = head
                self.whole.add(head.hash)
                self.dropped.pop(head.hash, None)

    def statements(self) -> Iterator[str]:
        """The same as lines."""
        yield from (f"offered {digest}" for digest in sorted(self.offered))
        if self.header is not None:
            yield f"header {self.header}"
        yield from (f"there {name} {size}" for name, size in self.there.items())
        yield from (f"put {name} {size}" for name, size in self.put.items())
        for head in self.heads.values():
            yield _head_statement("whole" if head.hash in self.whole else "known", head)
        yield from (_head_statement("dropped", head) for head in self.dropped.values())
        yield from (_head_statement("branch", head) for head in self.branches.values())
        yield from (f"claim {token}" for token in sorted(self.claims))
        yield from (f"condemned {digest}" for digest in sorted(self.condemned))
        if self.is_listed:
            yield "listed"


def _head_statement(kind: str, head: RemoteHead) -> str:
    device, _, name = head_key(head).removeprefix("heads/").partition("/")
    return f"{kind} {device} {name.replace('-', ' ')}"


def _line(statement: str) -> bytes:
    data = statement.encode()
    return b"%s %s\n" % (data, _check(data))


def _check(data: bytes) -> bytes:
    return blake3.blake3(data).hexdigest()[:_CHECK_DIGITS].encode()


def _statement(line: bytes) -> str | None:
    """What a line says; None if it is damaged."""
    data, _, check = line.removesuffix(b"\n").rpartition(b" ")
    if not line.endswith(b"\n") or check != _check(data):
        return None
    return data.decode("ascii", errors="replace")


class Ledger:
    """Where the ledger of one remote is.  Making one touches no disk.

    Args:
        directory: its own.
        vault_id: the vault's.
    """

    def __init__(self, directory: Path, vault_id: VaultId) -> None:
        self._directory = directory
        self._vault_id = vault_id

    @classmethod
    def of(cls, vault_id: VaultId, remote: str) -> Self:
        """The ledger in the user's state directory.

        Args:
            vault_id: the vault's.
            remote: what the person calls it.

        Raises:
            UsageError: a name that cannot be one.
        """
        if not _NAME.fullmatch(remote):
            raise UsageError(f"not the name of a remote: {remote!r}; use letters, digits, '-', '_' and '.', at most 64")
        root = user_state_path("vaultfs", appauthor=False)
        return cls(root / "sync" / vault_id.hex() / remote, vault_id)

    @property
    def path(self) -> Path:
        """The file."""
        return self._directory / "ledger"

    def read(self, remote: str) -> Holdings:
        """What it says, while somebody else may be writing.  Nothing is changed.

        Args:
            remote: the store's name; a ledger that was written for another one says nothing.

        Raises:
            StorageError: it cannot be read.
        """
        return self._load(self._first(remote))[0]

    def looking(self, remote: str) -> OpenLedger:
        """The ledger as a store of what is learned, which is forgotten again: for a dry run.

        Raises:
            StorageError: it cannot be read.
        """
        return OpenLedger(self.read(remote), None, "")

    @contextmanager
    def locked(self, remote: str) -> Iterator[OpenLedger]:
        """The ledger for writing, by this process alone.

        Args:
            remote: the store's name.

        Raises:
            VaultLockedError: another process syncs this vault with this remote.
            NoSpaceError, ReadOnlyError, StorageError: it cannot be created, read or repaired.
        """
        lock = self._take_lock(remote)
        try:
            first = self._first(remote)
            holdings, is_sound = self._load(first)
            ledger = OpenLedger(holdings, self.path, first)
            try:
                ledger.open(is_sound=is_sound)
                yield ledger
            finally:
                ledger.close()
        finally:
            os.close(lock)

    def _take_lock(self, remote: str) -> int:
        with storage_errors(f"cannot use {self._directory}"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._directory / "lock", os.O_RDWR | _FILE_FLAGS, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise VaultLockedError(f"another sync with {remote} is running; wait until it is done") from None
            except BaseException:
                os.close(lock)
                raise
        return lock

    def _first(self, remote: str) -> str:
        return f"ledger 1 {self._vault_id.hex()} {blake3.blake3(remote.encode()).hexdigest()}"

    def _load(self, first: str) -> tuple[Holdings, bool]:
        """What it says, and whether the file is sound: lines can be added to it."""
        holdings = Holdings()
        with storage_errors(f"cannot read {self.path}"):
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return holdings, False
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode) or _statement(file.readline(_LONGEST_LINE)) != first:
                    return holdings, False
                return holdings, _read_lines(file, holdings)


def _read_lines(file: io.BufferedReader, holdings: Holdings) -> bool:
    """Believe what is sound; False if anything was not."""
    bad = last_is_bad = 0
    while line := file.readline(_LONGEST_LINE):
        statement = _statement(line)
        last_is_bad = statement is None or not holdings.apply(statement)
        bad += last_is_bad
    if bad > last_is_bad:  # more than a torn end: something that was found by listing may be missing
        holdings.is_listed = False
    return not bad


class OpenLedger:
    """A ledger that is being written.  Threads may share it.

    Attributes:
        holdings: what it says; look at it, but change it by the methods only.
    """

    def __init__(self, holdings: Holdings, path: Path | None, first: str) -> None:
        self.holdings = holdings
        self._path = path
        self._first = first
        self._descriptor = -1
        self._lock = threading.Lock()

    def open(self, *, is_sound: bool) -> None:
        """Begin to write; a file that is not sound is replaced by what was sound in it."""
        if is_sound:
            self._open()
        else:
            self.replace(self.holdings)

    def replace(self, holdings: Holdings) -> None:
        """Say something else from now on.

        Raises:
            NoSpaceError, StorageError: it cannot be written.
        """
        with self._lock:
            self.holdings = holdings
            if self._path is not None:
                lines = (_line(statement) for statement in (self._first, *holdings.statements()))
                atomic_replace(self._path, b"".join(lines))
                self._open()

    def _open(self) -> None:
        if self._path is None:
            return
        self.close()
        with storage_errors(f"cannot open {self._path}"):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | _FILE_FLAGS, 0o600)

    def close(self) -> None:
        """Stop writing.  Doing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def offered(self, digest: str) -> None:
        """A ``vault.json`` is about to be put."""
        if digest not in self.holdings.offered:
            self._add(f"offered {digest}")

    def header(self, digest: str) -> None:
        """A ``vault.json`` is there."""
        if self.holdings.header != digest:
            self._add(f"header {digest}")

    def put(self, name: SegmentName, size: int) -> None:
        """The remote has acknowledged a segment."""
        self._add(f"put {name} {size}")

    def there(self, name: SegmentName, size: int) -> None:
        """A segment is there."""
        self._add(f"there {name} {size}")

    def gone(self, name: SegmentName) -> None:
        """A segment that was acknowledged once is not there."""
        self._add(f"gone {name}")

    def known(self, head: RemoteHead) -> None:
        """A snapshot of this vault's history is there."""
        if head.hash not in self.holdings.heads:
            self._add(_head_statement("known", head))

    def whole(self, head: RemoteHead) -> None:
        """A snapshot and all its segments are there; durable on return."""
        self._add(_head_statement("whole", head))
        self._sync()

    def branch(self, head: RemoteHead) -> None:
        """A snapshot of another history was accepted beside ours."""
        if head.hash not in self.holdings.branches:
            self._add(_head_statement("branch", head))

    def claim(self, token: str) -> None:
        """A prune of this machine is about to claim the deletion; durable on return."""
        self._add(f"claim {token}")
        self._sync()

    def condemned(self, record: str, heads: Iterable[RemoteHead], segments: Iterable[SegmentName]) -> None:
        """A prune has given these up; durable on return, so that nothing relies on them when they are deleted.

        Args:
            record: the hash of its record.
            heads: are not to be sent again.
            segments: may be deleted at any time.
        """
        holdings = self.holdings
        lines = [_head_statement("dropped", head) for head in heads if head.hash not in holdings.dropped]
        lines += [f"gone {name}" for name in segments if name in holdings.there or name in holdings.put]
        self._add(*lines, f"condemned {record}")  # last: if the lines before it are torn, the record is read again
        self._sync()

    def _sync(self) -> None:
        if self._descriptor >= 0:
            with storage_errors(f"cannot sync {self._path}"):
                os.fdatasync(self._descriptor)

    def _add(self, *statements: str) -> None:
        with self._lock:
            for statement in statements:
                self.holdings.apply(statement)
            if self._descriptor >= 0:
                with storage_errors(f"cannot write {self._path}"):
                    write_all(self._descriptor, b"".join(map(_line, statements)))
