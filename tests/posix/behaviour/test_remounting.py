"""All that was set is there after unmounting and mounting again."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from .calls import fails, opened, utimensat
from .conftest import Volume, folder_in
from .other_user import ALICE, BOB

PAST_NS = 1_000_000_000_123_456_789


@pytest.fixture
def mounted(own_volume: Volume) -> Iterator[Path]:
    with folder_in(own_volume) as folder:
        yield folder


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that stat, readlink and the attributes tell about a tree; times of access excepted."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        found[str(path)] = (
            *(status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev),
            *(status.st_size if kind != stat.S_IFDIR else 0, status.st_mtime_ns, status.st_ctime_ns),
            os.readlink(path) if kind == stat.S_IFLNK else "",
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
            path.read_bytes() if kind == stat.S_IFREG and status.st_size < 1 << 30 else b"",
        )
    return found


def test_a_tree_of_everything(own_volume: Volume, mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    (folder / "small").write_bytes(b"data")
    (folder / "empty").touch()
    (folder / "large").write_bytes(os.urandom(1_000_003))
    with (folder / "sparse").open("wb") as file:
        file.seek(1 << 40)
        file.write(b"end")
    (folder / "second name").hardlink_to(folder / "small")
    (folder / "link").symlink_to("t" * 4095)
    (folder / ("n" * 255)).mkdir()
    (folder / "\udcff\udc80 bytes").touch()
    os.mkfifo(folder / "fifo", 0o620)
    os.setxattr(folder / "small", "user.attribute", b"\0value")
    (folder / "small").chmod(0o6751)
    folder.chmod(0o1771)
    os.utime(folder / "large", ns=(1, PAST_NS))
    os.utime(folder / "link", ns=(1, PAST_NS + 1), follow_symlinks=False)
    os.utime(folder, ns=(1, PAST_NS + 2))
    before = snapshot(folder)
    own_volume.remount()
    assert snapshot(folder) == before
    with (folder / "sparse").open("rb") as file:
        file.seek((1 << 40) - 2)
        assert file.read() == b"\0\0end"


@pytest.mark.root
def test_what_only_root_can_make(own_volume: Volume, mounted: Path) -> None:
    file, node = mounted / "file", mounted / "node"
    file.touch()
    os.chown(file, ALICE, BOB)
    file.chmod(0o4755)
    os.setxattr(file, "trusted.x", b"1")
    os.setxattr(file, "security.x", b"2")
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    before = snapshot(mounted)
    own_volume.remount()
    assert snapshot(mounted) == before


def test_what_was_removed_stays_removed(own_volume: Volume, mounted: Path) -> None:
    (mounted / "file").write_bytes(b"data")
    (mounted / "folder").mkdir()
    os.setxattr(mounted / "folder", "user.x", b"1")
    own_volume.remount()
    (mounted / "file").unlink()
    os.removexattr(mounted / "folder", "user.x")
    own_volume.remount()
    with fails(errno.ENOENT):
        (mounted / "file").stat()
    assert os.listxattr(mounted / "folder") == []


def test_truncation_and_rewriting_persist(own_volume: Volume, mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"a" * 500_000)
    own_volume.remount()
    with file.open("r+b") as stream:
        stream.truncate(200_000)
        stream.seek(150_000)
        stream.write(b"b" * 10)
        stream.truncate(400_000)
    own_volume.remount()
    assert file.read_bytes() == b"a" * 150_000 + b"b" * 10 + b"a" * 49_990 + bytes(200_000)


def test_times_that_cannot_be_stored_cost_nothing(own_volume: Volume, mounted: Path) -> None:
    """ext4 and XFS take the nearest time that they can store; a native filesystem may refuse as well."""
    file, later = mounted / "file", mounted / "later"
    file.write_bytes(b"data")
    for time_s in (1 << 36, 67_767_976_233_532_799, -62_167_219_200, -(1 << 62)):
        try:
            utimensat(file, (time_s, 0), (time_s, 0))
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOVERFLOW}:
                raise
    later.write_bytes(b"more")
    with opened(later, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
    own_volume.remount()
    assert (file.read_bytes(), later.read_bytes()) == (b"data", b"more")
