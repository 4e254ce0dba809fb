"""Holes: huge files of few bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from .calls import fails, opened

LARGEST_BYTES = 8 << 40


@pytest.mark.parametrize("size_bytes", [1, 4096, 131_071, 131_072, 131_073, 1 << 32, LARGEST_BYTES])
def test_truncate_makes_a_hole_of_any_size(mounted: Path, size_bytes: int) -> None:
    file = mounted / "file"
    file.touch()
    os.truncate(file, size_bytes)
    assert file.stat().st_size == size_bytes
    with opened(file, os.O_RDONLY) as descriptor:
        for offset in {0, size_bytes // 2, size_bytes - 1}:
            assert os.pread(descriptor, 1, offset) == b"\0"
        assert os.pread(descriptor, 10, size_bytes - 1) == b"\0"
        assert os.pread(descriptor, 10, size_bytes) == b""


def test_the_last_byte_of_eight_tebibytes(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        assert os.pwrite(descriptor, b"end", LARGEST_BYTES - 3) == 3
        os.fsync(descriptor)
        assert os.pread(descriptor, 9, LARGEST_BYTES - 5) == b"\0\0end"
        assert os.pread(descriptor, 3, LARGEST_BYTES // 2) == b"\0\0\0"
    assert file.stat().st_size == LARGEST_BYTES


def test_a_hole_occupies_no_space(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"x", 1 << 40)
        os.fsync(descriptor)
    assert file.stat().st_blocks * 512 <= 1 << 20


def test_written_bytes_occupy_space(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, os.urandom(1 << 20))
        os.fsync(descriptor)
        os.ftruncate(descriptor, 1 << 40)
    assert 1 << 20 <= file.stat().st_blocks * 512 <= 2 << 20


def test_islands_stay_where_they_were_written(mounted: Path) -> None:
    file = mounted / "file"
    islands = {
        0: b"first",
        100_000: b"second",
        (1 << 17) - 2: b"across a chunk",
        1 << 30: b"far",
        (1 << 41) + 5: b"away",
    }
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        for offset, data in reversed(islands.items()):
            os.pwrite(descriptor, data, offset)
        os.fsync(descriptor)
        for offset, data in islands.items():
            before = min(offset, 5)
            expected = bytes(before) + data + (b"" if offset == 1 << 41 | 5 else bytes(5))
            assert os.pread(descriptor, before + len(data) + 5, offset - before) == expected


def test_seek_for_data_finds_all_data(mounted: Path) -> None:
    """A filesystem may call holes data; it must not call data holes."""
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"x" * 4096, 1 << 20)
        os.ftruncate(descriptor, 1 << 22)
        os.fsync(descriptor)
        assert os.lseek(descriptor, 0, os.SEEK_DATA) <= 1 << 20
        assert os.lseek(descriptor, 1 << 20, os.SEEK_DATA) == 1 << 20
        assert (1 << 20) + 4096 <= os.lseek(descriptor, 1 << 20, os.SEEK_HOLE) <= 1 << 22
        with fails(errno.ENXIO):
            os.lseek(descriptor, 1 << 22, os.SEEK_DATA)


def test_the_largest_size_that_can_be_said_is_kept_or_refused(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"data")
    try:
        os.truncate(file, (1 << 63) - 1)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        assert file.stat().st_size == 4
    else:
        assert file.stat().st_size == (1 << 63) - 1
    with opened(file, os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 4, 0) == b"data"


def test_a_write_far_beyond_eight_tebibytes_is_kept_or_refused_at_once(mounted: Path) -> None:
    """Refused late, by fsync, is too late: few programs look."""
    file = mounted / "file"
    offset = 15 << 40
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        try:
            os.pwrite(descriptor, b"end", offset)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            return
        os.fsync(descriptor)
        assert os.pread(descriptor, 10, offset - 2) == b"\0\0end"
    assert file.stat().st_size == offset + 3
