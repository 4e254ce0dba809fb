"""Folders: link counts, emptiness, the sticky bit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from .calls import exists, fails, opened
from .other_user import ALICE, BOB, run_as


def test_the_link_count_is_two_and_one_for_each_folder_inside(mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    assert folder.stat().st_nlink == 2
    (folder / "file").touch()
    assert folder.stat().st_nlink == 2
    for number in range(3):
        (folder / f"{number}").mkdir()
        assert folder.stat().st_nlink == 3 + number
    (folder / "0").rmdir()
    (folder / "1").rename(mounted / "moved")
    assert folder.stat().st_nlink == 3
    (mounted / "moved").rename(folder / "2")
    assert folder.stat().st_nlink == 3


def test_rmdir_needs_an_empty_folder(mounted: Path) -> None:
    (mounted / "folder" / "inner").mkdir(parents=True)
    (mounted / "file").touch()
    with fails(errno.ENOTEMPTY):
        (mounted / "folder").rmdir()
    with fails(errno.ENOTDIR):
        (mounted / "file").rmdir()
    with fails(errno.ENOENT):
        (mounted / "missing").rmdir()
    with fails(errno.EINVAL):
        os.rmdir(f"{mounted}/folder/.")
    with fails(errno.ENOTEMPTY):
        os.rmdir(f"{mounted}/folder/..")
    assert exists(mounted / "folder" / "inner")


def test_folders_are_not_unlinked_or_written(mounted: Path) -> None:
    (mounted / "folder").mkdir()
    with fails(errno.EISDIR):
        (mounted / "folder").unlink()
    with fails(errno.EISDIR):
        os.open(mounted / "folder", os.O_WRONLY)
    with fails(errno.EEXIST):
        (mounted / "folder").mkdir()
    with opened(mounted / "folder", os.O_RDONLY) as descriptor, fails(errno.EISDIR):
        os.read(descriptor, 1)


def test_the_folders_parent_is_two_dots(mounted: Path) -> None:
    (mounted / "folder").mkdir()
    assert os.stat(f"{mounted}/folder/..").st_ino == mounted.stat().st_ino
    assert os.stat(f"{mounted}/folder/.").st_ino == (mounted / "folder").stat().st_ino


def test_the_root_of_the_mount_cannot_be_removed(mounted: Path) -> None:
    root = mounted
    while not root.is_mount():
        root = root.parent
    with fails(errno.EBUSY):
        root.rmdir()


def test_a_removed_working_directory(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with fails(errno.ENOENT):
        os.mkdir("new")
    assert os.listdir() == []


@pytest.mark.root
def test_in_a_sticky_folder_only_owners_remove_and_rename(mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    folder.chmod(0o1777)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    for name, owner in (("alice", ALICE), ("bob", BOB)):
        (folder / name).touch()
        os.chown(folder / name, owner, owner)
    assert run_as(ALICE, (folder / "bob").unlink) == "EPERM"
    assert run_as(ALICE, lambda: (folder / "bob").rename(folder / "x")) == "EPERM"
    assert run_as(ALICE, lambda: (folder / "alice").rename(folder / "bob")) == "EPERM"
    assert run_as(BOB, lambda: (folder / "bob").rename(folder / "x")) == "ok"
    assert run_as(ALICE, (folder / "alice").unlink) == "ok"
    os.chown(folder, ALICE, ALICE)
    assert run_as(ALICE, (folder / "x").unlink) == "ok"
