"""Where things lie on a remote: the names of objects, made from checked parts and read back strictly.

``vault.json``                             the public header, the one object that is ever replaced
``segments/ab/<hash>``                     a sealed segment; ``ab`` are the first two digits of its hash
``heads/<device>/<seq>-<hash>``            the bytes of a manifest; ``seq`` has ten digits at least
``heads/condemned/<hash>``                 what a prune has given up and a later one deletes; ``hash`` of its content
``heads/swept/<hash>``                     that what this record names is being deleted
``heads/swept/<token>``                    that something was deleted since whoever looks has looked last
``heads/sweeping/<token>``                 that a prune is deleting just now, or was interrupted
``heads/spared/<token>``                   segments that a sync relies on although a prune has given them up
``heads/branches/<token>``                 that two histories of the vault stand side by side here, as a person wished

The last six lie below ``heads/`` so that one listing shows them together with the snapshots.

Every name has exactly one form.  A remote may list whatever it likes: what is no such name is none of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import is_segment_name

HEADER_KEY: Final = "vault.json"
SEGMENTS_PREFIX: Final = "segments/"
HEADS_PREFIX: Final = "heads/"
CONDEMNED_PREFIX: Final = "heads/condemned/"
SWEPT_PREFIX: Final = "heads/swept/"
SWEEPING_PREFIX: Final = "heads/sweeping/"
SPARED_PREFIX: Final = "heads/spared/"
BRANCHES_PREFIX: Final = "heads/branches/"
LARGEST_SEGMENT_BYTES: Final = 128 << 20
"""Segments are sealed at 64 MiB; the last batch and the index come on top.  It bounds what is held in memory or fetched
on the word of somebody whose signature nobody here can check."""

_SEGMENT: Final = re.compile(r"segments/([0-9a-f]{2})/([0-9a-f]{64})")
_HEAD: Final = re.compile(r"heads/([0-9a-f]{64})/([0-9]{10,19})-([0-9a-f]{64})")
_NOTE: Final = re.compile(r"[0-9a-f]{64}")
_SEQ_LIMIT: Final = 1 << 63


@dataclass(frozen=True)
class RemoteHead:
    """A snapshot on a remote, by the name of its manifest there.

    Attributes:
        device: 64 hexadecimal digits, the key that must have signed it.
        seq: the snapshot's number.
        hash: 64 hexadecimal digits, the BLAKE3 of the manifest: the snapshot's id.
    """

    device: str
    seq: int
    hash: str


def segment_key(name: SegmentName) -> str:
    """The key of a segment.

    Raises:
        IntegrityError: not the name of a segment, so it must not become part of a key.
    """
    if not is_segment_name(name):
        raise IntegrityError(f"not the name of a segment: {name!r}; run vaultfs fsck")
    return f"{SEGMENTS_PREFIX}{name[:2]}/{name}"


def head_key(head: RemoteHead) -> str:
    """The key of a manifest.

    Raises:
        IntegrityError: the head's values are out of their bounds.
    """
    key = f"{HEADS_PREFIX}{head.device}/{head.seq:010d}-{head.hash}"
    if parse_head(key) != head:
        raise IntegrityError(f"not the name of a snapshot: {key!r}")
    return key


def parse_segment(key: str) -> SegmentName | None:
    """The segment that a key names; None if it names none."""
    match = _SEGMENT.fullmatch(key)
    return SegmentName(match[2]) if match is not None and match[2].startswith(match[1]) else None


def parse_head(key: str) -> RemoteHead | None:
    """The snapshot that a key names; None if it names none."""
    match = _HEAD.fullmatch(key)
    if match is None:
        return None
    seq = int(match[2])
    if not 0 < seq < _SEQ_LIMIT or match[2] != f"{seq:010d}":
        return None
    return RemoteHead(match[1], seq, match[3])


def parse_note(key: str, prefix: str) -> str | None:
    """The 64 digits after a prefix, one of those above; None if the key is none such."""
    rest = key.removeprefix(prefix)
    return rest if rest != key and _NOTE.fullmatch(rest) else None
