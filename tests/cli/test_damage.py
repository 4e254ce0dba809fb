"""A chunk that does not open: which file, where, exit code 15, and not one wrong byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode

from .conftest import Run, damage, write_file

CHUNK = 128 << 10
DATA = os.urandom(20 * CHUNK)


@pytest.fixture
def damaged(vault: Path) -> Path:
    write_file(vault, "/bad", DATA)
    write_file(vault, "/good", DATA[::-1])
    damage(vault, "/bad", 13 * CHUNK + 5)
    return vault


def test_get_of_the_file(run: Run, damaged: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    said = run("get", damaged, "/bad", tmp_path / "back")
    assert (said.code, said.out) == (ExitCode.INTEGRITY, b"")
    assert said.error_line.startswith(f"vaultfs: /bad: damaged from byte {13 * CHUNK} on")
    assert sorted(os.listdir(tmp_path)) == before


def test_get_keeps_what_it_would_have_replaced(run: Run, damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "back").write_bytes(b"an older copy")
    assert run("get", damaged, "/bad", tmp_path / "back", "--force").code == ExitCode.INTEGRITY
    assert (tmp_path / "back").read_bytes() == b"an older copy"


def test_get_of_the_tree_copies_the_others(run: Run, damaged: Path, tmp_path: Path) -> None:
    said = run("get", damaged, "/", tmp_path / "all", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert said.error_line.startswith(f"vaultfs: /bad: left out: damaged from byte {13 * CHUNK} on")
    assert os.listdir(tmp_path / "all") == ["good"]
    assert (tmp_path / "all" / "good").read_bytes() == DATA[::-1]


def test_cat_ends_before_the_damage(run: Run, damaged: Path) -> None:
    said = run("cat", damaged, "/good", "/bad", "/good")
    assert said.code == ExitCode.INTEGRITY
    assert f"/bad: damaged from byte {13 * CHUNK} on" in said.error_line
    assert said.out == DATA[::-1] + DATA[: 8 * CHUNK]


def test_segment_that_is_gone(run: Run, damaged: Path, tmp_path: Path) -> None:
    for segment in damaged.glob("segments/??/*.seg"):
        segment.unlink()
    said = run("get", damaged, "/good", tmp_path / "back")
    assert said.code == ExitCode.INTEGRITY
    assert said.error_line.startswith("vaultfs: /good: damaged from byte 0 on")
    assert not (tmp_path / "back").exists()


def test_old_copy_of_the_vault(run: Run, vault: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(vault, tmp_path / "old")
    (tmp_path / "file").write_bytes(b"x")
    assert run("put", vault, tmp_path / "file", "/").code == 0
    assert run("rm", vault, "/file").code == 0
    shutil.rmtree(vault)
    shutil.copytree(tmp_path / "old", vault)
    said = run("ls", vault)
    assert said.code == ExitCode.INTEGRITY
    assert "old" in said.error_line
