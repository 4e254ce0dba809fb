"""Bytes for tests."""

from __future__ import annotations

import random

from vaultfs.remotes.store import Store


def body(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes in which every position differs from its neighbours."""
    return random.Random(seed).randbytes(size_bytes)


def read(store: Store, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    """An object, whole."""
    return b"".join(store.get(key, offset=offset, length=length))
