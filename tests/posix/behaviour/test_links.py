"""Hard links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from .calls import exists, fails


@pytest.fixture
def file(mounted: Path) -> Path:
    path = mounted / "file"
    path.write_bytes(b"data")
    return path


def test_names_of_one_file_are_equal(file: Path) -> None:
    (file.parent / "folder").mkdir()
    second = file.parent / "folder" / "second"
    second.hardlink_to(file)
    assert (file.stat().st_ino, file.stat().st_nlink) == (second.stat().st_ino, 2)
    second.write_bytes(b"through the second name")
    second.chmod(0o604)
    os.setxattr(second, "user.x", b"1")
    assert file.read_bytes() == b"through the second name"
    assert file.stat().st_mode & 0o777 == 0o604
    assert os.getxattr(file, "user.x") == b"1"


def test_the_file_stays_until_the_last_name_goes(file: Path) -> None:
    second = file.with_name("second")
    second.hardlink_to(file)
    file.unlink()
    assert (second.read_bytes(), second.stat().st_nlink) == (b"data", 1)
    second.unlink()
    assert os.listdir(file.parent) == []


def test_the_link_count_is_seen_through_an_open_file(file: Path) -> None:
    with file.open("rb") as stream:
        file.with_name("second").hardlink_to(file)
        assert os.fstat(stream.fileno()).st_nlink == 2
        file.unlink()
        assert os.fstat(stream.fileno()).st_nlink == 1


def test_a_symlink_can_have_two_names(file: Path) -> None:
    link, second = file.with_name("link"), file.with_name("second")
    link.symlink_to("file")
    os.link(link, second, follow_symlinks=False)
    assert os.readlink(second) == "file"
    assert (link.lstat().st_nlink, file.stat().st_nlink) == (2, 1)


def test_what_cannot_be_linked(file: Path) -> None:
    (file.parent / "folder").mkdir()
    with fails(errno.EPERM):
        os.link(file.parent / "folder", file.parent / "second")
    with fails(errno.EEXIST):
        os.link(file, file.parent / "folder")
    with fails(errno.EEXIST):
        os.link(file, file)
    with fails(errno.ENOENT):
        os.link(file.with_name("missing"), file.with_name("second"))
    with fails(errno.EXDEV):
        os.link("/proc/self/status", file.with_name("second"))
    assert not exists(file.with_name("second"))


def test_a_thousand_names(file: Path) -> None:
    for number in range(1_000):
        (file.parent / f"{number}").hardlink_to(file)
    assert file.stat().st_nlink == 1_001
    for number in range(1_000):
        (file.parent / f"{number}").unlink()
    assert file.stat().st_nlink == 1
