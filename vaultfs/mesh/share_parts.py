"""Parts of shares, made of parts of a segment or of other shares: what an honest peer would answer to an audit.  Pure.

The code works byte by byte: what stands at a place of a share follows from what stands at the same place of any k
others.  So a part of a share is made from the same part of k others, or of the k primary blocks that the segment has
there, and costs k times its length of reading however large the segment is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.mesh.parity import decoder_of, in_places, load_zfec
from vaultfs.mesh.share_format import BLOCK_BYTES, HEADER_BYTES, CodedSegment, ShareHeader

ReadSegment = Callable[[int, int], bytes]
"""Is given an offset and a length, which lie within the segment."""


def part_of_segment(coded: CodedSegment, index: int, offset: int, length: int, read: ReadSegment) -> bytes:
    """A part of a share, from the segment.

    Args:
        coded: the segment, and how it is cut.
        index: which share.
        offset: bytes from the share's start.
        length: bytes, at least 1, within the share.
        read: reads the segment; nobody verifies what it gives.

    Raises:
        UsageError: not within the share; or zfec is missing and the share is parity.
        IntegrityError: the segment is shorter.
    """
    end = offset + length
    if offset < 0 or length < 1 or end > coded.share_bytes:
        raise UsageError(f"a share of {coded.share_bytes} bytes has no {length} from {offset}")
    parts = [ShareHeader(coded, index).encode()[offset:end]] if offset < HEADER_BYTES else []
    at = max(offset, HEADER_BYTES)
    while at < end:
        stripe, within = divmod(at - HEADER_BYTES, BLOCK_BYTES)
        start = stripe * coded.coding.needed * BLOCK_BYTES
        block_bytes = min(BLOCK_BYTES, coded.share_bytes - HEADER_BYTES - stripe * BLOCK_BYTES)
        count = min(end - at, block_bytes - within)
        wanted = range(coded.coding.needed) if index >= coded.coding.needed else (index,)
        pieces = [_padded(coded, start + number * block_bytes + within, count, read) for number in wanted]
        parts.append(pieces[0] if index < coded.coding.needed else _parity(coded, index, pieces))
        at += count
    return b"".join(parts)


def part_of_shares(coded: CodedSegment, index: int, parts: Mapping[int, bytes]) -> bytes:
    """A part of a share, from the same part of k others; after the header.

    Args:
        coded: the segment, and how it is cut.
        index: which share.
        parts: by index, k of them.

    Raises:
        UsageError: not k of them, or zfec is missing and arithmetic is needed.
        IntegrityError: they are not of one length.
    """
    needed = coded.coding.needed
    if len(parts) != needed:
        raise UsageError(f"a part of a share is made from {needed} others, not {len(parts)}")
    if len({len(part) for part in parts.values()}) != 1:
        raise IntegrityError(f"parts of shares of the segment {coded.name} are not of one length")
    if index in parts:
        return parts[index]
    order = in_places(coded, parts)
    primaries = [parts[each] for each in order]
    decoder = decoder_of(coded, order)
    if decoder is not None:
        primaries = decoder.decode(tuple(primaries), order)
    return primaries[index] if index < needed else _parity(coded, index, primaries)


def _padded(coded: CodedSegment, offset: int, count: int, read: ReadSegment) -> bytes:
    length = max(0, min(count, coded.size_bytes - offset))
    data = read(offset, length) if length else b""
    if len(data) != length:
        raise IntegrityError(f"the segment {coded.name} ends before its {coded.size_bytes} bytes; fetch it anew")
    return data.ljust(count, b"\0")


def _parity(coded: CodedSegment, index: int, primaries: list[bytes]) -> bytes:
    encoder = load_zfec().Encoder(coded.coding.needed, coded.coding.total)
    return bytes(encoder.encode(tuple(primaries), (index,))[0])
