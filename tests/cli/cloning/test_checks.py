"""Checking, mending and rotating a vault of which much was not fetched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cli.conftest import Run, damage, write_file
from vaultfs.errors import ExitCode

from .clones import cached_bytes, got, mount, umount


@pytest.mark.parametrize("verb", ["scrub", "fsck"])
def test_what_was_not_fetched_is_told(clone: Path, disk: Path, tmp_path: Path, run: Run, verb: str) -> None:
    disk.rename(tmp_path / "away")  # nobody is asked
    count = len(list((tmp_path / "away").glob("segments/??/*")))
    said = run(verb, clone, "--quiet")
    assert (said.code, f"{count} segments, " in said.out.decode()) == (0, True)
    assert "only on a remote: not looked at" in said.out.decode()
    document = json.loads(run(verb, clone, "--quiet", "--json").out)
    assert (document["elsewhere_segments"], document["exit_code"]) == (count, 0)
    write_file(clone, "/new", os.urandom(300_000))
    damage(clone, "/new", 0)
    assert run(verb, clone, "--quiet").code == ExitCode.INTEGRITY


def test_a_clone_is_repaired(clone: Path, disk: Path, contents: dict[str, bytes], tmp_path: Path, run: Run) -> None:
    """And nothing of what is elsewhere is given up, whether or not it can be reached."""
    disk.rename(tmp_path / "away")
    said = run("fsck", clone, "--repair", "--quiet")
    assert (said.code, b"only on a remote" in said.out) == (0, True)
    (tmp_path / "away").rename(disk)
    for name, data in contents.items():
        assert got(clone, name, run) == data
    # Without a ledger nobody knows what the remote has.
    for ledger in Path(os.environ["XDG_STATE_HOME"]).rglob("ledger"):
        ledger.unlink()
    assert run("fsck", clone, "--repair", "--quiet").code == 0, "what its snapshot names may be there"
    for manifest in (clone / "heads").glob("*.manifest"):
        manifest.rename(tmp_path / manifest.name)
    said = run("fsck", clone, "--repair", "--quiet")
    assert (said.code, "sync --check" in said.error_line) == (ExitCode.USAGE, True)


@pytest.mark.fuse
def test_a_mounted_clone_is_scrubbed(
    clone: Path, disk: Path, contents: dict[str, bytes], folder: Path, passfile: Path, run: Run
) -> None:
    mount(clone, folder, passfile)
    (folder / "new").write_bytes(os.urandom(300_000))
    os.sync()
    before = cached_bytes(clone)
    document = json.loads(run("scrub", folder, "--json", "--quiet", bare=True).out)
    assert (document["exit_code"], document["damaged"]) == (0, [])
    assert document["elsewhere_segments"] == len(list(disk.glob("segments/??/*")))
    assert document["elsewhere_bytes"] > sum(map(len, contents.values()))
    assert cached_bytes(clone) == before
    # What no remote has is missed: the vault's list knows of none that might have it.
    lost = max(disk.glob("segments/??/*"), key=lambda path: path.stat().st_size)
    lost.unlink()
    assert run("sync", folder, "--check", bare=True).code != 0
    said = run("scrub", folder, "--quiet", bare=True)
    assert (said.code, f"the segment {lost.name} is missing" in said.out.decode()) == (ExitCode.INTEGRITY, True)
    umount(folder, run)


def test_new_keys_for_a_clone(
    clone: Path, disk: Path, contents: dict[str, bytes], tmp_path: Path, passfile: Path, run: Run
) -> None:
    """All of it is fetched, and sealed anew."""
    secret = ["--passfile", passfile]
    assert run("snapshot", "delete", clone, "1", *secret, bare=True).code == 0
    disk.rename(tmp_path / "away")
    rotate = ["key", "rotate", clone, "--wait", "--progress", "none", "--yes", *secret]
    said = run(*rotate, bare=True)
    assert said.code == 0
    assert "written again when it can be had" in said.err
    assert "segments are sealed with older keys" in said.out.decode()
    (tmp_path / "away").rename(disk)
    said = run(*rotate, bare=True)
    assert (said.code, "the older keys are gone" in said.out.decode()) == (0, True)
    disk.rename(tmp_path / "away")
    for name, data in contents.items():
        assert got(clone, name, run) == data
