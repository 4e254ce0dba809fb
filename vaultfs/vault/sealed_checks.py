"""Whether manifests and segments that came from elsewhere are this vault's: signed with its key, and opened with it.

A manifest is verified in every respect.  A segment says in its sealed index which chunks are in it, and each of them is
opened.  One that a crash left open has no index: what it holds stands in the metadata of the snapshots that need it, so
of those the oldest is opened in the end (`SealedChecks.rest`).  No later one needs more of a segment than it does.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vaultfs.crypto.keys import Keyring
from vaultfs.errors import FormatTooNewError, IntegrityError
from vaultfs.ids import SegmentId, SegmentName, SnapshotSeq
from vaultfs.metadata.chunk_rows import ChunkPlace
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_source import SegmentSource
from vaultfs.vault.scrub import BadChunk, bad_places, place_of
from vaultfs.vault.segment_index import open_by_header, read_index
from vaultfs.vault.segments import ReadableSegment
from vaultfs.vault.snapshot_image import open_with_keys
from vaultfs.vault.snapshot_manifest import Piece, open_manifest

NAMED: Final = 3
"""So many damaged chunks of a segment are described."""


class _Snapshot(NamedTuple):
    """A genuine one: its number and id."""

    seq: SnapshotSeq
    id: str


class SealedChecks:
    """The checks of one remote.

    Args:
        keyring: the vault's.
        layout: of a directory for what is being looked at; it need not exist.

    Attributes:
        chunks: how many were opened.
        strange_segments: those that do not open, and that nothing needs.
    """

    def __init__(self, keyring: Keyring, layout: VaultLayout) -> None:
        self._keyring: Final = keyring
        self._layout: Final = layout
        self._lock: Final = threading.Lock()
        self._oldest: Final[dict[SegmentName, _Snapshot]] = {}
        self._salts: Final[dict[SegmentName, tuple[int, bytes]]] = {}
        self._pieces: Final[defaultdict[SegmentName, set[Piece]]] = defaultdict(set)
        self._without_index: Final[list[SegmentName]] = []
        self.chunks = 0
        self.strange_segments = 0
        layout.create_directories()

    def manifest(self, seq: int, snapshot_id: str, data: bytes) -> None:
        """Verify a manifest, and learn from it what its segments are.

        Args:
            seq: the number that it must have.
            snapshot_id: the hash that it must have.
            data: its bytes.

        Raises:
            IntegrityError: it is not signed with a key of this vault, or does not open with it.
            FormatTooNewError: a newer vaultfs wrote it.
        """
        _, content = open_manifest(self._keyring, data, seq, snapshot_id)
        snapshot = _Snapshot(content.seq, snapshot_id)
        for facts in content.segments:
            if self._salts.setdefault(facts.name, (facts.epoch, facts.salt)) != (facts.epoch, facts.salt):
                raise IntegrityError(f"it says of the segment {facts.name} something else than another snapshot")
            self._oldest[facts.name] = min(snapshot, self._oldest.get(facts.name, snapshot))
        for piece in content.pieces:
            self._pieces[content.segments[piece.segment].name].add(piece._replace(segment=0))

    def place(self, name: SegmentName) -> Path:
        """Where the file of a segment is to be put before `segment` looks at it."""
        path = self._layout.sealed_path(name)
        with storage_errors(f"cannot create the directory {path.parent}"):
            path.parent.mkdir(mode=0o700, exist_ok=True)
        return path

    def segment(self, name: SegmentName, *, is_needed: bool) -> list[str]:
        """Open every chunk of a segment.  Any thread, after all manifests.

        Args:
            name: it lies at its place, and its content is that of its name.
            is_needed: whether a manifest names it.

        Returns:
            What is wrong with it, in sentences.  A segment that does not open and that nothing needs does no harm, and
            is counted only.

        Raises:
            StorageError: the disk failed.
        """
        try:
            header, readable = open_by_header(self._layout, name, self._keyring)
        except (IntegrityError, FormatTooNewError) as error:
            return self._strange(str(error), is_needed=is_needed)
        try:
            salt = self._salts.get(name)
            if salt is not None and salt != (header.epoch, header.salt):
                return ["its header is not the one that the snapshots name"]
            try:
                entries = read_index(self._layout, name, self._keyring).entries
            except IntegrityError:
                if name not in self._oldest:
                    return self._strange("it does not open with the key of this vault", is_needed=is_needed)
                with self._lock:
                    self._without_index.append(name)
                return []
            places = {
                ChunkPlace(0, each.chunk_id, SegmentId(0), each.offset, each.stored, each.length) for each in entries
            }
            return self._bad(places | self._places_of_pieces(name), readable)
        finally:
            readable.reader.close()

    def _strange(self, reason: str, *, is_needed: bool) -> list[str]:
        if is_needed:
            return [reason]
        with self._lock:
            self.strange_segments += 1
        return []

    def _places_of_pieces(self, name: SegmentName) -> set[ChunkPlace]:
        """Where the segment holds metadata of snapshots, as their manifests say."""
        return {
            ChunkPlace(0, each.chunk, SegmentId(0), each.offset, each.stored, each.length)
            for each in self._pieces.get(name, ())
        }

    def _bad(self, places: Iterable[ChunkPlace], readable: ReadableSegment) -> list[str]:
        ordered = sorted(places, key=lambda place: (place.offset, place.chunk))
        bad = list(bad_places(ordered, readable))
        with self._lock:
            self.chunks += len(ordered)
        return _told(bad, len(ordered))

    def rest(
        self, source: SegmentSource, manifest_of: Callable[[SnapshotSeq, str], bytes]
    ) -> list[tuple[SegmentName, str]]:
        """Open the chunks of the segments that have no index, by the metadata of the oldest snapshot of each.

        Args:
            source: the remote.
            manifest_of: the bytes of a manifest that `manifest` had nothing against, by number and id.

        Returns:
            Segments, and what is wrong with them, in sentences.

        Raises:
            StorageError: the disk failed.
            VaultError: as ``source`` and ``manifest_of`` say.
        """
        by_snapshot: defaultdict[_Snapshot, list[SegmentName]] = defaultdict(list)
        for name in sorted(self._without_index):
            by_snapshot[self._oldest[name]].append(name)
        found: list[tuple[SegmentName, str]] = []
        for snapshot, names in sorted(by_snapshot.items()):
            path = self._layout.manifest_path(snapshot.seq, snapshot.id)
            atomic_replace(path, manifest_of(snapshot.seq, snapshot.id))
            try:
                found += self._by_metadata(snapshot, names, source)
            except IntegrityError as error:
                found += [(name, f"what is in it cannot be told: {error}") for name in names]
            finally:
                path.unlink()
        return found

    def _by_metadata(
        self, snapshot: _Snapshot, names: Sequence[SegmentName], source: SegmentSource
    ) -> list[tuple[SegmentName, str]]:
        fs = open_with_keys(self._layout, self._keyring, snapshot.seq, source, self._layout.root)
        found: list[tuple[SegmentName, str]] = []
        try:
            rows = {row.name: row.id for row in fs.chunk_rows.segments()}
            for name in names:
                number = rows.get(name)
                chunks = [] if number is None else fs.chunk_rows.chunks_of_segment(number)
                places = {place_of(row)._replace(segment=SegmentId(0)) for row in chunks}
                places |= self._places_of_pieces(name)
                if number is None or not places:
                    found.append((name, f"it has no index, and snapshot {snapshot.seq} does not say what is in it"))
                    continue
                try:
                    found += [(name, text) for text in self._bad(places, fs.segments.get(number))]
                except IntegrityError as error:
                    found.append((name, str(error)))
        finally:
            fs.close()
        return found


def _told(bad: Sequence[BadChunk], count: int) -> list[str]:
    """A sentence on the chunks that do not open, if there are any."""
    if not bad:
        return []
    some = "; ".join(f"chunk {each.chunk}: {each.reason}" for each in bad[:NAMED])
    return [f"{len(bad)} of its {count} chunks do not open: {some}{'; ...' if len(bad) > NAMED else ''}"]
