"""One vault as a peer holds it: its directory, what is remembered of it, and whose its bytes are.

Below the peer's root, ``<vault id in hexadecimal>/`` is laid out as every remote is, so that a person can use it with
``file:///``.  Beside the objects lies ``.mesh/``, which is no key:

``record.json``   what is remembered (`vaultfs.mesh.replica_record`)
``others``        whose objects are not the first writer's (`vaultfs.mesh.replica_usage`)
``partial/``      what is coming, or was interrupted (`vaultfs.mesh.partial_uploads`)
``damaged/``      objects that were found damaged, by the hash they should have; for a person, thirty days; they count
                  for nobody

A ``vault.json`` that is replaced stays for a while, below ``headers/`` (`vaultfs.mesh.kept_headers`).

Where record and objects are of different times, as when a disk was restored from a backup, both count: what lies on the
disk is what there is, heads that are there are remembered too, and who signed those is a device, but may delete only
when the vault's owner stores another manifest of it, and then has to wait like any that turns up later.  Where the
record is lost, and so who the owner was, all have to wait.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Generator
from contextlib import closing
from pathlib import Path
from typing import Final

import blake3

from vaultfs.errors import FormatTooNewError, IntegrityError, NoSpaceError, RemoteRefusedError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import kept_headers, replica_files
from vaultfs.mesh.kept_headers import HEADERS_PREFIX, KeptHeader, parse_kept_header, surplus
from vaultfs.mesh.partial_uploads import KEPT_NS, parse_partial_name
from vaultfs.mesh.replica_files import disk_errors
from vaultfs.mesh.replica_keys import Kind, ObjectKey, parse_object_key, require_object_key
from vaultfs.mesh.replica_record import LARGEST_RECORD_BYTES, MOST_WRITERS, VaultRecord
from vaultfs.mesh.replica_usage import Coming, VaultUsage, charged_bytes
from vaultfs.mesh.witness import Head
from vaultfs.storage.anchored_paths import directory_below, is_regular
from vaultfs.sync.remote_layout import HEADER_KEY

MESH_DIRECTORY: Final = ".mesh"
DAMAGED_KEPT_NS: Final = 30 * 24 * 3600 * 10**9

_VAULT: Final = re.compile(r"[0-9a-f]{32}")
_RECORD: Final = "record.json"
_LOG: Final = "others"
_LARGEST_LOG_BYTES: Final = 64 << 20
LEAST_LOG_BYTES: Final = 1 << 20
"""The log is written anew when it has this, and twice what is needed: a note may be replaced as often as somebody
likes, nobody pays for the log, and only the beginning of a long one is read."""


def parse_vault_directory(name: str) -> VaultId | None:
    """The vault whose directory has this name; None if it is none."""
    return VaultId(bytes.fromhex(name)) if _VAULT.fullmatch(name) else None


def remembered_devices(store: Path, vault: VaultId) -> frozenset[bytes]:
    """The devices of a vault that a peer remembers, also while its server runs; none if that cannot be read.

    Args:
        store: the peer's directory.
        vault: its id.
    """
    try:
        with (store / vault.hex() / MESH_DIRECTORY / _RECORD).open("rb") as file:
            return frozenset(VaultRecord.decode(file.read(LARGEST_RECORD_BYTES + 1)).devices)
    except (OSError, IntegrityError, FormatTooNewError):
        return frozenset()


class HeldVault:
    """A vault.  Not thread-safe but where it says so: the store has a lock.

    Args:
        root: the peer's directory, open; stays its owner's.
        vault: its id.

    Attributes:
        vault: its id.
        directory: its name below the root.
        record: what is remembered; `save` it after a change.
        usage: whose bytes are whose.
    """

    def __init__(self, root: int, vault: VaultId) -> None:
        self.vault: Final = vault
        self.directory: Final = vault.hex()
        self.record = VaultRecord()
        self.usage = VaultUsage()
        self._root: Final = root
        self._log_bytes = 0
        self._is_saved = True
        """Whether the record on the disk is what is remembered."""

    def path(self, wanted: ObjectKey) -> list[str]:
        """Where an object lies, below the root."""
        return [self.directory, *wanted.parts]

    def partial_path(self, name: str) -> list[str]:
        """Where something lies that is coming."""
        return [self.directory, MESH_DIRECTORY, "partial", name]

    def damaged_path(self, digest: bytes) -> list[str]:
        """Where an object lies that was found damaged."""
        return [self.directory, MESH_DIRECTORY, "damaged", digest.hex()]

    def make(self, durable: set[tuple[str, ...]]) -> None:
        """Make its directories.

        Raises:
            OSError: the disk failed.
        """
        replica_files.make_directories(self._root, self.partial_path("")[:-1], durable)

    def load(self, now_ns: int) -> list[str]:
        """Read what is remembered, and count what is there.

        Returns:
            What was found wrong, for people.

        Raises:
            FormatTooNewError: a newer vaultfs wrote the record.
            RemoteError, NoSpaceError: the disk failed.
        """
        with disk_errors(f"read its replica of vault {self.directory}"):
            warnings = self._load_record()
            log = replica_files.read_file(self._root, self._mesh_path(_LOG), _LARGEST_LOG_BYTES)
            self.usage = VaultUsage(log or b"")
            before = self.record.encode()
            is_lost = not self.record.writers  # nobody knows any more who stored what is there
            for wanted, size_bytes in self.objects():
                self.usage.count(wanted.key, size_bytes, len(self.record.writers))
                if wanted.kind is Kind.HEAD:
                    head = Head(wanted.seq, wanted.digest or b"", wanted.device)
                    try:
                        if not self.record.has_remembered(head):
                            self.record.remember(head, now_ns, is_of_owner=is_lost, may_be_first=False)
                    except NoSpaceError as error:
                        warnings.append(f"{wanted.key} of vault {self.directory} is not remembered: {error}")
            if self.record.encode() != before:
                self.save()
            if (counted := self.usage.log()) != (log or b""):
                replica_files.replace_file(self._root, self._mesh_path(_LOG), counted)
            self._log_bytes = len(counted)
        return warnings

    def objects(self, prefix: str = "", after: str = "") -> Generator[tuple[ObjectKey, int], None, None]:
        """Its objects and their lengths, in ascending order of keys.  Thread-safe.

        Args:
            prefix: empty, or ending with ``/``.
            after: only keys after this one.

        Raises:
            OSError: the disk failed.
        """
        parts = prefix.split("/")[:-1]
        with closing(replica_files.walk(self._root, [self.directory, *parts], after, prefix)) as found:
            for key, size_bytes in found:
                if (wanted := parse_object_key(key)) is not None:
                    yield wanted, size_bytes

    def save(self) -> None:
        """Write down what is remembered; durable when this returns.

        Raises:
            OSError: the disk failed; it is written with the next change.
        """
        self._is_saved = False
        replica_files.replace_file(self._root, self._mesh_path(_RECORD), self.record.encode())
        self._is_saved = True

    def remember(self, head: Head, now_ns: int, *, is_of_owner: bool) -> None:
        """Note a manifest, durably, as `VaultRecord.remember`.

        Raises:
            NoSpaceError: there are too many devices.
            OSError: the disk failed.
        """
        if not self.record.has_remembered(head, is_of_owner=is_of_owner):
            self.record.remember(head, now_ns, is_of_owner=is_of_owner)
            self._is_saved = False
        if not self._is_saved:
            self.save()

    def add_writer(self, caller: PeerId) -> None:
        """A caller is going to store something; one that never did is noted, durably.

        Raises:
            RemoteRefusedError: there are too many.
            OSError: the disk failed.
        """
        writers = self.record.writers
        if caller not in writers:
            if len(writers) >= MOST_WRITERS:
                raise RemoteRefusedError(f"{MOST_WRITERS} callers store in this vault at this peer, as many as may")
            writers.append(caller)
            self._is_saved = False
        if not self._is_saved:
            self.save()

    def stored(self, wanted: ObjectKey, size_bytes: int, caller: PeerId, replaced_bytes: int | None) -> None:
        """An object has got its name: it counts for whoever stored it, or the same bytes, first.

        Args:
            wanted: its key.
            size_bytes: its length.
            caller: who stored it, a writer.
            replaced_bytes: the length of what lay there; None if nothing did.

        Raises:
            OSError: it counts, but for whom could not be written down.
        """
        writer = self.record.writers.index(caller)
        log = b""
        if replaced_bytes is not None:
            before, log = self.usage.remove(wanted.key, replaced_bytes)
            if wanted.digest is not None:
                writer = before
        self._append_log(log + self.usage.add(wanted.key, size_bytes, writer))

    def keep_header(self, data: bytes, now_ns: int) -> None:
        """Keep a ``vault.json`` that is about to be replaced, durably, as long as there are not too many.

        Args:
            data: of the file that lies there.
            now_ns: since 1970, by this machine's clock.

        Raises:
            OSError: the disk failed.
        """
        digest = blake3.blake3(data)
        status = replica_files.status_of(self._root, [self.directory, HEADER_KEY])
        stood_s = 0 if status is None else max(0, now_ns - status.st_mtime_ns) // 10**9
        revision = self.record.revision_of(digest.digest())
        before = [each for each in self._kept_headers() if each.digest == digest.hexdigest()]
        new = KeptHeader(
            max([revision, *(each.revision for each in before)]),
            stood_s + max((each.stood_s for each in before), default=0),
            digest.hexdigest(),
        )
        path = self.path(require_object_key(str(new)))
        replica_files.make_directories(self._root, path[:-1], set())
        if new not in before:
            replica_files.replace_file(self._root, path, data)
            self._append_log(self.usage.add(str(new), len(data), self.usage.writer_of(HEADER_KEY)))
            self._remove_headers(before)
        self._remove_headers(surplus(self._kept_headers()))

    def _kept_headers(self) -> dict[KeptHeader, int]:
        """Headers that were replaced, and their lengths."""
        found = {parse_kept_header(wanted.key): size_bytes for wanted, size_bytes in self.objects(HEADERS_PREFIX)}
        return {kept: size_bytes for kept, size_bytes in found.items() if kept is not None}

    def _remove_headers(self, gone: Collection[KeptHeader]) -> None:
        for each in gone:
            wanted = require_object_key(str(each))
            size_bytes = replica_files.remove_file(self._root, self.path(wanted))
            if size_bytes is not None:
                self.removed(wanted, size_bytes)

    def recount(self) -> None:
        """Count what is there: a damaged object may have lost or won bytes since it was counted.

        Raises:
            OSError: the disk failed; the old count stays.
        """
        usage = VaultUsage(self.usage.log())
        for wanted, size_bytes in self.objects():
            usage.count(wanted.key, size_bytes, len(self.record.writers))
        self.usage = usage

    def removed(self, wanted: ObjectKey, size_bytes: int) -> None:
        """An object has lost its name.

        Raises:
            OSError: it does not count any more, but that could not be written down.
        """
        self._append_log(self.usage.remove(wanted.key, size_bytes)[1])

    def charged_to(self, caller: PeerId) -> int:
        """Bytes of objects that count for a caller."""
        writers = self.record.writers
        return self.usage.charged_to(writers.index(caller)) if caller in writers else 0

    def interrupted(self, now_ns: int, active: Collection[str] = ()) -> list[Coming]:
        """What was interrupted and may go on, the oldest first; what is too old, or cannot go on, is removed.

        A file that is of the future by more than seven days is removed too: one of the clocks was wrong, and it would
        stay for ever.

        Args:
            now_ns: since 1970, by this machine's clock.
            active: names of files that somebody is sending, which are passed over.

        Raises:
            OSError: the disk failed.
        """
        found = []
        for name, age_ns, size_bytes in self._aged("partial", now_ns):
            if name in active:
                continue
            caller = parse_partial_name(name)
            if caller is None or abs(age_ns) > KEPT_NS:
                replica_files.remove_file(self._root, self.partial_path(name))
            else:
                found.append((age_ns, Coming(self.vault, name, caller, charged_bytes(size_bytes), 0, is_active=False)))
        return [coming for _, coming in sorted(found, key=lambda each: (-each[0], each[1].name))]

    def remove_old_damaged(self, now_ns: int) -> None:
        """Remove objects that were found damaged long ago, and headers that were replaced long ago.

        Raises:
            OSError: the disk failed.
        """
        old = []
        for kept in self._kept_headers():
            status = replica_files.status_of(self._root, self.path(require_object_key(str(kept))))
            if status is not None and abs(now_ns - status.st_mtime_ns) > kept_headers.KEPT_NS:
                old.append(kept)
        self._remove_headers(old)
        for name, age_ns, _ in self._aged("damaged", now_ns):
            if abs(age_ns) > DAMAGED_KEPT_NS:
                replica_files.remove_file(self._root, [self.directory, MESH_DIRECTORY, "damaged", name])

    def _aged(self, part: str, now_ns: int) -> list[tuple[str, int, int]]:
        """Names, ages and lengths of the files in a part of ``.mesh``."""
        found = []
        with directory_below(self._root, [self.directory, MESH_DIRECTORY, part]) as above:
            if above is not None:
                for name in sorted(os.listdir(above)):  # noqa: PTH208  # a descriptor
                    status = replica_files.status_of(above, [name])
                    if status is not None and is_regular(status):
                        found.append((name, now_ns - status.st_mtime_ns, status.st_size))
        return found

    def _mesh_path(self, name: str) -> list[str]:
        return [self.directory, MESH_DIRECTORY, name]

    def _append_log(self, data: bytes) -> None:
        """Note whose an object is.  It is not synced: a crash may give the object to the first writer."""
        if not data:
            return
        if self._log_bytes + len(data) > max(LEAST_LOG_BYTES, 2 * self.usage.log_bytes):
            counted = self.usage.log()
            replica_files.replace_file(self._root, self._mesh_path(_LOG), counted)
            self._log_bytes = len(counted)
            return
        replica_files.append_file(self._root, self._mesh_path(_LOG), data)
        self._log_bytes += len(data)

    def _load_record(self) -> list[str]:
        data = replica_files.read_file(self._root, self._mesh_path(_RECORD), LARGEST_RECORD_BYTES)
        if data is None:
            replica_files.make_directories(self._root, [self.directory, MESH_DIRECTORY], set())
            return []
        try:
            self.record = VaultRecord.decode(data)
        except FormatTooNewError as error:
            raise FormatTooNewError(
                f"what this peer remembers of vault {self.directory} cannot be used: {error}; update vaultfs"
            ) from error
        except IntegrityError as error:
            aside = f"{_RECORD}.damaged"
            replica_files.give_name(self._root, self._mesh_path(_RECORD), self._mesh_path(aside))
            message = f"what this peer remembers of vault {self.directory} is lost: {error}; it was moved to {aside}. "
            return [message + "Devices have to wait seven days, or be confirmed, before they may delete"]
        return []
