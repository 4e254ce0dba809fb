"""Names for the integers and byte strings that identify things, so that the type checker keeps them apart."""

from __future__ import annotations

from typing import Final, NewType

InodeId = NewType("InodeId", int)
"""An inode's number; never used twice in the life of a vault, so the kernel's caches cannot confuse two files."""

ChunkId = NewType("ChunkId", int)
"""A chunk's number, bound into its ciphertext."""

SegmentId = NewType("SegmentId", int)
"""A segment's row in the metadata.  Its name on disk is another thing."""

SegmentName = NewType("SegmentName", str)
"""64 hexadecimal digits: the BLAKE3 hash of a sealed segment's bytes."""

SnapshotSeq = NewType("SnapshotSeq", int)
"""Snapshots of a vault are numbered from 1."""

Generation = NewType("Generation", int)
"""Counts up at every mount, snapshot and clean unmount; it never goes back."""

KeyEpoch = NewType("KeyEpoch", int)
"""The number of a master key; counts up with ``key rotate``."""

VaultId = NewType("VaultId", bytes)
"""16 random bytes, public."""

PeerId = NewType("PeerId", bytes)
"""32 bytes: the SHA-256 hash of a peer's public key, by which it is trusted."""

ROOT_INODE: Final = InodeId(1)
"""The root directory; FUSE_ROOT_ID in <linux/fuse.h>."""
