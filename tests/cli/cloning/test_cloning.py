"""``vaultfs clone``: what it fetches, and that a clone is used like any vault while the rest lies on the remote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli.conftest import Run, make_snapshot, objects, process, read_file, write_file
from vaultfs.errors import ExitCode

from .clones import cached_bytes, got, log_of, mount, once_it_is_back, segments, umount


def test_only_the_metadata_is_fetched(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    said = run("clone", disk.as_uri(), tmp_path / "clone")
    assert said.code == 0
    assert "its old directory is refused as an older copy" in said.error_line
    assert said.out.decode().startswith("Cloned snapshot 1 (")
    assert said.out.decode().endswith(f"Mount it with: vaultfs mount {tmp_path / 'clone'} DIR\n")
    assert segments(tmp_path / "clone") == set()
    assert (tmp_path / "clone").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "clone" / ".restoring").exists()
    listed = run("ls", tmp_path / "clone")
    assert (listed.code, listed.out.split()) == (0, [b"first", b"second", b"small", b"third"])
    assert cached_bytes(tmp_path / "clone") < 1 << 20


def test_json(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    before = objects(disk)
    everything = sum(map(len, before.values()))
    said = run("clone", disk.as_uri(), tmp_path / "clone", "--json")
    document = json.loads(said.out)
    assert document["vault"] == str(tmp_path / "clone")
    assert (document["snapshot"]["seq"], document["snapshot"]["files"]) == (1, 5)
    assert 0 < document["received_bytes"] < everything // 10
    listed = json.loads(run("remote", "list", tmp_path / "clone", "--json", bare=True).out)
    assert [(remote["name"], remote["url"]) for remote in listed["remotes"]] == [("origin", disk.as_uri())]
    said = run("clone", disk.as_uri(), tmp_path / "filled", "--fill", "--json")
    assert everything <= json.loads(said.out)["received_bytes"] < everything * 11 // 10
    last = json.loads(said.err.splitlines()[-1])
    assert (last["title"], last["finished"], last["resumable"]) == (f"fill {tmp_path / 'filled'}", True, True)
    assert objects(disk) == before


@pytest.mark.fuse
def test_used_with_and_without_the_remote(
    clone: Path, disk: Path, contents: dict[str, bytes], folder: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    mount(clone, folder, passfile)
    for name in ("small", "first"):
        assert (folder / name).read_bytes() == contents[name]
    umount(folder, run)  # nor is it in the kernel's cache then
    assert len(contents["first"]) <= cached_bytes(clone) < len(contents["first"]) + (2 << 20)

    disk.rename(tmp_path / "away")
    mount(clone, folder, passfile)
    assert (folder / "first").read_bytes() == contents["first"]
    assert (folder / "small").read_bytes() == contents["small"]
    for _ in range(20):  # and it is told at once that the remote is still away
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            (folder / "second").read_bytes()
    assert f"there is no directory {disk}" in log_of(folder, run)
    (folder / "new").write_bytes(b"written while the remote was away")
    with (folder / "first").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    (tmp_path / "away").rename(disk)
    assert once_it_is_back(folder / "second") == contents["second"]

    said = run("sync", folder, bare=True)
    assert (said.code, said.out.startswith(b"origin: sent "), said.out.endswith(b"; up to date\n")) == (0, True, True)
    umount(folder, run)
    shutil.rmtree(clone)
    back = tmp_path / "back"
    assert run("restore", disk.as_uri(), back, "--quiet").code == 0
    contents["first"] = contents["first"][:1_000_000] + b"changed" + contents["first"][1_000_007:]
    contents["new"] = b"written while the remote was away"
    assert {name: read_file(back, f"/{name}") for name in contents} == contents
    assert run("fsck", back, "--quiet").code == 0


def test_cat_and_get(clone: Path, disk: Path, contents: dict[str, bytes], tmp_path: Path, run: Run) -> None:
    assert got(clone, "third", run) == contents["third"]
    disk.rename(tmp_path / "away")
    assert got(clone, "third", run) == contents["third"]
    said = run("get", clone, "/second", tmp_path / "second", "--quiet")
    assert (said.code != 0, str(disk) in said.err) == (True, True)
    assert not (tmp_path / "second").exists()
    (tmp_path / "away").rename(disk)
    assert run("get", clone, "/second", tmp_path / "second", "--quiet").code == 0
    assert (tmp_path / "second").read_bytes() == contents["second"]


def test_there_is_nothing_to_sync(clone: Path, disk: Path, run: Run) -> None:
    """Segments that were not fetched are not missed."""
    before = objects(disk)
    said = run("sync", clone, bare=True)
    assert (said.code, said.out) == (0, b"origin: up to date\n")
    assert objects(disk) == before
    assert run("verify", clone, "origin", "--read-data", bare=True).code == 0
    assert run("status", clone, "--json", bare=True).code == 0, "it is safe to close"


def test_what_is_known_from_the_start(copied: Path, disk: Path, tmp_path: Path, run: Run, own_state: Path) -> None:
    """That origin has everything is looked up by the clone, which writes nothing there."""
    where = tmp_path / "clone"
    before = objects(disk)
    shutil.rmtree(own_state)
    assert run("clone", disk.as_uri(), where).code == 0
    said = run("status", where, bare=True)
    assert (said.code, b"has all snapshots" in said.out, b"yes" in said.out) == (0, True, True)
    (origin,) = json.loads(run("remote", "list", where, "--json", bare=True).out)["remotes"]
    assert origin["features"] == {"conditional_create": False, "range_reads": True, "lists_at_once": False}
    assert objects(disk) == before
    assert run("remote", "test", where, "origin", bare=True).code == 0
    (origin,) = json.loads(run("remote", "list", where, "--json", bare=True).out)["remotes"]
    assert all(origin["features"].values())


def test_an_older_snapshot_mounted(
    clone: Path, contents: dict[str, bytes], folder: Path, passfile: Path, run: Run
) -> None:
    """Its metadata is fetched, and what is read of it."""
    write_file(clone, "/small", b"changed")
    make_snapshot(clone)
    shutil.rmtree(clone / "cache")
    said = process("mount", clone, folder, "--passfile", passfile, "--snapshot", "1")
    assert (said.code, said.err) == (0, "")
    for name, data in contents.items():
        assert (folder / name).read_bytes() == data
    umount(folder, run)


def test_an_older_snapshot(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    write_file(copied, "/small", b"changed")
    make_snapshot(copied, "second")
    assert run("sync", copied, bare=True).code == 0
    said = run("clone", disk.as_uri(), tmp_path / "one", "--snapshot", "1")
    assert (said.code, "so a sync to it is refused until you choose" in said.err) == (0, True)
    assert run("sync", tmp_path / "one", bare=True).code == ExitCode.ERROR
    assert got(tmp_path / "one", "small", run) == b"a few bytes"
    said = run("clone", disk.as_uri(), tmp_path / "three", "--snapshot", "3")
    assert (said.code, "no snapshot '3'" in said.error_line) == (ExitCode.USAGE, True)
    assert not (tmp_path / "three").exists()
