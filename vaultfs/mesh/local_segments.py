"""The sealed segments on this machine, as far as an audit needs them: what an honest peer would answer.

What of a share is asked for is made of the segment; for parity that takes zfec.

A disk here may be the one that is damaged.  So before a peer is blamed, the segment here is hashed.
"""

from __future__ import annotations

import os
from typing import Final

from blake3 import blake3

from vaultfs.errors import IntegrityError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.mesh.auditing import Probe
from vaultfs.mesh.client import proof_of
from vaultfs.mesh.share_parts import part_of_segment
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_file import read_up_to

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE_BYTES: Final = 1 << 20


class LocalSegments:
    """The segments of a vault on this machine.  Methods block; one thread at a time.

    Args:
        layout: the vault; None if it is not on this machine.
    """

    def __init__(self, layout: VaultLayout | None) -> None:
        self._layout: Final = layout
        self._sound: Final[dict[SegmentName, bool]] = {}

    def proof(self, key: bytes, probe: Probe) -> bytes | None:
        """What an honest peer answers; None if the segment is not here, has another size, or cannot be read.

        Args:
            key: of the audit, 32 bytes.
            probe: which part.

        Raises:
            UsageError: it is a share with parity, and zfec is missing.
        """
        descriptor = self._open(probe.segment)
        if descriptor < 0:
            return None
        try:
            with storage_errors(f"cannot read the segment {probe.segment}"):
                size_bytes = probe.size_bytes if probe.share is None else probe.share.coded.size_bytes
                if os.fstat(descriptor).st_size != size_bytes:
                    return None
                data = _part(descriptor, probe)
        except (StorageError, IntegrityError):  # then others are compared with
            return None
        finally:
            os.close(descriptor)
        return proof_of(key, probe.hash, probe.offset, data) if len(data) == probe.length else None

    def is_sound(self, name: SegmentName) -> bool:
        """Whether the segment here has the bytes of its name."""
        if name not in self._sound:
            self._sound[name] = self._hash(name) == name
        return self._sound[name]

    def _open(self, name: SegmentName) -> int:
        if self._layout is None:
            return -1
        try:
            return os.open(self._layout.sealed_path(name), _FLAGS)
        except (OSError, IntegrityError):  # not here, or no name: then others are compared with
            return -1

    def _hash(self, name: SegmentName) -> str:
        descriptor = self._open(name)
        if descriptor < 0:
            return ""
        hasher = blake3()
        offset = 0
        try:
            with storage_errors(f"cannot read the segment {name}"):
                while piece := read_up_to(descriptor, offset, _PIECE_BYTES):
                    hasher.update(piece)
                    offset += len(piece)
        except StorageError:
            return ""
        finally:
            os.close(descriptor)
        return hasher.hexdigest()


def _part(descriptor: int, probe: Probe) -> bytes:
    """What a probe asks for."""

    def read(offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset)

    if probe.share is None:
        return read(probe.offset, probe.length)
    return part_of_segment(probe.share.coded, probe.share.index, probe.offset, probe.length, read)
