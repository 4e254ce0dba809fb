"""Segments for reading: the row, the open file and the cipher of each, by number.

Readers and ciphers are kept for the segments used last.  A thread that reads holds a lease (`SegmentAccess.lease`);
meanwhile no descriptor is closed.
"""

from __future__ import annotations

from typing import Final

from vaultfs.crypto.aead import SegmentCipher
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError
from vaultfs.ids import KeyEpoch, SegmentId, SegmentName
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.storage.segment_reader import SegmentReader

OPEN_SEGMENTS: Final = 256
"""Of the 1,024 descriptors that a process may have by default."""


class ReadableSegment:
    """A segment that can be read."""

    __slots__ = ("cipher", "label", "reader")

    def __init__(self, reader: SegmentReader, cipher: SegmentCipher, label: str) -> None:
        self.reader = reader
        self.cipher = cipher
        self.label = label


class SegmentAccess:
    """All segments of a vault.

    Args:
        rows: the tables.
        layout: where the files are.
        keyring: has the key of each epoch.
    """

    def __init__(self, rows: ChunkRows, layout: VaultLayout, keyring: Keyring) -> None:
        self._rows = rows
        self._layout = layout
        self._keyring = keyring
        self._open: dict[SegmentId, ReadableSegment] = {}
        self._leases = 0

    def get(self, segment: SegmentId) -> ReadableSegment:
        """A segment by number.

        Raises:
            IntegrityError: its file is missing, no regular file, or of another vault.
        """
        found = self._open.get(segment)
        if found is None:
            found = self._load(segment)
            if len(self._open) >= OPEN_SEGMENTS and not self._leases:
                for number in list(self._open)[: OPEN_SEGMENTS // 4]:
                    self._open.pop(number).reader.close()
            self._open[segment] = found
        return found

    def _load(self, segment: SegmentId) -> ReadableSegment:
        row = self._rows.segment(segment)
        if not segment:
            raise IntegrityError("its bytes are lost, as fsck found")
        if row is None:
            raise IntegrityError(f"metadata.db has no segment {segment}; run vaultfs fsck")
        if row.name is None:
            path, label = self._layout.open_path(row.token), f"open/{row.token}"
        else:
            path, label = self._layout.sealed_path(SegmentName(row.name)), row.name
        reader = SegmentReader.open(path, segment=label)
        try:
            header = SegmentHeader.decode(reader.read(0, HEADER_BYTES))
            if (header.vault_id, header.epoch, header.salt) != (self._keyring.vault_id, row.epoch, row.salt):
                raise IntegrityError(f"segment {label}: its header is not the one that was written; run vaultfs fsck")
            chunk_key = self._keyring.subkeys(KeyEpoch(row.epoch)).chunk
        except BaseException:
            reader.close()
            raise
        return ReadableSegment(reader, SegmentCipher(chunk_key, self._keyring.vault_id, row.salt), label)

    def forget(self, segment: SegmentId) -> None:
        """Close a segment, for example because its file is gone."""
        found = self._open.pop(segment, None)
        if found is not None:
            found.reader.close()

    def lease(self) -> None:
        """Keep all descriptors open, for a thread that reads."""
        self._leases += 1

    def end_lease(self) -> None:
        """End one lease."""
        self._leases -= 1

    @property
    def is_leased(self) -> bool:
        """Whether a thread reads; then nothing may be punched or deleted."""
        return self._leases > 0

    def close(self) -> None:
        """Close all files."""
        for found in self._open.values():
            found.reader.close()
        self._open.clear()
