"""Symbolic links."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from .calls import exists, fails
from .other_user import ALICE, run_as

LONGEST = 4095


@pytest.mark.parametrize("length", [1, 255, 256, LONGEST])
def test_targets_up_to_the_longest_path(mounted: Path, length: int) -> None:
    link = mounted / "link"
    target = ("t/" * LONGEST)[:length]
    link.symlink_to(target)
    assert os.readlink(link) == target
    assert link.lstat().st_size == length


def test_a_target_that_is_too_long(mounted: Path) -> None:
    with fails(errno.ENAMETOOLONG):
        (mounted / "link").symlink_to("t" * (LONGEST + 1))
    assert not exists(mounted / "link")


def test_targets_are_bytes_that_nobody_interprets(mounted: Path) -> None:
    link = os.fsencode(mounted) + b"/link"
    target = bytes(range(1, 256))
    os.symlink(target, link)
    assert os.readlink(link) == target


def test_a_link_is_followed(mounted: Path) -> None:
    (mounted / "folder").mkdir()
    (mounted / "folder" / "file").write_bytes(b"data")
    (mounted / "link").symlink_to("folder")
    assert (mounted / "link" / "file").read_bytes() == b"data"
    (mounted / "new").symlink_to("made")
    (mounted / "new").write_bytes(b"through a dangling link")
    assert (mounted / "made").read_bytes() == b"through a dangling link"


def test_a_link_is_a_thing_of_its_own(mounted: Path) -> None:
    (mounted / "link").symlink_to("missing")
    status = (mounted / "link").lstat()
    assert stat.S_ISLNK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o777
    assert status.st_nlink == 1
    with fails(errno.ENOENT):
        (mounted / "link").stat()
    with fails(errno.EEXIST):
        (mounted / "link").symlink_to("again")
    (mounted / "link").unlink()
    assert os.listdir(mounted) == []


def test_loops_end(mounted: Path) -> None:
    (mounted / "one").symlink_to("two")
    (mounted / "two").symlink_to("one")
    (mounted / "self").symlink_to("self")
    for name in ("one", "self"):
        with fails(errno.ELOOP):
            (mounted / name).read_bytes()
        with fails(errno.ELOOP):
            os.stat(mounted / name / "below")


def test_nofollow(mounted: Path) -> None:
    (mounted / "file").touch()
    (mounted / "link").symlink_to("file")
    with fails(errno.ELOOP):
        os.open(mounted / "link", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.EINVAL):
        os.readlink(mounted / "file")


def test_creating_exclusively_does_not_follow(mounted: Path) -> None:
    (mounted / "link").symlink_to("missing")
    with fails(errno.EEXIST):
        os.open(mounted / "link", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert os.listdir(mounted) == ["link"]


def test_a_link_that_takes_the_place_of_another_leads_elsewhere(mounted: Path) -> None:
    """The kernel may cache what links say."""
    (mounted / "link").symlink_to("one")
    assert os.readlink(mounted / "link") == "one"
    (mounted / "new").symlink_to("two")
    (mounted / "new").rename(mounted / "link")
    assert os.readlink(mounted / "link") == "two"
    (mounted / "link").unlink()
    (mounted / "link").symlink_to("three")
    assert os.readlink(mounted / "link") == "three"


@pytest.mark.root
def test_a_link_has_an_owner(mounted: Path) -> None:
    (mounted / "file").touch()
    (mounted / "link").symlink_to("file")
    os.lchown(mounted / "link", ALICE, ALICE)
    assert (mounted / "link").lstat().st_uid == ALICE
    assert (mounted / "file").stat().st_uid == os.getuid()
    assert run_as(ALICE, lambda: os.readlink(mounted / "link")) == "ok"
