"""Permissions, as other users meet them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from .calls import UTIME_NOW, exists, opened, utimensat
from .other_user import ALICE, BOB, run_as

pytestmark = pytest.mark.root


@pytest.fixture
def file(mounted: Path) -> Path:
    """A file of Alice and of Bob's group."""
    path = mounted / "file"
    path.write_bytes(b"data")
    os.chown(path, ALICE, BOB)
    return path


def _open(path: Path, flags: int) -> None:
    with opened(path, flags):
        pass


@pytest.mark.parametrize(
    ("mode", "user", "groups", "reads", "writes"),
    [
        (0o600, ALICE, [], "ok", "ok"),
        (0o400, ALICE, [], "ok", "EACCES"),
        (0o200, ALICE, [], "EACCES", "ok"),
        (0o066, ALICE, [BOB], "EACCES", "EACCES"),
        (0o640, BOB, [], "ok", "EACCES"),
        (0o606, BOB, [], "EACCES", "EACCES"),
        (0o660, BOB + 1, [BOB], "ok", "ok"),
        (0o660, BOB + 1, [], "EACCES", "EACCES"),
        (0o606, BOB + 1, [], "ok", "ok"),
        (0o604, BOB + 1, [], "ok", "EACCES"),
    ],
)
def test_reading_and_writing(file: Path, mode: int, user: int, groups: list[int], reads: str, writes: str) -> None:
    file.chmod(mode)
    assert run_as(user, lambda: _open(file, os.O_RDONLY), groups=groups) == reads
    assert run_as(user, lambda: _open(file, os.O_WRONLY), groups=groups) == writes


def test_supplementary_groups_beyond_the_first_few(file: Path) -> None:
    file.chmod(0o640)
    assert run_as(BOB + 1, lambda: _open(file, os.O_RDONLY), groups=[*range(60_000, 60_040), BOB]) == "ok"


def test_executing(mounted: Path) -> None:
    program = mounted / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o711)
    assert run_as(ALICE, lambda: os.access(program, os.X_OK) or os.abort()) == "ok"
    program.chmod(0o600)
    assert run_as(ALICE, lambda: os.execv(program, ["program"])) == "EACCES"
    assert os.access(program, os.R_OK | os.W_OK)
    assert not os.access(program, os.X_OK)


def test_searching_and_listing_a_folder(mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    (folder / "file").touch()
    folder.chmod(0o711)
    assert run_as(ALICE, (folder / "file").stat) == "ok"
    assert run_as(ALICE, lambda: os.listdir(folder)) == "EACCES"
    folder.chmod(0o744)
    assert run_as(ALICE, (folder / "file").stat) == "EACCES"
    assert run_as(ALICE, lambda: os.listdir(folder)) == "ok"


def test_changing_a_folder_needs_its_write_permission(mounted: Path) -> None:
    (mounted / "file").touch()
    (mounted / "folder").mkdir()
    for action in (
        (mounted / "new").touch,
        (mounted / "new").mkdir,
        (mounted / "file").unlink,
        (mounted / "folder").rmdir,
        lambda: (mounted / "new").symlink_to("x"),
        lambda: (mounted / "file").rename(mounted / "new"),
        lambda: os.mkfifo(mounted / "new"),
    ):
        assert run_as(ALICE, action) == "EACCES"
    assert sorted(os.listdir(mounted)) == ["file", "folder"]


def test_what_takes_the_owner(file: Path) -> None:
    file.chmod(0o666)
    assert run_as(BOB, lambda: file.chmod(0o777)) == "EPERM"
    assert run_as(BOB, lambda: os.utime(file, ns=(1, 2))) == "EPERM"
    assert run_as(BOB, lambda: os.chown(file, BOB, -1)) == "EPERM"
    assert run_as(ALICE, lambda: file.chmod(0o640)) == "ok"
    assert run_as(ALICE, lambda: os.utime(file, ns=(1, 2))) == "ok"
    assert run_as(ALICE, lambda: os.chown(file, BOB, -1)) == "EPERM"
    assert run_as(ALICE, lambda: os.chown(file, -1, BOB + 1)) == "EPERM"
    assert (file.stat().st_mode & 0o777, file.stat().st_mtime_ns, file.stat().st_uid) == (0o640, 2, ALICE)


def test_setting_times_to_now_takes_write_permission_only(file: Path) -> None:
    file.chmod(0o662)
    assert run_as(BOB + 1, lambda: utimensat(file, (0, UTIME_NOW), (0, UTIME_NOW))) == "ok"
    file.chmod(0o664)
    assert run_as(BOB + 1, lambda: utimensat(file, (0, UTIME_NOW), (0, UTIME_NOW))) == "EACCES"


def test_root_passes_everywhere(file: Path) -> None:
    file.chmod(0)
    assert file.read_bytes() == b"data"
    file.write_bytes(b"root")
    assert file.read_bytes() == b"root"


def test_a_file_may_be_written_through_a_descriptor_that_its_mode_would_not_allow(mounted: Path) -> None:
    mounted.chmod(0o777)

    def create_and_write() -> None:
        with opened(mounted / "file", os.O_CREAT | os.O_RDWR, 0o000) as descriptor:
            os.write(descriptor, b"data")
            assert os.pread(descriptor, 4, 0) == b"data"
            os.ftruncate(descriptor, 2)

    assert run_as(ALICE, create_and_write) == "ok"
    assert (mounted / "file").read_bytes() == b"da"


def test_new_files_have_the_mode_asked_for_less_the_umask(mounted: Path) -> None:
    mounted.chmod(0o777)

    def create() -> None:
        os.umask(0o027)
        _open(mounted / "file", os.O_CREAT | os.O_WRONLY)
        os.mkdir(mounted / "folder", 0o1777)
        os.mkfifo(mounted / "fifo", 0o666)
        os.umask(0)
        os.close(os.open(mounted / "open", os.O_CREAT | os.O_WRONLY, 0o666))

    assert run_as(ALICE, create) == "ok"
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(mounted)}
    assert modes == {"file": 0o640, "folder": 0o1750, "fifo": 0o640, "open": 0o666}
    assert (mounted / "file").stat().st_uid == ALICE


def test_a_user_creates_nothing_where_the_name_is_taken(file: Path) -> None:
    file.chmod(0o600)
    assert run_as(BOB, lambda: _open(file, os.O_CREAT | os.O_WRONLY)) == "EACCES"
    assert run_as(BOB, file.mkdir) == "EEXIST"
    assert exists(file)
