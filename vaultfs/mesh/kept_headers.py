"""Headers that were replaced at a peer: ``headers/<revision>-<seconds>-<hash>``.  Pure.

A peer cannot tell a genuine ``vault.json`` from one that somebody with a stolen identity has put there, so it throws
none away for another: the one that is replaced gets such a key, and who has the vault's password can choose.  The key
says which revision it had, and for how many seconds it was the peer's ``vault.json`` in all.

How many are kept is bounded.  The first to go is the one that stood for the shortest time: who puts one after the other
there only drives out his own, and one that was the vault's for weeks stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vaultfs.sync.public_header import LARGEST_HEADER_BYTES

HEADERS_PREFIX: Final = "headers/"
MOST_KEPT: Final = 16
MOST_KEPT_BYTES: Final = LARGEST_HEADER_BYTES
"""Of all together: a header has some kilobytes, whatever it may have."""
KEPT_NS: Final = 30 * 24 * 3600 * 10**9
"""A password that was removed opens the older header, so that is not kept for ever."""

_KEY: Final = re.compile(r"headers/(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,11})-([0-9a-f]{64})")
_LONGEST_S: Final = 10**12 - 1
_LARGEST_REVISION: Final = 10**19 - 1


@dataclass(frozen=True)
class KeptHeader:
    """What a key says; nothing vouches for it.

    Attributes:
        revision: that it had at that peer; 0: none.
        stood_s: for so many seconds it was the peer's ``vault.json``.
        digest: BLAKE3 of it, 64 hexadecimal digits.
    """

    revision: int
    stood_s: int
    digest: str

    def __str__(self) -> str:
        revision = min(self.revision, _LARGEST_REVISION)
        return f"{HEADERS_PREFIX}{revision}-{min(max(0, self.stood_s), _LONGEST_S)}-{self.digest}"


def parse_kept_header(key: str) -> KeptHeader | None:
    """The header that a key names; None if it names none."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    revision, stood_s, digest = match.groups()
    return KeptHeader(int(revision), int(stood_s), digest)


def surplus(kept: Mapping[KeptHeader, int]) -> list[KeptHeader]:
    """Those that have to go, so that no more are kept than may be.

    Args:
        kept: their lengths in bytes.
    """
    stays_longest_first = sorted(kept, key=lambda each: (-each.stood_s, -each.revision, each.digest))
    left_bytes, left = MOST_KEPT_BYTES, MOST_KEPT
    gone = []
    for each in stays_longest_first:
        if left and kept[each] <= left_bytes:
            left_bytes -= kept[each]
            left -= 1
        else:
            gone.append(each)
    return gone
