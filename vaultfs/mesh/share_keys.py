"""The keys of shares: ``shares/<segment>/<k>-<n>-<index>-<size>-<hash>``.  Pure.

``size`` is the segment's, in bytes, so that who lists shares knows which segments they give; ``hash`` is the share's
own name.  A key has exactly one form, and what is no such key names no share.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from vaultfs.errors import UsageError
from vaultfs.ids import SegmentName
from vaultfs.mesh.share_format import CodedSegment, Coding

SHARES_PREFIX: Final = "shares/"

_KEY: Final = re.compile(
    r"shares/([0-9a-f]{64})/([1-9][0-9]?)-([1-9][0-9]?)-(0|[1-9][0-9]?)-([1-9][0-9]{0,9})-([0-9a-f]{64})"
)
_PACKED: Final = struct.Struct("<32sQBBB32s")
PACKED_BYTES: Final = _PACKED.size


@dataclass(frozen=True)
class ShareKey:
    """What a key says; nothing vouches for it.

    Attributes:
        coded: the segment, and how it is cut.
        index: which share, from 0.
        name: the share's own hash, 64 hexadecimal digits.
    """

    coded: CodedSegment
    index: int
    name: str

    @property
    def tail(self) -> str:
        """What follows the segment in the key."""
        coded, coding = self.coded, self.coded.coding
        return "-".join(map(str, (coding.needed, coding.total, self.index, coded.size_bytes, self.name)))

    def __str__(self) -> str:
        return f"{shares_prefix(self.coded.name)}{self.tail}"


def shares_prefix(segment: SegmentName) -> str:
    """The prefix of a segment's shares."""
    return f"{SHARES_PREFIX}{segment}/"


def parse_share_key(key: str) -> ShareKey | None:
    """The share that a key names; None if it names none."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    segment, needed, total, index, size, name = match.groups()
    try:
        coded = CodedSegment(SegmentName(segment), int(size), Coding(int(needed), int(total)))
    except UsageError:
        return None
    return ShareKey(coded, int(index), name) if int(index) < coded.coding.total else None


def pack_shares(shares: Iterable[ShareKey]) -> bytes:
    """Keys as they are remembered: 75 bytes for each."""
    return b"".join(
        _PACKED.pack(
            bytes.fromhex(share.coded.name),
            share.coded.size_bytes,
            share.coded.coding.needed,
            share.coded.coding.total,
            share.index,
            bytes.fromhex(share.name),
        )
        for share in shares
    )


def unpack_shares(data: bytes) -> Iterator[ShareKey]:
    """The keys that `pack_shares` wrote; what makes no sense is left out."""
    for segment, size, needed, total, index, name in _PACKED.iter_unpack(data[: len(data) - len(data) % PACKED_BYTES]):
        key = f"{shares_prefix(SegmentName(segment.hex()))}{needed}-{total}-{index}-{size}-{name.hex()}"
        share = parse_share_key(key)
        if share is not None:
            yield share


def whole_segments(keys: Iterable[str]) -> dict[SegmentName, int]:
    """The segments that shares with these keys give back, and their sizes in bytes.

    Args:
        keys: of shares, wherever they are; others are ignored.
    """
    indexes: dict[CodedSegment, set[int]] = {}
    for key in keys:
        share = parse_share_key(key)
        if share is not None:
            indexes.setdefault(share.coded, set()).add(share.index)
    return {coded.name: coded.size_bytes for coded, found in indexes.items() if len(found) >= coded.coding.needed}
