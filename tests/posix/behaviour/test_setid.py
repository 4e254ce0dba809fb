"""Set-user-id and set-group-id bits: who may keep them, and what takes them away."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import opened
from .other_user import ALICE, BOB, run_as

pytestmark = pytest.mark.root


@pytest.fixture
def file(mounted: Path) -> Path:
    path = mounted / "file"
    path.write_bytes(b"data")
    os.chown(path, ALICE, ALICE)
    return path


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"new")


def _open_and_truncate(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


CHANGES: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "truncate": lambda path: os.truncate(path, 1),
    "grow": lambda path: os.truncate(path, 100),
    "O_TRUNC": _open_and_truncate,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("user", [ALICE, BOB], ids=["owner", "other"])
def test_a_user_who_changes_the_content_takes_them_away(file: Path, change: str, user: int) -> None:
    file.chmod(0o6777)
    assert run_as(user, lambda: CHANGES[change](file)) == "ok"
    assert _mode(file) == 0o777


@pytest.mark.parametrize("change", CHANGES)
def test_root_may_change_the_content_and_keep_them(file: Path, change: str) -> None:
    file.chmod(0o6777)
    CHANGES[change](file)
    assert _mode(file) == 0o6777


def test_a_mode_read_before_the_write_is_not_believed(file: Path) -> None:
    """The kernel may cache attributes; the write must throw them away."""
    file.chmod(0o6755)

    def write_and_look() -> None:
        with opened(file, os.O_WRONLY) as descriptor:
            assert os.fstat(descriptor).st_mode & 0o7777 == 0o6755
            os.write(descriptor, b"new")
            assert os.fstat(descriptor).st_mode & 0o7777 == 0o755

    assert run_as(ALICE, write_and_look) == "ok"


def test_set_group_id_without_execution_by_the_group_survives_a_write(file: Path) -> None:
    """It means mandatory locking there, not another group."""
    file.chmod(0o2644)
    assert run_as(ALICE, lambda: _write(file)) == "ok"
    assert _mode(file) == 0o2644


@pytest.mark.parametrize(("mode", "expected"), [(0o6755, 0o755), (0o4755, 0o755), (0o2644, 0o2644), (0o755, 0o755)])
def test_a_new_owner_takes_them_away(file: Path, mode: int, expected: int) -> None:
    file.chmod(mode)
    os.chown(file, BOB, BOB)
    assert _mode(file) == expected


def test_chown_by_a_user_takes_them_away_too(file: Path) -> None:
    file.chmod(0o6755)
    assert run_as(ALICE, lambda: os.chown(file, -1, BOB), groups=[BOB]) == "ok"
    assert (_mode(file), file.stat().st_gid) == (0o755, BOB)


def test_a_folder_keeps_them_when_its_owner_changes(mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    folder.chmod(0o6755)
    os.chown(folder, BOB, BOB)
    assert _mode(folder) == 0o6755


def test_chmod_by_a_user_outside_the_group_takes_set_group_id_away(file: Path) -> None:
    os.chown(file, ALICE, BOB)
    assert run_as(ALICE, lambda: file.chmod(0o2755)) == "ok"
    assert _mode(file) == 0o755
    assert run_as(ALICE, lambda: file.chmod(0o2755), groups=[BOB]) == "ok"
    assert _mode(file) == 0o2755


def test_a_set_group_id_folder_hands_its_group_on(mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    os.chown(folder, ALICE, BOB)
    folder.chmod(0o2775)

    def fill() -> None:
        (folder / "file").touch()
        (folder / "inner").mkdir()
        os.mkfifo(folder / "fifo")
        (folder / "link").symlink_to("file")

    assert run_as(ALICE, fill) == "ok"
    assert {entry.name: entry.stat(follow_symlinks=False).st_gid for entry in os.scandir(folder)} == dict.fromkeys(
        ("file", "inner", "fifo", "link"), BOB
    )
    assert _mode(folder / "inner") & 0o2000
    assert not _mode(folder / "file") & 0o2000


def test_without_the_bit_new_files_have_the_users_group(mounted: Path) -> None:
    folder = mounted / "folder"
    folder.mkdir()
    os.chown(folder, ALICE, BOB)
    assert run_as(ALICE, (folder / "file").touch) == "ok"
    assert ((folder / "file").stat().st_uid, (folder / "file").stat().st_gid) == (ALICE, ALICE)


def test_a_set_user_id_program_runs_as_its_owner(file: Path) -> None:
    program = file.with_name("id")
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(program, ALICE, ALICE)
    program.chmod(0o4755)
    result = subprocess.run([program, "-u"], user=BOB, group=BOB, extra_groups=[], capture_output=True, check=True)
    assert result.stdout == b"%d\n" % ALICE


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["cached", "direct"])
def test_a_set_user_id_program_that_another_user_changed_runs_as_that_user(file: Path, flags: int) -> None:
    """Without a look at its attributes in between: the kernel itself must know that the bit has gone."""
    program = file.with_name("id")
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(program, ALICE, ALICE)
    program.chmod(0o4777)

    def rewrite() -> None:
        with mmap.mmap(-1, 4096) as block, opened(program, os.O_RDWR | flags) as descriptor:
            assert os.preadv(descriptor, [block], 0) == 4096
            assert os.pwritev(descriptor, [block], 0) == 4096

    assert run_as(BOB, rewrite) == "ok"
    result = subprocess.run([program, "-u"], user=BOB, group=BOB, extra_groups=[], capture_output=True, check=True)
    assert result.stdout == b"%d\n" % BOB
