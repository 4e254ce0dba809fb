"""The keys of shares: ``shares/<segment>/<k>-<n>-<index>-<size>-<hash>``.  Pure.

``size`` is the segment's, in bytes, so that who lists shares knows which segments they give; ``hash`` is the share's
own name.  A key has exactly one form, and what is no such key names no share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vaultfs.errors import UsageError
from vaultfs.ids import SegmentName
from vaultfs.mesh.share_format import CodedSegment, Coding

SHARES_PREFIX: Final = "shares/"

_KEY: Final = re.compile(
    r"shares/([0-9a-f]{64})/([1-9][0-9]?)-([1-9][0-9]?)-(0|[1-9][0-9]?)-([1-9][0-9]{0,9})-([0-9a-f]{64})"
)


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

    def __str__(self) -> str:
        coded, coding = self.coded, self.coded.coding
        parts = (coding.needed, coding.total, self.index, coded.size_bytes, self.name)
        return f"{shares_prefix(coded.name)}{'-'.join(map(str, parts))}"


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
