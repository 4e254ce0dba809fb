"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from .calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, exists, fails, renameat2


def test_a_file_moves_with_its_inode(mounted: Path) -> None:
    (mounted / "a").mkdir()
    source, target = mounted / "source", mounted / "a" / "target"
    source.write_bytes(b"data")
    inode = source.stat().st_ino
    source.rename(target)
    assert not exists(source)
    assert (target.stat().st_ino, target.read_bytes()) == (inode, b"data")


def test_a_file_replaces_a_file(mounted: Path) -> None:
    source, target = mounted / "source", mounted / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    source.rename(target)
    assert (target.read_bytes(), os.listdir(mounted)) == (b"new", ["target"])


def test_replacing_one_of_two_names_leaves_the_other(mounted: Path) -> None:
    source, target, other = mounted / "source", mounted / "target", mounted / "other"
    source.touch()
    target.write_bytes(b"old")
    other.hardlink_to(target)
    source.rename(target)
    assert (other.read_bytes(), other.stat().st_nlink) == (b"old", 1)


def test_renaming_to_another_name_of_the_same_file_does_nothing(mounted: Path) -> None:
    source, target = mounted / "source", mounted / "target"
    source.touch()
    target.hardlink_to(source)
    source.rename(target)
    assert exists(source)
    assert exists(target)
    assert source.stat().st_nlink == 2


def test_a_folder_replaces_an_empty_folder_only(mounted: Path) -> None:
    source, empty, full = mounted / "source", mounted / "empty", mounted / "full"
    (source / "inner").mkdir(parents=True)
    empty.mkdir()
    full.mkdir()
    (full / "file").touch()
    with fails(errno.ENOTEMPTY):
        source.rename(full)
    source.rename(empty)
    assert os.listdir(empty) == ["inner"]
    assert not exists(source)


def test_kinds_do_not_replace_one_another(mounted: Path) -> None:
    file, folder = mounted / "file", mounted / "folder"
    file.touch()
    folder.mkdir()
    with fails(errno.EISDIR):
        file.rename(folder)
    with fails(errno.ENOTDIR):
        folder.rename(file)


def test_a_folder_does_not_move_into_itself(mounted: Path) -> None:
    inner = mounted / "folder" / "inner"
    inner.mkdir(parents=True)
    with fails(errno.EINVAL):
        (mounted / "folder").rename(inner / "new")
    with fails(errno.ENOTEMPTY):
        inner.rename(mounted / "folder")


def test_a_moved_folder_has_a_new_parent(mounted: Path) -> None:
    one, two = mounted / "one", mounted / "two"
    (one / "moving" / "inner").mkdir(parents=True)
    two.mkdir()
    (one / "moving").rename(two / "moved")
    assert os.stat(two / "moved" / "..").st_ino == two.stat().st_ino
    assert (one.stat().st_nlink, two.stat().st_nlink) == (2, 3)


def test_noreplace(mounted: Path) -> None:
    source, target = mounted / "source", mounted / "target"
    source.write_bytes(b"source")
    target.write_bytes(b"target")
    with fails(errno.EEXIST):
        renameat2(source, target, RENAME_NOREPLACE)
    assert (source.read_bytes(), target.read_bytes()) == (b"source", b"target")
    target.unlink()
    renameat2(source, target, RENAME_NOREPLACE)
    assert (exists(source), target.read_bytes()) == (False, b"source")


def test_exchange_of_files(mounted: Path) -> None:
    one, two = mounted / "one", mounted / "two"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    renameat2(one, two, RENAME_EXCHANGE)
    assert (one.read_bytes(), two.read_bytes()) == (b"two", b"one")


def test_exchange_of_a_file_and_a_folder_across_folders(mounted: Path) -> None:
    left, right = mounted / "left", mounted / "right"
    (left / "x" / "inner").mkdir(parents=True)
    right.mkdir()
    (right / "y").write_bytes(b"file")
    renameat2(left / "x", right / "y", RENAME_EXCHANGE)
    assert (left / "x").read_bytes() == b"file"
    assert os.listdir(right / "y") == ["inner"]
    assert (left.stat().st_nlink, right.stat().st_nlink) == (2, 3)
    assert os.stat(right / "y" / "..").st_ino == right.stat().st_ino


def test_exchange_needs_both(mounted: Path) -> None:
    (mounted / "one").touch()
    with fails(errno.ENOENT):
        renameat2(mounted / "one", mounted / "two", RENAME_EXCHANGE)
    assert os.listdir(mounted) == ["one"]


def test_exchange_does_not_make_a_loop(mounted: Path) -> None:
    (mounted / "outer" / "inner").mkdir(parents=True)
    with fails(errno.EINVAL):
        renameat2(mounted / "outer", mounted / "outer" / "inner", RENAME_EXCHANGE)


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE | RENAME_EXCHANGE, RENAME_EXCHANGE | RENAME_WHITEOUT, 1 << 10])
def test_flags_without_sense_are_refused(mounted: Path, flags: int) -> None:
    (mounted / "one").touch()
    (mounted / "two").touch()
    with fails(errno.EINVAL):
        renameat2(mounted / "one", mounted / "two", flags)
    assert sorted(os.listdir(mounted)) == ["one", "two"]


def test_names_that_are_no_names(mounted: Path) -> None:
    (mounted / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        os.rename(f"{mounted}/folder/.", mounted / "new")
    assert caught.value.errno in {errno.EINVAL, errno.EBUSY}
    with fails(errno.ENOENT):
        (mounted / "missing").rename(mounted / "new")


def test_renaming_a_folder_keeps_what_is_open_below_it(mounted: Path) -> None:
    (mounted / "before").mkdir()
    with (mounted / "before" / "file").open("wb") as file:
        (mounted / "before").rename(mounted / "after")
        file.write(b"data")
    assert (mounted / "after" / "file").read_bytes() == b"data"
