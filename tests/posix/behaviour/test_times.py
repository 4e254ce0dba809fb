"""Timestamps: nanoseconds, UTIME_NOW and UTIME_OMIT, and which call moves which time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import UTIME_NOW, UTIME_OMIT, opened, utimensat, wait_for_tick

PAST_NS = 1_000_000_000_123_456_789


@pytest.mark.parametrize(
    "time_ns",
    [0, 1, 999_999_999, PAST_NS, (2**31 - 1) * 10**9 + 1, 2**31 * 10**9, 2**32 * 10**9 + 999_999_999, -1_500_000_001],
)
def test_times_are_kept_to_the_nanosecond(mounted: Path, time_ns: int) -> None:
    file = mounted / "file"
    file.touch()
    os.utime(file, ns=(time_ns + 7, time_ns))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (time_ns + 7, time_ns)


def test_a_directory_has_times_of_its_own(mounted: Path) -> None:
    os.utime(mounted, ns=(PAST_NS, PAST_NS + 1))
    assert (mounted.stat().st_atime_ns, mounted.stat().st_mtime_ns) == (PAST_NS, PAST_NS + 1)


def test_a_symlink_has_times_of_its_own(mounted: Path) -> None:
    target, link = mounted / "target", mounted / "link"
    target.touch()
    os.utime(target, ns=(1, 2))
    link.symlink_to(target)
    os.utime(link, ns=(PAST_NS, PAST_NS + 1), follow_symlinks=False)
    assert (link.lstat().st_atime_ns, link.lstat().st_mtime_ns) == (PAST_NS, PAST_NS + 1)
    assert (target.stat().st_atime_ns, target.stat().st_mtime_ns) == (1, 2)


def test_omit_leaves_a_time_as_it_is(mounted: Path) -> None:
    file = mounted / "file"
    file.touch()
    os.utime(file, ns=(11, 22))
    utimensat(file, (3, UTIME_OMIT), (5, 6))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (11, 5_000_000_006)
    utimensat(file, (7, 8), (9, UTIME_OMIT))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (7_000_000_008, 5_000_000_006)


def test_omitting_both_changes_nothing(mounted: Path) -> None:
    file = mounted / "file"
    file.touch()
    os.utime(file, ns=(11, 22))
    before = file.stat()
    wait_for_tick(file)
    utimensat(file, (0, UTIME_OMIT), (0, UTIME_OMIT))
    after = file.stat()
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns) == (11, 22, before.st_ctime_ns)


def test_now_is_the_present(mounted: Path) -> None:
    file = mounted / "file"
    file.touch()
    os.utime(file, ns=(11, 22))
    before_ns = wait_for_tick(file)
    utimensat(file, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert file.stat().st_atime_ns > before_ns
    assert file.stat().st_mtime_ns == 22
    utimensat(file, (1, 0), (0, UTIME_NOW))
    assert file.stat().st_atime_ns == 10**9
    assert file.stat().st_mtime_ns > before_ns


def test_setting_times_moves_ctime(mounted: Path) -> None:
    file = mounted / "file"
    file.touch()
    before_ns = wait_for_tick(file)
    os.utime(file, ns=(11, 22))
    assert file.stat().st_ctime_ns > before_ns


def _write(file: Path) -> None:
    with opened(file, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"more")


def _truncate_to_the_same_size(file: Path) -> None:
    """With ftruncate(2), because POSIX lets truncate(2) leave the times alone if the size stays."""
    with opened(file, os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, 4)


@pytest.mark.parametrize(
    "change",
    [_write, lambda file: os.truncate(file, 1), _truncate_to_the_same_size, lambda file: os.truncate(file, 9)],
    ids=["write", "shrink", "truncate to the same size", "grow"],
)
def test_a_change_of_content_moves_mtime_and_ctime(mounted: Path, change: Callable[[Path], None]) -> None:
    file = mounted / "file"
    file.write_bytes(b"data")
    os.utime(file, ns=(PAST_NS, PAST_NS))
    before_ns = wait_for_tick(file)
    change(file)
    after = file.stat()
    assert (after.st_atime_ns, after.st_mtime_ns > before_ns, after.st_ctime_ns > before_ns) == (PAST_NS, True, True)


def test_a_write_after_utime_in_the_same_open_file_moves_mtime(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_WRONLY) as descriptor:
        os.write(descriptor, b"a")
        os.utime(descriptor, ns=(PAST_NS, PAST_NS))
        os.write(descriptor, b"b")
    assert file.stat().st_mtime_ns > PAST_NS


def test_a_time_set_after_a_write_outlives_close(mounted: Path) -> None:
    """As cp -p and tar do it; a writeback cache must not send its own time later."""
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_WRONLY) as descriptor:
        os.write(descriptor, b"a" * 100_000)
        os.utime(descriptor, ns=(PAST_NS, PAST_NS))
        os.fsync(descriptor)
    assert file.stat().st_mtime_ns == PAST_NS
    with opened(file, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
    assert file.stat().st_mtime_ns == PAST_NS


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.chmod(0o600),
        lambda file: os.chown(file, os.getuid(), os.getgid()),
        lambda file: os.link(file, file.with_name("second")),
        lambda file: file.rename(file.with_name("renamed")).rename(file),
        lambda file: os.setxattr(file, "user.x", b""),
    ],
    ids=["chmod", "chown", "link", "rename", "setxattr"],
)
def test_a_change_of_attributes_moves_ctime_alone(mounted: Path, change: Callable[[Path], object]) -> None:
    file = mounted / "file"
    file.write_bytes(b"data")
    os.utime(file, ns=(PAST_NS, PAST_NS))
    before_ns = wait_for_tick(file)
    change(file)
    after = file.stat()
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns > before_ns) == (PAST_NS, PAST_NS, True)


def test_unlinking_one_name_moves_ctime_of_the_file(mounted: Path) -> None:
    file, second = mounted / "file", mounted / "second"
    file.touch()
    second.hardlink_to(file)
    before_ns = wait_for_tick(file)
    second.unlink()
    assert file.stat().st_ctime_ns > before_ns


def _replace(folder: Path) -> None:
    (folder / "there").rename(folder / "other")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "new").touch(),
        lambda folder: (folder / "new").mkdir(),
        lambda folder: (folder / "new").symlink_to("x"),
        lambda folder: os.mkfifo(folder / "new"),
        lambda folder: (folder / "new").hardlink_to(folder / "there"),
        lambda folder: (folder / "there").unlink(),
        lambda folder: (folder / "empty").rmdir(),
        _replace,
    ],
    ids=["create", "mkdir", "symlink", "mkfifo", "link", "unlink", "rmdir", "rename"],
)
def test_a_change_of_entries_moves_times_of_the_folder(mounted: Path, change: Callable[[Path], object]) -> None:
    (mounted / "there").touch()
    (mounted / "empty").mkdir()
    os.utime(mounted, ns=(PAST_NS, PAST_NS))
    before_ns = wait_for_tick(mounted)
    change(mounted)
    after = mounted.stat()
    assert (after.st_mtime_ns > before_ns, after.st_ctime_ns > before_ns) == (True, True)


def test_renaming_moves_times_of_both_folders(mounted: Path) -> None:
    one, two = mounted / "one", mounted / "two"
    one.mkdir()
    two.mkdir()
    (one / "file").touch()
    for folder in (one, two):
        os.utime(folder, ns=(PAST_NS, PAST_NS))
    (one / "file").rename(two / "file")
    assert one.stat().st_mtime_ns > PAST_NS
    assert two.stat().st_mtime_ns > PAST_NS


def test_a_new_file_has_one_time(mounted: Path) -> None:
    before_ns = wait_for_tick(mounted)
    file = mounted / "file"
    file.touch()
    made = file.stat()
    assert made.st_atime_ns == made.st_mtime_ns == made.st_ctime_ns > before_ns
