"""A second implementation of shares, from the text of `vaultfs.mesh.share_format` alone and as slow as it likes."""

from __future__ import annotations

import random

import blake3

from vaultfs.ids import SegmentName
from vaultfs.mesh.share_format import CodedSegment, Coding


def _multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0b1_0001_1101
        b >>= 1
    return product


def _power(a: int, exponent: int) -> int:
    result = 1
    for _ in range(exponent):
        result = _multiply(result, a)
    return result


def _at(index: int) -> int:
    return 0 if index == 0 else _power(2, index - 1)


def _weights(needed: int, index: int) -> list[int]:
    """What each primary block counts in block ``index``: Lagrange's polynomials at x(index)."""
    weights = []
    for j in range(needed):
        weight = 1
        for other in set(range(needed)) - {j}:
            inverse = _power(_at(j) ^ _at(other), 254)
            weight = _multiply(weight, _multiply(_at(index) ^ _at(other), inverse))
        weights.append(weight)
    return weights


def specified_share(segment: bytes, coding: Coding, index: int) -> bytes:
    """A share; the segment must not be long."""
    k = coding.needed
    share = b"VFSSHR\0\x01" + blake3.blake3(segment).digest() + len(segment).to_bytes(8, "little")
    share += bytes([k, coding.total, index]) + bytes(13)
    tables = [bytes(_multiply(weight, value) for value in range(256)) for weight in _weights(k, index)]
    for start in range(0, len(segment), k * 65_536):
        stripe = segment[start : start + k * 65_536]
        length = -(-len(stripe) // k)
        stripe = stripe.ljust(k * length, b"\0")
        block = 0
        for j, table in enumerate(tables):
            block ^= int.from_bytes(stripe[j * length : (j + 1) * length].translate(table), "little")
        share += block.to_bytes(length, "little")
    return share


def some_segment(size_bytes: int, *, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def coded_segment(segment: bytes, coding: str) -> CodedSegment:
    return CodedSegment(SegmentName(blake3.blake3(segment).hexdigest()), len(segment), Coding.parse(coding))
