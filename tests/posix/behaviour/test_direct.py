"""O_DIRECT: accepted, and coherent with the page cache."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .calls import opened

BLOCK = 4096
SIZE = 64 * BLOCK


@pytest.fixture
def buffer() -> Iterator[mmap.mmap]:
    """Memory aligned to a page, as O_DIRECT demands it of many filesystems."""
    with mmap.mmap(-1, SIZE) as memory:
        yield memory


@pytest.fixture
def file(mounted: Path) -> Path:
    return mounted / "file"


def test_what_was_written_directly_is_read_directly(file: Path, buffer: mmap.mmap) -> None:
    data = os.urandom(SIZE)
    buffer[:] = data
    with opened(file, os.O_CREAT | os.O_RDWR | os.O_DIRECT) as descriptor:
        assert os.pwritev(descriptor, [buffer], 0) == SIZE
        buffer[:] = bytes(SIZE)
        assert os.preadv(descriptor, [buffer], 0) == SIZE
        assert buffer[:] == data
    assert file.read_bytes() == data


def test_buffered_writes_are_read_directly(file: Path, buffer: mmap.mmap) -> None:
    data = os.urandom(SIZE)
    with opened(file, os.O_CREAT | os.O_RDWR) as cached, opened(file, os.O_RDONLY | os.O_DIRECT) as direct:
        os.write(cached, data)
        assert os.preadv(direct, [buffer], 0) == SIZE
        assert buffer[:] == data


def test_direct_writes_are_seen_in_the_cache(file: Path, buffer: mmap.mmap) -> None:
    file.write_bytes(b"." * SIZE)
    with opened(file, os.O_RDONLY) as cached, opened(file, os.O_WRONLY | os.O_DIRECT) as direct:
        assert os.pread(cached, 2 * BLOCK, 0) == b"." * 2 * BLOCK
        buffer[:BLOCK] = b"#" * BLOCK
        with memoryview(buffer) as view, view[:BLOCK] as block:
            assert os.pwritev(direct, [block], BLOCK) == BLOCK
        assert os.pread(cached, 3 * BLOCK, 0) == b"." * BLOCK + b"#" * BLOCK + b"." * BLOCK


def test_reading_at_the_end_is_short(file: Path, buffer: mmap.mmap) -> None:
    file.write_bytes(b"x" * (BLOCK + 10))
    with opened(file, os.O_RDONLY | os.O_DIRECT) as descriptor:
        assert os.preadv(descriptor, [buffer], BLOCK) == 10
        assert os.preadv(descriptor, [buffer], 2 * BLOCK) == 0
