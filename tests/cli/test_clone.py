"""``vaultfs clone``, and segments from remotes for what reads: a clone works, is filled, and damage heals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import blake3
import pytest

from vaultfs.errors import ExitCode
from vaultfs.sync.remote_segments import RemoteSegments

from .conftest import Run, command, damage, digest, make_snapshot, objects, process, read_file, write_file

PATIENCE_S = 60


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Files, each large one in a segment of its own."""
    return {
        "small": b"a few bytes",
        "first": os.urandom((2 << 20) + 12345),
        "second": os.urandom((1 << 20) + 200_001),
        "third": os.urandom(1 << 20),
    }


@pytest.fixture
def copied(vault: Path, disk: Path, contents: dict[str, bytes], run: Run) -> Path:
    """A vault whose remote has everything."""
    for name, data in contents.items():
        write_file(vault, f"/{name}", data)
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    assert run("sync", vault, "--snapshot").code == 0
    return vault


@pytest.fixture
def clone(copied: Path, disk: Path, tmp_path: Path, run: Run, own_state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone on a machine that has never seen the vault, and where it is no more."""
    shutil.rmtree(copied)
    monkeypatch.setenv("XDG_STATE_HOME", str(own_state / "other"))
    where = tmp_path / "clone"
    assert run("clone", disk.as_uri(), where).code == 0
    return where


def segments(vault: Path) -> set[str]:
    return {path.stem for path in vault.glob("segments/??/*.seg")}


def cached_bytes(vault: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (vault / "cache").glob("*.part"))


def mount(vault: Path, folder: Path, passfile: Path) -> None:
    said = process("mount", vault, folder, "--passfile", passfile)
    assert (said.code, said.err) == (0, "")


def umount(folder: Path, run: Run) -> None:
    assert run("umount", folder, bare=True).code == 0


def once_it_is_back(file: Path) -> bytes:
    """A remote that has failed is not asked again for a second or two."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return file.read_bytes()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def log_of(folder: Path, run: Run) -> str:
    return Path(json.loads(run("status", folder, "--json", bare=True).out)["log"]).read_text()


def got(vault: Path, name: str, run: Run) -> bytes:
    said = run("cat", vault, f"/{name}")
    assert said.code == 0
    return said.out


def blake3_of(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


def damaged(vault: Path) -> list[Path]:
    """The segments that are not what their names say."""
    return [path for path in vault.glob("segments/??/*.seg") if blake3_of(path) != path.stem]


# --- a clone


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


def test_a_remote_that_lacks_something(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    where = tmp_path / "clone"
    largest = max(disk.glob("segments/??/*"), key=lambda path: path.stat().st_size)
    largest.unlink()
    said = run("clone", disk.as_uri(), where)
    assert said.code == 0
    assert f"{disk.as_uri()} lacks 1 segment, 2.0" in said.err
    assert run("status", where, bare=True).code == ExitCode.PARTIAL
    said = run("fsck", where, "--quiet")
    assert (said.code, largest.name in said.out.decode()) == (ExitCode.INTEGRITY, True)


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


# --- filled by its daemon


def fill_state(folder: Path, run: Run) -> dict[str, object]:
    state: dict[str, object] = json.loads(run("status", folder, "--json", bare=True).out)["fill"]
    return state


def filled(folder: Path, run: Run) -> dict[str, object]:
    """The state once it is done."""
    deadline = time.monotonic() + PATIENCE_S
    while (state := fill_state(folder, run))["state"] != "done" and time.monotonic() < deadline:
        time.sleep(0.05)
    return state


@pytest.mark.fuse
def test_filled_by_its_daemon(
    clone: Path, disk: Path, contents: dict[str, bytes], folder: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    said = process("mount", clone, folder, "--passfile", passfile, "-o", "fill,bwlimit=2M")
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


def test_what_a_fill_cannot_be(copied: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "folder").mkdir()
    for words, said in (
        (["--fill", "--read-only"], "a read-only mount adds nothing"),
        (["--fill", "--snapshot", "1"], "a read-only mount adds nothing"),
        (["--bwlimit", "1M"], "limits --fill, which is missing"),
        (["--fill", "--bwlimit", "0"], "must be more than 0"),
        (["-o", "fill,bwlimit=much"], "no size"),
    ):
        found = run("mount", copied, tmp_path / "folder", *words)
        assert (found.code, said in found.error_line) == (ExitCode.USAGE, True)


def test_nowhere_to_fill_from(vault: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "folder").mkdir()
    found = run("mount", vault, tmp_path / "folder", "--fill")
    assert (found.code, "has no remote" in found.error_line) == (ExitCode.USAGE, True)


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


# --- all of it


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


# --- what is refused


def test_a_wrong_password(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    said = run("clone", disk.as_uri(), tmp_path / "clone", "--passfile", wrong, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD
    assert said.error_line
    assert not (tmp_path / "clone").exists()


def test_nothing_there(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    said = run("clone", (tmp_path / "nothing").as_uri(), tmp_path / "clone")
    assert (said.code, "is its disk plugged in" in said.error_line) == (ExitCode.REMOTE_UNREACHABLE, True)
    (tmp_path / "empty").mkdir()
    said = run("clone", (tmp_path / "empty").as_uri(), tmp_path / "clone")
    assert (said.code, "no snapshot on the remote" in said.error_line) == (ExitCode.USAGE, True)
    said = run("clone", "s3://user:secret-8f1@bucket", tmp_path / "clone")
    assert (said.code, "secret-8f1" in said.err) == (ExitCode.USAGE, False)
    assert not (tmp_path / "clone").exists()


@pytest.mark.parametrize("fill", [[], ["--fill"]])
def test_a_place_that_is_taken(
    copied: Path, template: Path, disk: Path, tmp_path: Path, run: Run, fill: list[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"")
    shutil.copytree(template, tmp_path / "other")
    for place in (full, tmp_path / "other", tmp_path / "file", tmp_path / "no" / "parent"):
        before = digest(place) if place.exists() else None
        said = run("clone", disk.as_uri(), place, "--quiet", *fill)
        assert said.code == ExitCode.USAGE
        assert (digest(place) if place.exists() else None) == before


def test_the_image_is_missing(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """What is left is no vault; the same command goes on."""
    where = tmp_path / "clone"
    (disk / "segments").rename(tmp_path / "segments")
    said = run("clone", disk.as_uri(), where, "--quiet")
    assert said.code == ExitCode.ERROR
    assert not (where / "heads" / "HEAD").exists()
    assert run("ls", where).code != 0
    (tmp_path / "segments").rename(disk / "segments")
    assert run("clone", disk.as_uri(), where, "--quiet").code == 0
    assert got(where, "small", run) == b"a few bytes"


# --- damage in a vault that has a remote


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


# --- the end


def test_whatever_was_opened_is_closed(clone: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[RemoteSegments] = []
    real = RemoteSegments.close

    def close(self: RemoteSegments) -> None:
        closed.append(self)
        real(self)

    monkeypatch.setattr(RemoteSegments, "close", close)
    for count, (words, code) in enumerate(
        [
            (["cat", clone, "/small"], ExitCode.OK),
            (["cat", clone, "/nothing"], ExitCode.ERROR),
            (["fsck", clone, "--quiet"], ExitCode.OK),
            (["rm", clone, "/small"], ExitCode.OK),
        ]
    ):
        assert run(*words).code == code
        assert len(closed) == count + 1


@pytest.mark.fuse
@pytest.mark.parametrize("more", [[], ["--fill"]])
def test_a_daemon_closes_what_it_has_opened(
    clone: Path, disk: Path, folder: Path, passfile: Path, tmp_path: Path, run: Run, more: list[str]
) -> None:
    """Each store once, whoever opened it."""
    words = command("mount", clone, folder, "--foreground", "--passfile", passfile, *more)
    program = f"""
import os, sys
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.cli.main import main
def say(what):
    os.write(1, what.encode() + b"\\n")  # at once, as several threads do
class Recording(DirectoryStore):
    def get(self, key, **where):
        say(f"asked {{id(self)}}")
        yield from super().get(key, **where)
    def close(self):
        say(f"closed {{id(self)}}")
        super().close()
import vaultfs.remotes.urls
vaultfs.remotes.urls.DirectoryStore = Recording
sys.exit(main({words[3:]!r}))
"""
    with (
        (tmp_path / "err").open("wb") as err,
        subprocess.Popen([words[0], "-c", program], stdout=subprocess.PIPE, stderr=err) as daemon,
    ):
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.ismount(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (folder / "small").read_bytes() == b"a few bytes"
        umount(folder, run)
        out, _ = daemon.communicate(timeout=PATIENCE_S)
    assert daemon.returncode == 0
    lines = out.splitlines()
    asked = {line.split()[1] for line in lines if line.startswith(b"asked")}
    assert sorted(line.split()[1] for line in lines if line.startswith(b"closed")) == sorted(asked)
    assert len(asked) in ({1, 2} if more else {1})


# --- what the list of remotes does


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


@pytest.mark.fuse
@pytest.mark.parametrize("has_remote", [False, True])
def test_what_mount_imports(
    vault: Path, disk: Path, folder: Path, passfile: Path, tmp_path: Path, run: Run, *, has_remote: bool
) -> None:
    """Clients of clouds take long to load, and much memory."""
    if has_remote:
        assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    python, *words = command("mount", vault, folder, "--foreground", "--passfile", passfile)
    with (
        (tmp_path / "err").open("wb") as err,
        subprocess.Popen([python, "-X", "importtime", *words], stderr=err) as daemon,
    ):
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.ismount(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        (folder / "file").write_bytes(b"contents")
        assert (folder / "file").read_bytes() == b"contents"
        umount(folder, run)
        assert daemon.wait(PATIENCE_S) == 0
    lines = (tmp_path / "err").read_text().splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "pyfuse3" in imported, "or this would test nothing"
    assert not imported & {"boto3", "botocore", "opendal", "vaultfs.remotes.s3", "vaultfs.remotes.opendal_services"}
    assert ("vaultfs.sync.remote_segments" in imported) == has_remote
