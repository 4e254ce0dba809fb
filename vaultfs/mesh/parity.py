"""The arithmetic of shares: zfec, which is an extra, and is loaded when parity is made or used and not before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vaultfs.errors import UsageError
from vaultfs.mesh.share_format import CodedSegment


def load_zfec() -> Any:
    """The library that does the arithmetic.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import zfec  # type: ignore[import-untyped]  # noqa: PLC0415  # an extra
    except ImportError:
        raise UsageError(
            "erasure coding needs the package zfec, which is not installed: pip install 'vaultfs[erasure]'"
        ) from None
    return zfec


def decoder_of(coded: CodedSegment, order: Sequence[int]) -> Any:
    """What gives primary blocks back from those of such shares; None if they are primary already.

    Raises:
        UsageError: zfec is missing and parity is among them.
    """
    needed = coded.coding.needed
    return load_zfec().Decoder(needed, coded.coding.total) if max(order) >= needed else None


def in_places(coded: CodedSegment, indexes: Iterable[int]) -> tuple[int, ...]:
    """The order of shares that zfec wants: each primary block in its own place, parity in the others.

    With an index twice it never returns, and it reorders the tuple of blocks that it is given.
    """
    found = set(indexes)
    parity = iter(sorted(index for index in found if index >= coded.coding.needed))
    return tuple(index if index in found else next(parity) for index in range(coded.coding.needed))
