"""Is what lies on a remote what it claims to be?  Names, sizes and hashes of everything; signatures take the key.

Without ``read_share`` it costs a listing and each manifest: it finds what is missing or has a wrong size.  Only reading
finds a changed segment.  Nothing is written there.

Who has the key gives `KeyedChecks`, and is handed what the checks without one had nothing against.
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import blake3

from vaultfs.errors import (
    IntegrityError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    UsageError,
)
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.durable import storage_errors, write_all
from vaultfs.sync.plan import newest_last
from vaultfs.sync.remote_layout import HEADER_KEY, LARGEST_SEGMENT_BYTES, RemoteHead, head_key, segment_key
from vaultfs.sync.remote_objects import body, list_heads, list_segments, read_remote_header, read_remote_manifest
from vaultfs.sync.workers import Crew, ProgressFunction, StoppedError, SyncProgress

__all__ = ["KeyedChecks", "StoppedError", "SyncProgress", "VerifyReport", "verify"]

CONNECTIONS: Final = 4
NAMED: Final = 20
"""So many missing segments of one snapshot are asked for and named; of the rest the listing is believed."""

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_random: Final = random.SystemRandom()


class KeyedChecks(Protocol):
    """What only the key can tell.  All manifests are shown before the first segment."""

    def manifest(self, head: RemoteHead, data: bytes) -> None:
        """Look at a manifest; in the caller's thread.

        Args:
            head: its name, with which it agrees.
            data: its bytes.

        Raises:
            IntegrityError: it is not this vault's.
        """

    def place(self, name: SegmentName) -> Path:
        """Where the segment is to be put for `segment`; in a directory that exists; removed afterwards.  Any thread."""

    def segment(self, name: SegmentName, *, is_needed: bool) -> list[str]:
        """Look at a segment that lies at its place, and has the right hash.  Any thread.

        Args:
            name: the segment's.
            is_needed: whether any manifest names it, be it this vault's or not.

        Returns:
            What is wrong with it.
        """


@dataclass
class VerifyReport:
    """What was found.

    Attributes:
        problems: each names an object, for a person; empty if all is well.
        objects: how many were looked at.
        bytes_read: of them.
        snapshots: how many of them are manifests.
        unused_segments: no snapshot of the remote needs them: the rest of an interrupted sync, or of deleted snapshots.
        bad_segments: names of those that are missing, or are not what their names say.
        bad_heads: snapshots whose manifests are not what their names say.
    """

    problems: list[str] = field(default_factory=list)
    objects: int = 0
    bytes_read: int = 0
    snapshots: int = 0
    unused_segments: int = 0
    bad_segments: set[SegmentName] = field(default_factory=set)
    bad_heads: set[RemoteHead] = field(default_factory=set)


def verify(
    store: Store,
    *,
    read_share: float = 0.0,
    read_also: Collection[SegmentName] = (),
    keyed: KeyedChecks | None = None,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> VerifyReport:
    """Check a remote.

    Args:
        store: the remote.
        read_share: how much of the segments is read, chosen at random: 0 for none, 1 for all.
        read_also: segments that are read in any case, if they are there.
        keyed: looks at what takes the key: at every manifest, and at each segment that is read.
        progress: called in this thread.
        is_stopped: asked in this thread, ten times a second; may raise.

    Raises:
        UsageError: the share is not between 0 and 1.
        FormatTooNewError: a newer vaultfs wrote there.
        StoppedError: the caller asked for it.
        RemoteError: the remote failed, so there is no telling.
        NoSpaceError, StorageError: a segment could not be put where ``keyed`` wants it.
    """
    if not 0.0 <= read_share <= 1.0:
        raise UsageError(f"the share to be read is between 0 and 1, not {read_share}")
    return _Verification(store, Crew(CONNECTIONS, progress, is_stopped), keyed).run(read_share, read_also)


class _Verification:
    def __init__(self, store: Store, crew: Crew, keyed: KeyedChecks | None) -> None:
        self._store: Final = store
        self._crew: Final = crew
        self._keyed: Final = keyed
        self._report: Final = VerifyReport()
        self._lock: Final = threading.Lock()
        self._segments: dict[SegmentName, int] = {}
        self._used: Final[set[SegmentName]] = set()
        self._wrong: Final[set[tuple[SegmentName, int]]] = set()

    def run(self, read_share: float, read_also: Collection[SegmentName]) -> VerifyReport:
        self._crew.tick()
        report = self._report
        vault_id = self._check_header()
        heads = newest_last(list_heads(self._store, self._crew.tick))
        self._segments = list_segments(self._store, self._crew.tick)
        for head in heads:
            self._crew.tick()
            self._check_head(head, vault_id)
        report.objects += len(heads) + len(self._segments)
        report.unused_segments = len(self._segments) - len(self._used)
        chosen = set(_random.sample(list(self._segments), math.ceil(read_share * len(self._segments))))
        chosen |= self._segments.keys() & set(read_also)
        self._crew.total_bytes = sum(self._segments[name] for name in chosen)
        before = len(report.problems)
        self._crew.work(partial(self._check_segment, name) for name in sorted(chosen))
        report.problems[before:] = sorted(report.problems[before:])
        return report

    def _check_header(self) -> VaultId | None:
        """Whose remote it is, if that can be told."""
        report = self._report
        try:
            header = read_remote_header(self._store)
        except IntegrityError as error:
            report.problems.append(str(error))
            return None
        if header is None:
            report.problems.append(f"{HEADER_KEY} is missing: without it nothing can be restored; sync again")
            return None
        report.objects += 1
        report.bytes_read += len(header.data)
        return header.vault_id

    def _check_head(self, head: RemoteHead, vault_id: VaultId | None) -> None:
        report = self._report
        try:
            data, manifest = read_remote_manifest(self._store, head, vault_id, self._crew.tick)
        except (IntegrityError, RemoteError) as error:
            _raise_if_unknown(error)
            report.problems.append(str(error))
            report.bad_heads.add(head)
            return
        report.snapshots += 1
        report.bytes_read += len(data)
        if self._keyed is not None:
            try:
                self._keyed.manifest(head, data)
            except IntegrityError as error:
                report.problems.append(f"{head_key(head)}: {error}")
        missing: list[SegmentName] = []
        for name, size in manifest.segments:
            found = self._segments.get(name)
            if found is None and len(missing) < NAMED:  # a listing may leave out what is there
                found = self._ask(name)
            if found is None:
                missing.append(name)
                report.bad_segments.add(name)
                continue
            self._used.add(name)
            if found != size and (name, size) not in self._wrong:
                self._wrong.add((name, size))
                report.bad_segments.add(name)
                report.problems.append(f"{segment_key(name)} has {found} bytes, and snapshot {head.seq} needs {size}")
        if missing:
            count = f"{len(missing)} of its {len(manifest.segments)} segments"
            names = ", ".join(segment_key(name) for name in missing[:NAMED])
            more = ", ..." if len(missing) > NAMED else ""
            report.problems.append(f"snapshot {head.seq}, {head_key(head)}, lacks {count}: {names}{more}")

    def _ask(self, name: SegmentName) -> int | None:
        self._crew.tick()
        found = self._store.size_bytes(segment_key(name))
        if found is not None:
            self._segments[name] = found
        return found

    def _check_segment(self, name: SegmentName) -> None:
        """Read a segment, and note what is wrong with it."""
        key, size = segment_key(name), self._segments[name]
        problems = []
        count = 0
        is_bad = False
        descriptor = -1
        path = None if self._keyed is None else self._keyed.place(name)
        try:
            if size > LARGEST_SEGMENT_BYTES:
                raise IntegrityError(f"{key} has {size} bytes, more than any segment")
            if path is not None:
                with storage_errors(f"cannot write {path}"):
                    descriptor = os.open(path, _NEW_FILE, 0o600)
            hasher = blake3.blake3()
            with body(self._store, key) as pieces:
                for piece in pieces:
                    self._crew.check()
                    count += len(piece)
                    if count > size:
                        raise IntegrityError(f"{key} is longer than the {size} bytes that are listed")
                    hasher.update(piece)
                    if descriptor >= 0:
                        with storage_errors(f"cannot write {path}"):
                            write_all(descriptor, piece)
                    self._crew.advance(len(piece))
            if count < size:
                raise IntegrityError(f"{key} ended after {count} of {size} bytes")
            if hasher.hexdigest() != name:
                raise IntegrityError(f"{key} is damaged or was replaced: its content is not that of its name")
            if self._keyed is not None:
                found = self._keyed.segment(name, is_needed=name in self._used)
                problems = [f"{key}: {each}" for each in found]
        except (IntegrityError, RemoteError) as error:
            _raise_if_unknown(error)
            problems = [str(error) if key in str(error) else f"{key}: {error}"]
            is_bad = True
        finally:
            if path is not None and descriptor >= 0:
                os.close(descriptor)
                path.unlink()
        with self._lock:
            self._report.bytes_read += count
            self._report.problems += problems
            if is_bad:
                self._report.bad_segments.add(name)


def _raise_if_unknown(error: IntegrityError | RemoteError) -> None:
    """An answer that is wrong is a finding; no answer is none."""
    if isinstance(error, RemoteUnreachableError | RemoteRefusedError):
        raise error
