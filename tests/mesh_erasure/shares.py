"""Shares in memory, for the tests: made, read back, and forged."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import blake3

from vaultfs.mesh.erasure import decode, encode, rebuild
from vaultfs.mesh.share_format import CodedSegment


def name_of(data: bytes | bytearray) -> str:
    return blake3.blake3(data).hexdigest()


def make_shares(segment: bytes, coded: CodedSegment) -> list[bytes]:
    made = [bytearray() for _ in range(coded.coding.total)]
    names = encode(io.BytesIO(segment), coded, {index: share.extend for index, share in enumerate(made)})
    assert names == {index: name_of(share) for index, share in enumerate(made)}
    return [bytes(share) for share in made]


def streams(shares: Iterable[bytes]) -> list[io.BytesIO]:
    return [io.BytesIO(share) for share in shares]


def decoded(coded: CodedSegment, shares: Iterable[bytes]) -> bytes:
    got = bytearray()
    decode(coded, streams(shares), got.extend)
    return bytes(got)


def rebuilt(coded: CodedSegment, shares: Iterable[bytes], wanted: Sequence[int]) -> dict[int, bytes]:
    made = {index: bytearray() for index in wanted}
    names = rebuild(coded, streams(shares), {index: share.extend for index, share in made.items()})
    assert names == {index: name_of(share) for index, share in made.items()}
    return {index: bytes(share) for index, share in made.items()}


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 0x40
    return bytes(changed)


class Dribble:
    """A stream that gives less than it is asked for."""

    def __init__(self, data: bytes, most: int = 7) -> None:
        self._stream = io.BytesIO(data)
        self._most = most

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._most))
