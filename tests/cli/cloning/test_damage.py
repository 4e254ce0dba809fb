"""Damage here, there or in between: what a remote has heals it, and no wrong byte is given to anybody."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli.conftest import Run, damage, objects, process
from vaultfs.errors import ExitCode

from .clones import damaged, got, log_of, mount, segments, umount


def test_the_cache_may_be_deleted_or_damaged(clone: Path, contents: dict[str, bytes], run: Run) -> None:
    assert got(clone, "first", run) == contents["first"]
    (largest, *_) = sorted((clone / "cache").iterdir(), key=lambda path: -path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    assert got(clone, "first", run) == contents["first"]
    shutil.rmtree(clone / "cache")
    assert got(clone, "first", run) == contents["first"]


def test_no_wrong_byte_from_the_remote(clone: Path, disk: Path, run: Run) -> None:
    for path in disk.glob("segments/??/*"):
        data = bytearray(path.read_bytes())
        for at in range(5000, len(data), 50_000):
            data[at] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
    said = run("cat", clone, "/first")
    assert (said.code, said.out) == (ExitCode.INTEGRITY, b"")


def test_a_second_remote(clone: Path, disk: Path, contents: dict[str, bytes], tmp_path: Path, run: Run) -> None:
    """It gets everything, although hardly anything of it is on this disk."""
    second = tmp_path / "second disk"
    second.mkdir()
    assert run("remote", "add", clone, "second", second.as_uri(), bare=True).code == 0
    disk.rename(tmp_path / "away")
    said = run("sync", clone, "second", bare=True)
    assert (said.code, str(disk) in said.err) == (ExitCode.REMOTE_UNREACHABLE, True)
    (tmp_path / "away").rename(disk)
    said = run("sync", clone, "second", bare=True)
    assert (said.code, said.err.count("lacks")) == (0, 0)
    assert objects(second) == objects(disk)
    assert segments(clone) == set()
    assert not list(clone.glob("**/.*"))
    assert run("status", clone, bare=True).code == 0
    disk.rename(tmp_path / "away")
    for name, data in contents.items():
        assert got(clone, name, run) == data


@pytest.mark.fuse
def test_a_flipped_bit_heals(copied: Path, contents: dict[str, bytes], folder: Path, passfile: Path, run: Run) -> None:
    damage(copied, "/second", 1_000_000)
    (victim,) = damaged(copied)
    mount(copied, folder, passfile)
    assert (folder / "second").read_bytes() == contents["second"]
    assert damaged(copied) == []
    assert victim.stat().st_mode & 0o777 == 0o400
    log = log_of(folder, run)
    assert "is mended" in log
    assert victim.stem in log
    umount(folder, run)
    assert run("scrub", copied, "--quiet").code == 0


def test_cat_heals_too(copied: Path, contents: dict[str, bytes], run: Run) -> None:
    damage(copied, "/third", 0)
    said = run("cat", copied, "/third")
    assert (said.code, said.out) == (0, contents["third"])
    assert "is mended" in said.err
    assert damaged(copied) == []


@pytest.mark.fuse
def test_without_a_remote_it_does_not(
    copied: Path, contents: dict[str, bytes], folder: Path, passfile: Path, run: Run
) -> None:
    assert run("remote", "remove", copied, "disk", bare=True).code == 0
    damage(copied, "/second", 1_000_000)
    mount(copied, folder, passfile)
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        (folder / "second").read_bytes()
    assert (folder / "third").read_bytes() == contents["third"]
    umount(folder, run)
    assert len(damaged(copied)) == 1


@pytest.mark.fuse
def test_a_damaged_list_keeps_nobody_out(copied: Path, folder: Path, passfile: Path, run: Run) -> None:
    (copied / "remotes.json").write_text("{")
    said = run("cat", copied, "/small")
    assert (said.code, said.out) == (0, b"a few bytes")
    assert said.error_line.startswith("vaultfs: warning: the list of remotes ")
    said = process("mount", copied, folder, "--passfile", passfile)
    assert said.code == 0
    assert said.error_line.startswith("vaultfs: warning: the list of remotes ")
    assert (folder / "small").read_bytes() == b"a few bytes"
    umount(folder, run)
