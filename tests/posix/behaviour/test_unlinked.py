"""Files and folders that lost their last name while a program has them open."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from .calls import exists, fails, link_descriptor, opened


def test_an_unlinked_file_lives_until_it_is_closed(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"before")
        file.unlink()
        assert not exists(file)
        assert os.fstat(descriptor).st_nlink == 0
        os.write(descriptor, b" after" * 50_000)
        os.fsync(descriptor)
        assert os.pread(descriptor, 12, 0) == b"before after"
        os.ftruncate(descriptor, 6)
        os.fchmod(descriptor, 0o600)
        os.utime(descriptor, ns=(1, 2))
        status = os.fstat(descriptor)
        assert (status.st_size, status.st_mode & 0o777, status.st_mtime_ns) == (6, 0o600, 2)
        os.setxattr(descriptor, "user.x", b"y")
        assert os.getxattr(descriptor, "user.x") == b"y"


def test_a_new_file_of_the_same_name_is_another(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as old:
        os.write(old, b"old")
        file.unlink()
        file.write_bytes(b"new")
        assert os.pread(old, 10, 0) == b"old"
        assert os.fstat(old).st_ino != file.stat().st_ino
    assert file.read_bytes() == b"new"


def test_a_file_that_was_renamed_over_lives_until_it_is_closed(mounted: Path) -> None:
    old, new = mounted / "old", mounted / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with opened(old, os.O_RDWR) as descriptor:
        new.rename(old)
        os.pwrite(descriptor, b"O", 0)
        assert os.pread(descriptor, 10, 0) == b"Old"
        assert os.fstat(descriptor).st_nlink == 0
    assert old.read_bytes() == b"new"


def test_an_unlinked_file_can_be_opened_through_proc(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"data")
        file.unlink()
        with opened(f"/proc/self/fd/{descriptor}", os.O_RDONLY) as second:
            assert os.read(second, 10) == b"data"


def test_an_unlinked_file_gets_no_new_name(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        file.unlink()
        with fails(errno.ENOENT):
            link_descriptor(descriptor, mounted / "again")


def test_a_removed_folder_that_is_open_is_empty(mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        folder.rmdir()
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(descriptor) == []
        with fails(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
        with fails(errno.ENOENT):
            os.mkdir("new", dir_fd=descriptor)


def test_a_file_without_a_name_from_the_start(mounted: Path) -> None:
    """O_TMPFILE may be unsupported (programs then make a name and unlink it), but says so clearly."""
    try:
        descriptor = os.open(mounted, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            raise
        assert os.listdir(mounted) == []
        return
    try:
        os.write(descriptor, b"data")
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(mounted) == []
        link_descriptor(descriptor, mounted / "named")
    finally:
        os.close(descriptor)
    assert (mounted / "named").read_bytes() == b"data"


@pytest.mark.parametrize("count", [200])
def test_many_unlinked_files_at_once(mounted: Path, count: int) -> None:
    descriptors = []
    try:
        for number in range(count):
            file = mounted / f"{number}"
            descriptors.append(os.open(file, os.O_CREAT | os.O_RDWR))
            os.write(descriptors[-1], b"%d" % number)
            file.unlink()
        assert [os.pread(each, 9, 0) for each in descriptors] == [b"%d" % number for number in range(count)]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert os.listdir(mounted) == []
