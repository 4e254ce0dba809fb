"""Bytes for tests."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from vaultfs.remotes.store import Store


def body(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes in which every position differs from its neighbours."""
    return random.Random(seed).randbytes(size_bytes)


def read(store: Store, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    """An object, whole."""
    return b"".join(store.get(key, offset=offset, length=length))


class FileSource:
    """A source in a file, as most sources of a sync are."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self.size_bytes = size_bytes

    def open(self) -> AbstractContextManager[BinaryIO]:
        return self._path.open("rb")
