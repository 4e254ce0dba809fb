"""A vault, mounted, against a plain directory of the system: see machine.py."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from backup_faults.real_processes import Forker
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from .folders import Folder, MountedVault, PlainFolder
from .machine import Machine, Moment, check_survivors, is_woven_of
from .observing import Tree, look_at_all


def run_machine(
    subject: Folder, reference: Folder, *, examples: int, steps: int, is_random: bool = False, is_shrunk: bool = True
) -> None:
    run_state_machine_as_test(
        partial(Machine, subject, reference),  # type: ignore[arg-type]  # any callable does
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=not is_random,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if is_shrunk else [Phase.generate],
            report_multiple_bugs=False,
        ),
    )


@pytest.fixture
def mounted(scratch: Path, forker: Forker) -> Iterator[MountedVault]:
    vault = MountedVault(scratch, forker)
    yield vault
    vault.close()


@pytest.fixture
def reference(scratch: Path) -> PlainFolder:
    return PlainFolder(scratch / "reference")


def test_machine_accepts_an_equal_folder(scratch: Path, reference: PlainFolder) -> None:
    run_machine(PlainFolder(scratch / "subject"), reference, examples=60, steps=40)


@pytest.mark.fuse
@pytest.mark.timeout(7200)
def test_mounted_vault_behaves_like_a_directory(mounted: MountedVault, reference: PlainFolder, long_run: bool) -> None:
    run_machine(
        mounted, reference, examples=1000 if long_run else 20, steps=100 if long_run else 40, is_random=long_run
    )
    mounted.restart()


class ForgetfulFolder(PlainFolder):
    """A folder that shortens a file when it crashes."""

    def crash(self) -> None:
        for path in sorted(self.path.rglob("*")):
            if stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_size:
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size - 1)


def test_machine_finds_what_a_crash_takes(scratch: Path, reference: PlainFolder) -> None:
    subject = ForgetfulFolder(scratch / "subject")
    with pytest.raises(AssertionError):
        run_machine(subject, reference, examples=200, steps=30, is_shrunk=False)


class SloppyFolder(PlainFolder):
    """A folder that loses permissions at a restart."""

    def restart(self) -> None:
        for path in self.path.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode):
                path.chmod(0o600)


def test_machine_finds_what_a_restart_changes(scratch: Path, reference: PlainFolder) -> None:
    subject = SloppyFolder(scratch / "subject")
    with pytest.raises(AssertionError):
        run_machine(subject, reference, examples=200, steps=30, is_shrunk=False)


def test_bytes_after_a_crash() -> None:
    assert is_woven_of(b"abc", [b"abc"])
    assert not is_woven_of(b"abd", [b"abc"])
    assert is_woven_of(b"abXY", [b"abcd", b"abXY"])
    assert is_woven_of(b"aXcY", [b"abcd", b"XXYY", b"aXZY", b"ZZcZ"])
    assert is_woven_of(b"ab\0\0", [b"ab", b"abcd"])
    assert not is_woven_of(b"abcde", [b"ab", b"abcd"])
    assert not is_woven_of(b"a?", [b"ab", b"abcd"])


def test_names_after_a_crash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first = Moment.of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "c").mkdir()
    last = Moment.of(tmp_path)
    versions = {inode: [b"1"] for inode in last.inodes.values()}
    for moment in (first, last):
        assert not check_survivors([first, last], versions, moment.tree)
    mixed: Tree = {**first.tree, **last.tree}
    assert "no moment" in check_survivors([first, last], versions, mixed)[0]
    (tmp_path / "b").write_bytes(b"2")
    assert "never had" in check_survivors([first, last], versions, look_at_all(tmp_path))[0]
