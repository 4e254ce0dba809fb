"""fsync and its kin succeed on everything that can be opened.  What they promise is tested by cutting the power."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .calls import opened


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_files(mounted: Path, flags: int) -> None:
    file = mounted / "file"
    file.write_bytes(b"data")
    with opened(file, flags) as descriptor:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    assert file.read_bytes() == b"data"


def test_folders(mounted: Path) -> None:
    (mounted / "file").touch()
    with opened(mounted, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    assert os.listdir(mounted) == ["file"]


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes(mounted: Path, flag: int) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_WRONLY | flag) as descriptor:
        for number in range(5):
            os.write(descriptor, b"%d" % number)
    assert file.read_bytes() == b"01234"


def test_an_unlinked_file(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"data")
        file.unlink()
        os.fsync(descriptor)
        assert os.pread(descriptor, 9, 0) == b"data"


def test_the_whole_system(mounted: Path) -> None:
    (mounted / "file").write_bytes(b"data")
    os.sync()
    assert (mounted / "file").read_bytes() == b"data"
