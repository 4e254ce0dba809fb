"""Which keys a peer stores, and what must be true of an object before it gets its name.  Pure.

The kinds and their limits are those of docs/mesh-protocol.md, section 6.  Whoever announces an object may be anybody:
its key is matched as a whole, and says which hash its bytes must have where the key holds one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from vaultfs.errors import IntegrityError, RemoteRefusedError
from vaultfs.ids import SegmentName
from vaultfs.mesh.kept_headers import parse_kept_header
from vaultfs.mesh.messages import HASH_BYTES
from vaultfs.mesh.share_keys import parse_share_key, shares_prefix
from vaultfs.remotes.keys import is_key
from vaultfs.sync.public_header import LARGEST_HEADER_BYTES
from vaultfs.sync.remote_layout import (
    BRANCHES_PREFIX,
    CONDEMNED_PREFIX,
    HEADER_KEY,
    LARGEST_SEGMENT_BYTES,
    SPARED_PREFIX,
    SWEEPING_PREFIX,
    SWEPT_PREFIX,
    parse_head,
    parse_note,
    parse_segment,
    segment_key,
)

LARGEST_MANIFEST_BYTES: Final = 16 << 20
LARGEST_NOTE_BYTES: Final = 16 << 20
LARGEST_PROBE_BYTES: Final = 64 << 10
PROBE_PREFIX: Final = "probe/"

_MOST_PROBE_PARTS: Final = 4
"""Each part but the last becomes a directory, and nobody pays for directories."""
_NOTES: Final = (CONDEMNED_PREFIX, SWEPT_PREFIX, SWEEPING_PREFIX, SPARED_PREFIX, BRANCHES_PREFIX)


class Kind(enum.Enum):
    """What an object is."""

    SEGMENT = "segment"
    SHARE = "share"
    HEAD = "manifest"
    HEADER = "header"
    KEPT_HEADER = "replaced header"
    NOTE = "note"


@dataclass(frozen=True)
class ObjectKey:
    """A key that a peer stores.

    Attributes:
        key: as it was asked for.
        kind: what lies there.
        largest_bytes: of the object.
        digest: 32 bytes, the BLAKE3 that the object's bytes must have; None if the key does not tell.
        device: 32 bytes, who must have signed a manifest; empty for all else.
        seq: of a manifest; 0 for all else.
    """

    key: str
    kind: Kind
    largest_bytes: int
    digest: bytes | None = None
    device: bytes = b""
    seq: int = 0

    @property
    def parts(self) -> list[str]:
        """The parts of the path: directories, then the file."""
        return self.key.split("/")

    @property
    def lasting_parts(self) -> int:
        """How many of its directories stay when they are empty: there are few names for those."""
        parts = self.key.count("/")
        return min(parts, 1) if self.kind is Kind.SHARE or self.key.startswith(PROBE_PREFIX) else parts


def parse_object_key(key: str) -> ObjectKey | None:
    """What a key names; None if a peer stores nothing of that name."""
    if not is_key(key):
        return None
    if key == HEADER_KEY:
        return ObjectKey(key, Kind.HEADER, LARGEST_HEADER_BYTES)
    if (segment := parse_segment(key)) is not None:
        return ObjectKey(key, Kind.SEGMENT, LARGEST_SEGMENT_BYTES, bytes.fromhex(segment))
    if (head := parse_head(key)) is not None:
        digest, device = bytes.fromhex(head.hash), bytes.fromhex(head.device)
        return ObjectKey(key, Kind.HEAD, LARGEST_MANIFEST_BYTES, digest, device, head.seq)
    if (share := parse_share_key(key)) is not None:
        return ObjectKey(key, Kind.SHARE, share.coded.share_bytes, bytes.fromhex(share.name))
    if (kept := parse_kept_header(key)) is not None:
        return ObjectKey(key, Kind.KEPT_HEADER, LARGEST_HEADER_BYTES, bytes.fromhex(kept.digest))
    if any(parse_note(key, prefix) is not None for prefix in _NOTES):
        return ObjectKey(key, Kind.NOTE, LARGEST_NOTE_BYTES)
    if key.startswith(PROBE_PREFIX) and key.count("/") < _MOST_PROBE_PARTS:
        return ObjectKey(key, Kind.NOTE, LARGEST_PROBE_BYTES)
    return None


def require_object_key(key: str) -> ObjectKey:
    """What a key names.

    Raises:
        RemoteRefusedError: a peer stores nothing of that name.
    """
    parsed = parse_object_key(key)
    if parsed is None:
        raise RemoteRefusedError(f"no object of a vault has the key {key[:200]!r}")
    return parsed


def segment_object(name: bytes) -> ObjectKey:
    """The key of a segment.

    Args:
        name: its hash, 32 bytes.
    """
    key = segment_key(SegmentName(name.hex()))
    return ObjectKey(key, Kind.SEGMENT, LARGEST_SEGMENT_BYTES, name)


def audited_object(name: bytes, share: str) -> ObjectKey | None:
    """The key of what an audit asks for; None if that cannot be a key.

    Args:
        name: the hash of a segment, 32 bytes.
        share: what follows the segment in the key of a share; empty: the segment itself.
    """
    if not share:
        return segment_object(name)
    return parse_object_key(f"{shares_prefix(SegmentName(name.hex()))}{share}")


def check_announced(wanted: ObjectKey, size_bytes: int, digest: bytes, revision: int) -> None:
    """Check what is said of an object before a byte of it came.

    Args:
        wanted: its key.
        size_bytes: how long it will be.
        digest: 32 bytes, the BLAKE3 that it will have.
        revision: of a header, from 1; counts for nothing else.

    Raises:
        RemoteRefusedError: nobody sends such an object: the peer has it, or not.
        IntegrityError: no such object can be right.
    """
    if wanted.kind is Kind.KEPT_HEADER:
        raise RemoteRefusedError(f"{wanted.key} is for headers that a peer had before; it takes none there")
    smallest = 0 if wanted.kind is Kind.NOTE else 1
    if not smallest <= size_bytes <= wanted.largest_bytes:
        raise IntegrityError(f"{wanted.key} has {smallest} to {wanted.largest_bytes} bytes, not {size_bytes}")
    if len(digest) != HASH_BYTES or wanted.digest not in {None, digest}:
        raise IntegrityError(f"{wanted.key} must have the hash in its name, not {digest.hex()}")
    if wanted.kind is Kind.HEADER and not 0 < revision < 1 << 63:
        raise IntegrityError(f"{wanted.key} needs a revision from 1, not {revision}")
