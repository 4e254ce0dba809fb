"""Calls that filesystems may offer to make copies and reserve room; where they do not, the kernel or libc steps in."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .calls import opened


@pytest.fixture
def source(mounted: Path) -> Path:
    path = mounted / "source"
    path.write_bytes(os.urandom(300_000))
    return path


def test_copy_file_range(source: Path) -> None:
    target = source.with_name("target")
    with opened(source, os.O_RDONLY) as read, opened(target, os.O_CREAT | os.O_WRONLY) as write:
        remaining = 300_000
        while remaining:
            copied = os.copy_file_range(read, write, remaining)
            assert copied > 0
            remaining -= copied
        assert os.copy_file_range(read, write, 1) == 0
    assert target.read_bytes() == source.read_bytes()


def test_copy_file_range_within_one_file(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"0123456789" * 10_000)
    with opened(file, os.O_RDWR) as descriptor:
        assert os.copy_file_range(descriptor, descriptor, 5, 0, 99_998) == 5
    assert file.read_bytes()[-5:] == b"01234"
    assert file.stat().st_size == 100_003


def test_sendfile(source: Path) -> None:
    target = source.with_name("target")
    with opened(source, os.O_RDONLY) as read, opened(target, os.O_CREAT | os.O_WRONLY) as write:
        offset = 0
        while sent := os.sendfile(write, read, offset, 1 << 20):
            offset += sent
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("reflink", ["auto", "never"])
def test_cp(source: Path, reflink: str) -> None:
    target = source.with_name("target")
    subprocess.run(["cp", f"--reflink={reflink}", "--sparse=always", source, target], check=True)
    assert target.read_bytes() == source.read_bytes()
    shutil.copystat(source, target)
    assert target.stat().st_mtime_ns == source.stat().st_mtime_ns


def test_posix_fallocate_makes_the_file_long_enough(mounted: Path) -> None:
    """Without support below, libc writes a byte into each block instead."""
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"data")
        os.posix_fallocate(descriptor, 0, 50_000)
    assert file.read_bytes() == b"data" + bytes(49_996)


def test_clones_are_refused_clearly(source: Path) -> None:
    target = source.with_name("target")
    result = subprocess.run(["cp", "--reflink=always", source, target], check=False, capture_output=True)
    if result.returncode:
        message = os.fsencode(os.strerror(errno.EOPNOTSUPP))
        assert any(each in result.stderr for each in (message, b"Inappropriate ioctl", b"Invalid cross-device"))
    else:
        assert target.read_bytes() == source.read_bytes()


def test_advice_is_taken_or_ignored(source: Path) -> None:
    with opened(source, os.O_RDONLY) as descriptor:
        for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
            os.posix_fadvise(descriptor, 0, 0, advice)
        assert len(os.read(descriptor, 300_000)) == 300_000
