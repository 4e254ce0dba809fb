"""open(2): flags, and the errors of paths."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from .calls import fails, opened


@pytest.fixture
def file(mounted: Path) -> Path:
    path = mounted / "file"
    path.write_bytes(b"data")
    return path


def test_create_and_exclusive(file: Path) -> None:
    with fails(errno.EEXIST):
        os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with opened(file, os.O_CREAT | os.O_RDONLY) as descriptor:
        assert os.read(descriptor, 9) == b"data"
    with fails(errno.ENOENT):
        os.open(file.with_name("missing"), os.O_RDWR)


def test_a_file_is_no_folder(file: Path) -> None:
    with fails(errno.ENOTDIR):
        os.open(file, os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.ENOTDIR):
        os.stat(file / "below")
    with fails(errno.ENOTDIR):
        os.stat(f"{file}/")
    with fails(errno.ENOENT):
        os.stat(file.with_name("missing") / "below")


def test_descriptors_do_what_they_were_opened_for(file: Path) -> None:
    with opened(file, os.O_RDONLY) as descriptor, fails(errno.EBADF):
        os.write(descriptor, b"x")
    with opened(file, os.O_WRONLY) as descriptor, fails(errno.EBADF):
        os.read(descriptor, 1)


def test_positions(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        assert os.lseek(descriptor, 0, os.SEEK_END) == 4
        os.write(descriptor, b"more")
        assert os.lseek(descriptor, -2, os.SEEK_CUR) == 6
        assert os.read(descriptor, 9) == b"re"
        with fails(errno.EINVAL):
            os.lseek(descriptor, -1, os.SEEK_SET)
        assert os.lseek(descriptor, 100, os.SEEK_SET) == 100
        assert os.read(descriptor, 1) == b""
    assert file.stat().st_size == 8


def test_scattered_buffers(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        assert os.pwritev(descriptor, [b"ab", b"", b"cde"], 2) == 5
        parts = [bytearray(3), bytearray(9)]
        assert os.preadv(descriptor, parts, 0) == 7
    assert bytes(parts[0]) + bytes(parts[1][:4]) == b"daabcde"


def test_a_name_that_was_looked_for_in_vain_can_be_made(mounted: Path) -> None:
    """The kernel may cache that a name is missing."""
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("x"), os.mkfifo):
        path = mounted / "name"
        with fails(errno.ENOENT):
            path.lstat()
        make(path)
        path.lstat()
        path.rename(mounted / "away")
        with fails(errno.ENOENT):
            path.lstat()
        if (mounted / "away").is_dir():
            (mounted / "away").rmdir()
        else:
            (mounted / "away").unlink()


def test_many_open_files(mounted: Path) -> None:
    descriptors = [os.open(mounted / f"{number}", os.O_CREAT | os.O_RDWR) for number in range(500)]
    try:
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, b"%d" % number)
        assert [os.pread(each, 9, 0) for each in descriptors] == [b"%d" % number for number in range(500)]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
