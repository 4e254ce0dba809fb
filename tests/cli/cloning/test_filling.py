"""A clone is filled: by its daemon or a command, interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cli.conftest import Run, command, digest, make_snapshot, objects, process, write_file
from vaultfs.errors import ExitCode

from .clones import PATIENCE_S, cached_bytes, damaged, filled, got, log_of, mount, segments, umount


@pytest.mark.fuse
def test_filled_by_its_daemon(
    clone: Path, disk: Path, contents: dict[str, bytes], folder: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    said = process("mount", clone, folder, "--passfile", passfile, "-o", "fill,bwlimit=200K")
    assert (said.code, said.err) == (0, "")
    assert (folder / "first").read_bytes() == contents["first"]
    text = run("status", folder, bare=True).out.decode()
    assert " of 4." in text
    umount(folder, run)
    left = segments(clone)
    assert len(left) < len(list(disk.glob("segments/??/*"))), "it ended when the folder was unmounted"

    said = process("mount", clone, folder, "--passfile", passfile, "--fill")
    assert (said.code, said.err) == (0, "")
    state = filled(folder, run)
    assert (state["state"], state["error"]) == ("done", None)
    assert b"done; everything is here" in run("status", folder, bare=True).out
    assert b"done; everything is here" in run("status", clone, bare=True).out
    disk.rename(tmp_path / "away")
    for name, data in contents.items():
        assert (folder / name).read_bytes() == data
    assert "the vault is filled" in log_of(folder, run)
    umount(folder, run)
    assert cached_bytes(clone) == 0
    said = run("fsck", clone, "--quiet")
    assert (said.code, b"only on a remote" in said.out) == (0, False)


@pytest.mark.fuse
def test_a_fill_that_is_killed_is_gone_on_with(
    clone: Path, disk: Path, contents: dict[str, bytes], folder: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    words: list[str | Path] = ["mount", clone, folder, "--passfile", passfile, "--fill", "--bwlimit", "2M"]
    assert process(*words).code == 0
    pid = json.loads(run("status", folder, "--json", bare=True).out)["pid"]
    deadline = time.monotonic() + PATIENCE_S
    while not list(clone.glob("segments/??/.*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert run("umount", folder, bare=True).code in {0, ExitCode.ERROR}
    # Another remote is away for a while, too.
    disk.rename(tmp_path / "away")
    assert process(*words[:-2]).code == 0
    (tmp_path / "away").rename(disk)
    assert filled(folder, run)["state"] == "done"
    for name, data in contents.items():
        assert (folder / name).read_bytes() == data
    umount(folder, run)
    assert not list(clone.glob("segments/??/.*.part"))
    assert damaged(clone) == []


def test_filled_it_needs_no_remote(
    copied: Path, disk: Path, contents: dict[str, bytes], tmp_path: Path, run: Run
) -> None:
    where = tmp_path / "clone"
    said = run("clone", disk.as_uri(), where, "--fill", "--quiet")
    assert (said.code, said.out.decode().splitlines()[-1]) == (0, f"All of {where} is on this machine now.")
    disk.rename(tmp_path / "away")
    shutil.rmtree(where / "cache", ignore_errors=True)
    for name, data in contents.items():
        assert got(where, name, run) == data
    assert not (where / "cache").exists()
    assert run("fsck", where, "--quiet").code == 0


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_filling_is_gone_on_with(
    copied: Path, disk: Path, contents: dict[str, bytes], tmp_path: Path, passfile: Path, run: Run, how: str
) -> None:
    """It is a vault already, and can be used meanwhile; the same command goes on, and asks for no password."""
    where = tmp_path / "clone"
    slowly = ["--bwlimit", "2M", "--connections", "1", "--fill"]
    words = command("clone", disk.as_uri(), where, *slowly, "--passfile", passfile)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as filling:
        deadline = time.monotonic() + PATIENCE_S
        while not segments(where) and time.monotonic() < deadline:
            time.sleep(0.01)
        filling.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
        _, err = filling.communicate(timeout=PATIENCE_S)
    assert filling.returncode == (ExitCode.SIGINT if how == "interrupted" else -signal.SIGKILL)
    assert b"done" not in err
    assert 0 < len(segments(where)) < len(list(disk.glob("segments/??/*")))
    assert got(where, "third", run) == contents["third"]

    said = run("clone", disk.as_uri(), where)
    assert (said.code, "holds a vault already" in said.error_line) == (ExitCode.USAGE, True)
    said = run("clone", disk.as_uri(), where, "--fill", "--snapshot", "1")
    assert (said.code, "leave out --snapshot" in said.error_line) == (ExitCode.USAGE, True)
    said = run("clone", disk.as_uri(), where, "--fill", "--json", bare=True)
    assert said.code == 0
    document = json.loads(said.out)
    assert (document["vault"], document["snapshot"]) == (str(where), None)
    assert 0 < document["received_bytes"] < sum(map(len, objects(disk).values()))
    disk.rename(tmp_path / "away")
    shutil.rmtree(where / "cache", ignore_errors=True)
    for name, data in contents.items():
        assert got(where, name, run) == data


@pytest.mark.fuse
def test_filled_while_it_is_mounted(
    clone: Path, disk: Path, contents: dict[str, bytes], folder: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    mount(clone, folder, passfile)
    assert (folder / "first").read_bytes() == contents["first"]
    assert run("clone", disk.as_uri(), clone, "--fill", "--quiet", bare=True).code == 0
    for name, data in contents.items():
        assert (folder / name).read_bytes() == data
    (folder / "new").write_bytes(b"new")
    umount(folder, run)
    disk.rename(tmp_path / "away")
    assert got(clone, "second", run) == contents["second"]
    assert got(clone, "new", run) == b"new"


def test_what_was_not_sent_is_not_fetched(clone: Path, disk: Path, run: Run) -> None:
    """A segment that is damaged here is fetched anew: nothing of which there is no copy may be touched."""
    write_file(clone, "/new", os.urandom(100_000))
    make_snapshot(clone)
    before = digest(clone, "metadata.db")
    said = run("clone", disk.as_uri(), clone, "--fill", "--quiet", bare=True)
    assert (said.code, "vaultfs sync" in said.error_line) == (ExitCode.USAGE, True)
    assert digest(clone, "metadata.db") == before
    assert run("sync", clone, bare=True).code == 0
    assert run("clone", disk.as_uri(), clone, "--fill", "--quiet", bare=True).code == 0
