"""opendir(3) and its kin, which os.scandir hides."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long


class _Entry(ctypes.Structure):
    _fields_ = (
        ("inode", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc.readdir.restype = ctypes.POINTER(_Entry)


class DirectoryStream:
    """An open directory; iteration yields (name, inode, kind of DT_*), with ``.`` and ``..``."""

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(os.fsencode(path)))
        assert self._stream.value is not None, os.strerror(ctypes.get_errno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._stream)

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        while entry := _libc.readdir(self._stream):
            yield bytes(entry.contents.name), entry.contents.inode, entry.contents.kind

    def position(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)
