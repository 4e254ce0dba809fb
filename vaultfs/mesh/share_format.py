"""The bytes of a share: one of ``n`` objects made from a sealed segment, any ``k`` of which give it back.

Share ``i``, 0 <= i < n, has these parts.  Integers are little-endian.

    offset  bytes
         0      7   ``VFSSHR`` and a zero byte
         7      1   the format's version, 1
         8     32   BLAKE3 of the segment, which is its name
        40      8   size of the segment in bytes, 1 to 134,217,728
        48      1   k, from 1
        49      1   n, from k to 64
        50      1   i, below n
        51     13   zeros
        64    ...   the blocks of the stripes, back to back

The segment is cut into *stripes* of k * 65,536 bytes; a last one takes the r bytes that are left, if any.  A stripe is
k *primary blocks* of b bytes, one after the other: b = 65,536, but in a last stripe that is not full b = ceil(r / k),
with zeros after the r bytes up to k * b.  Block i of a stripe, for i < k, is primary block i.  For i >= k it is parity,
byte by byte: with arithmetic in GF(2**8) modulo x**8 + x**4 + x**3 + x**2 + 1, the value at x(i) of the polynomial of
degree below k whose values at x(0) ... x(k-1) are the bytes of the primary blocks; x(0) = 0 and x(i) = 2**(i-1).

So there is one encoding of a share, whoever makes it, and its length follows from its header.  Its *name* is the BLAKE3
of all its bytes, as 64 hexadecimal digits: a peer verifies that before it stores, without a key and without knowing the
segment.  The segment ``vaultfs`` (7 bytes) as 2/3 has shares of 68 bytes, in hexadecimal

    56465353485200 01 56ff665676887ef295f155ad875303ed4d85e68bb256a3ecd666b194adaa3e48
    0700000000000000 02 03 ii 00000000000000000000000000 dddddddd

    ii  dddddddd  name
    00  7661756c  5fb4320f6aece6e8e2befa3e0c3ca3765f8b8ea799c141d836b4a1a9b829b36a
    01  74667300  82f63a2452b0b86a2ef3c3f1ecd07de5bed85dd95b96db006f2008be5f6d06ac
    02  726f79b4  7acdccec3df6909e25d45c98e0b55c0b38a62d90510a22135f65e1a02f1690d8

Every decoder takes any bytes: it returns something within the bounds written here or raises a
`vaultfs.errors.VaultError`.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import is_segment_name
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES

FORMAT_VERSION: Final = 1
HEADER_BYTES: Final = 64
BLOCK_BYTES: Final = 64 << 10
MAX_SHARES: Final = 64
"""zfec can do 256, but encodes 32/64 at 58 MB/s already, and nobody has so many peers."""

_MAGIC: Final = b"VFSSHR\0"
_HEADER: Final = struct.Struct("<7sB32sQBBB13s")
_CODING: Final = re.compile(r"([1-9][0-9]?)/([1-9][0-9]?)")


@dataclass(frozen=True)
class Coding:
    """How a segment is cut: "4/7" is seven shares, any four of which suffice.

    Attributes:
        needed: k, from 1.
        total: n, from ``needed`` to `MAX_SHARES`.

    Raises:
        UsageError: values out of these bounds.
    """

    needed: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.needed <= self.total <= MAX_SHARES:
            raise UsageError(
                f"{self.needed}/{self.total} is no coding: of NEEDED/TOTAL, NEEDED is 1 to TOTAL, and TOTAL at most "
                f"{MAX_SHARES}"
            )

    @classmethod
    def parse(cls, text: str) -> Coding:
        """The coding that ``str`` writes so.

        Raises:
            UsageError: not a coding.
        """
        match = _CODING.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is no coding; write NEEDED/TOTAL, as in 4/7")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.needed}/{self.total}"


@dataclass(frozen=True)
class CodedSegment:
    """A segment and how it is cut: what all its shares have in common.

    Attributes:
        name: the segment's.
        size_bytes: of the segment, 1 to 128 MiB.
        coding: k and n.

    Raises:
        UsageError: no name of a segment, or a size out of its bounds.
    """

    name: SegmentName
    size_bytes: int
    coding: Coding

    def __post_init__(self) -> None:
        if not is_segment_name(self.name) or not 1 <= self.size_bytes <= LARGEST_SEGMENT_BYTES:
            raise UsageError(f"a segment {self.name!r} of {self.size_bytes} bytes cannot be cut into shares")

    @property
    def share_bytes(self) -> int:
        """The length of each share, its header included."""
        full, rest = divmod(self.size_bytes, self.coding.needed * BLOCK_BYTES)
        return HEADER_BYTES + full * BLOCK_BYTES + -(-rest // self.coding.needed)

    def stripes(self) -> Iterator[tuple[int, int]]:
        """For each stripe its bytes of the segment, and the bytes of each of its blocks."""
        full, rest = divmod(self.size_bytes, self.coding.needed * BLOCK_BYTES)
        yield from itertools.repeat((self.coding.needed * BLOCK_BYTES, BLOCK_BYTES), full)
        if rest:
            yield rest, -(-rest // self.coding.needed)


@dataclass(frozen=True)
class ShareHeader:
    """The first 64 bytes of a share.

    Attributes:
        coded: what it is a share of.
        index: which share, from 0.

    Raises:
        UsageError: the coding has no such share.
    """

    coded: CodedSegment
    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.coded.coding.total:
            raise UsageError(f"there is no share {self.index} in a coding {self.coded.coding}")

    def encode(self) -> bytes:
        """The header as `HEADER_BYTES` bytes."""
        coded, coding = self.coded, self.coded.coding
        segment = bytes.fromhex(coded.name)
        return _HEADER.pack(
            _MAGIC, FORMAT_VERSION, segment, coded.size_bytes, coding.needed, coding.total, self.index, bytes(13)
        )

    @classmethod
    def decode(cls, data: bytes) -> ShareHeader:
        """The header from `HEADER_BYTES` bytes.  Nothing vouches for it: it is what anybody may have written.

        Raises:
            FormatTooNewError: a newer version of vaultfs wrote it.
            IntegrityError: not the header of a share.
        """
        if len(data) != HEADER_BYTES:
            raise IntegrityError(f"a share's header has {HEADER_BYTES} bytes, not {len(data)}; take another share")
        magic, version, segment, size_bytes, needed, total, index, zeros = _HEADER.unpack(data)
        if magic != _MAGIC:
            raise IntegrityError("not a share: it does not begin with VFSSHR; take another share")
        if version > FORMAT_VERSION:
            raise FormatTooNewError(f"the share has format {version}, newer than this vaultfs knows; update vaultfs")
        try:
            header = cls(CodedSegment(SegmentName(segment.hex()), size_bytes, Coding(needed, total)), index)
        except UsageError as error:
            raise IntegrityError(f"the share's header makes no sense ({error}); take another share") from None
        if version != FORMAT_VERSION or any(zeros):
            raise IntegrityError("the share's header is damaged; take another share")
        return header
