"""``vaultfs restore URL DEST PATH...``: chosen files as plaintext, little fetched, nothing replaced, and no trace."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from remotes.conftest import BUCKET, s3_endpoint
from remotes.memory_store import MemoryStore

from vaultfs.cli.one_remote import OneRemote
from vaultfs.cli.scratch import scratch_directory
from vaultfs.cli.targets import Stores
from vaultfs.errors import ExitCode, RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.remotes.counting import CountingStore
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.workers import StoppedError
from vaultfs.vault import transfer_out
from vaultfs.vault.fetch_ahead import FetchAhead

from .conftest import (
    Run,
    as_ordinary_user,
    command,
    digest,
    give_to_ordinary_user,
    make_snapshot,
    objects,
    opened,
    read_file,
    write_file,
)
from .test_put_get import described, tree

__all__ = ["s3_endpoint"]

PATIENCE_S = 60
MIB = 1 << 20
CANARY = b"canary-71c4-plaintext"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache directory of one test, in which nothing is left at its end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache home"))
    where = tmp_path / "cache home" / "vaultfs"
    yield where
    assert left(where) == []


def left(cache: Path) -> list[Path]:
    return list(cache.iterdir()) if cache.exists() else []


@pytest.fixture
def copied(backed_up: Path, run: Run) -> Path:
    """A vault whose remote has everything: many files in one large segment, and some others."""
    with opened(backed_up) as found:
        found.makedirs("/many/below")
        for number in range(12):
            with found.open(f"/many/{number:02}", "wb") as file:
                file.write(os.urandom(MIB))
        with found.open("/many/below/note", "wb") as file:
            file.write(CANARY)
        found.symlink("many", "/way")
    assert run("sync", backed_up, "--snapshot").code == 0
    return backed_up


@pytest.fixture
def out(tmp_path: Path) -> Path:
    where = tmp_path / "out"
    where.mkdir()
    return where


def segment_of(vault: Path, disk: Path, path: str) -> Path:
    """The segment on the remote that has a file's first chunk."""
    with opened(vault) as found:
        fs = found.filesystem
        (place,) = fs.chunk_rows.places(found.stat(path).st_ino, 0, 0)  # type: ignore[arg-type]
        row = fs.chunk_rows.segment(place.segment)
        assert row is not None
        assert row.name is not None
    (found_path,) = disk.glob(f"segments/??/{row.name}")
    found_path.chmod(0o600)
    return found_path


# --- what comes back


def test_one_file_of_many(
    copied: Path, disk: Path, out: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 15 MiB no more than the metadata and the surroundings of the file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # nothing lies there, encrypted or not
    assert sum(map(len, objects(disk).values())) > 15 * MIB
    said = run("restore", disk.as_uri(), out, "many/below/note", "/small", "--json")
    assert said.code == 0
    assert (out / "note").read_bytes() == CANARY
    assert (out / "small").read_bytes() == b"a few bytes"
    assert sorted(os.listdir(out)) == ["note", "small"]
    document = json.loads(said.out)
    assert document["received_bytes"] < 6 * MIB
    assert (document["directory"], document["files"], document["problems"]) == (str(out), 2, 0)
    assert document["bytes"] == len(CANARY) + len(b"a few bytes")
    assert document["snapshot"]["seq"] == 1
    last = json.loads(said.err.splitlines()[-1])
    assert (last["finished"], last["done_bytes"], last["total_bytes"]) == (True, document["bytes"], document["bytes"])


def test_a_file_in_the_middle(copied: Path, disk: Path, out: Path, run: Run) -> None:
    said = run("restore", disk.as_uri(), out, "/way/08", "--json")
    assert said.code == 0
    assert (out / "08").read_bytes() == read_file(copied, "/many/08")
    assert json.loads(said.out)["received_bytes"] < 6 * MIB
    assert (out / "08").stat().st_mode == (0o100644)


def test_a_tree_with_some_of_everything(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """Attributes, hard links, holes, symlinks, odd names: as ``get`` does it.  DEST is made, for its owner alone."""
    source = tree(tmp_path)
    before = described(source)
    assert run("put", backed_up, source, "/copy").code == 0
    assert run("sync", backed_up, "--snapshot").code == 0
    said = run("restore", disk.as_uri(), tmp_path / "new", "copy", "random", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(b"Restored 2 of 2 paths of snapshot 1 (")
    assert described(tmp_path / "new" / "copy") == before
    assert (tmp_path / "new" / "copy" / "sparse").stat().st_blocks * 512 <= 2 * (128 << 10)
    assert (tmp_path / "new").stat().st_mode == 0o40700
    said = run("restore", disk.as_uri(), tmp_path / "again", "copy", "small", "--json")
    state, document = json.loads(said.err.splitlines()[-1]), json.loads(said.out)
    assert state["done_bytes"] == state["total_bytes"] == document["bytes"]
    assert state["files"] == document["files"] == len(before) + 1
    odd = os.fsdecode(b"odd \xff\n name")
    assert run("restore", disk.as_uri(), tmp_path / "new", f"/copy/{odd}", "/copy/dangling").code == 0
    assert (tmp_path / "new" / odd).read_bytes() == b"x"
    assert os.readlink(tmp_path / "new" / "dangling") == "/nowhere/at all"


def test_everything_as_plaintext(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    for path in ("/", "//"):
        assert run("restore", disk.as_uri(), tmp_path / "all", path, "--quiet").code == (0 if path == "/" else 2)
    assert sorted(os.listdir(tmp_path / "all")) == ["many", "random", "small", "way"]
    assert (tmp_path / "all" / "random").read_bytes() == read_file(copied, "/random")
    assert (tmp_path / "all" / "many" / "below" / "note").read_bytes() == CANARY


def test_an_older_snapshot_and_this_machine(backed_up: Path, disk: Path, out: Path, own_state: Path, run: Run) -> None:
    """What this machine knows of the vault stays as it is, and so does the vault."""
    make_snapshot(backed_up, "first")
    write_file(backed_up, "/small", b"changed")
    make_snapshot(backed_up, "second")
    assert run("sync", backed_up, bare=True).code == 0
    state = {path: path.read_bytes() for path in own_state.rglob("*") if path.is_file()}
    assert state, "there is a witness"
    before = digest(backed_up)
    said = run("restore", disk.as_uri(), out, "small", "--snapshot", "1", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert (out / "small").read_bytes() == b"a few bytes"
    assert {path: path.read_bytes() for path in own_state.rglob("*") if path.is_file()} == state
    assert digest(backed_up) == before
    assert read_file(backed_up, "/small") == b"changed"
    said = run("restore", disk.as_uri(), out, "random", "--snapshot", "3")
    assert (said.code, "no snapshot '3'" in said.error_line) == (ExitCode.USAGE, True)


def test_on_a_machine_that_knows_nothing(
    copied: Path, disk: Path, tmp_path: Path, out: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another state"))
    assert run("restore", disk.as_uri(), out, "small", "--quiet").code == 0
    assert not (tmp_path / "another state").exists()


def test_through_s3(
    copied: Path, out: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    url = f"s3://{BUCKET}/{tmp_path.name}"
    options = ["--option", f"endpoint={s3_endpoint}", "--option", "region=us-east-1", "--option", "path_style=true"]
    assert run("remote", "add", copied, "cloud", url, *options, bare=True).code == 0
    assert run("sync", copied, "cloud", bare=True).code == 0
    said = run("restore", url, out, *options, "/many/below", "/many/07", "--json")
    assert said.code == 0
    assert json.loads(said.out)["received_bytes"] < 10 * MIB
    assert (out / "below" / "note").read_bytes() == CANARY
    assert (out / "07").read_bytes() == read_file(copied, "/many/07")


@pytest.mark.parametrize(("options", "expected"), [([], 4), (["--connections", "7"], 7)])
def test_connections(
    copied: Path, disk: Path, out: Path, run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: int
) -> None:
    """What is needed is asked for by so many threads, and the one that copies finds it there."""
    asking: set[str] = set()
    started: list[str] = []
    real_get, real_start = CountingStore.get, threading.Thread.start

    def get(self: CountingStore, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        asking.add(threading.current_thread().name)
        return real_get(self, key, offset=offset, length=length)

    def start(self: threading.Thread) -> None:
        started.append(self.name)
        real_start(self)

    monkeypatch.setattr(CountingStore, "get", get)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert run("restore", disk.as_uri(), out, "many", "--quiet", *options).code == 0
    ahead = {f"vaultfs-ahead-{number}" for number in range(expected)}
    assert {name for name in started if name.startswith("vaultfs-ahead")} == ahead
    assert asking & ahead
    assert not [thread for thread in threading.enumerate() if thread.name in ahead]


def test_how_far_it_is_and_how_it_ends(
    copied: Path, disk: Path, out: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who fetches ahead is told while a tree is copied; after Ctrl-C nobody waits for what is under way."""
    reached: list[int] = []
    ended: list[str] = []
    real = FetchAhead.reached

    def tell(self: FetchAhead, position: int) -> None:
        real(self, position)
        reached.append(position)
        if 6 * MIB < position < 12 * MIB:
            raise KeyboardInterrupt

    monkeypatch.setattr(FetchAhead, "reached", tell)
    monkeypatch.setattr(Stores, "hurry", lambda self: ended.append("stores"))
    monkeypatch.setattr(OneRemote, "close", lambda self: ended.append("source"))
    said = run("restore", disk.as_uri(), out, "small", "many", "--quiet")
    assert (said.code, said.error_line) == (ExitCode.SIGINT, "vaultfs: interrupted")
    assert reached == sorted(reached)
    assert len({position for position in reached if position > len(b"a few bytes")}) > 5
    assert ended == ["source", "stores"]
    assert os.listdir(out) == ["small"]


def test_a_source_that_was_closed() -> None:
    store = MemoryStore()
    name = SegmentName("ab" * 32)
    store.objects[segment_key(name)] = b"0123456789"
    source = OneRemote(store)
    assert source.fetch(name, 2, 3) == b"234"
    source.close()
    with pytest.raises(StoppedError):
        source.fetch(name, 2, 3)


# --- what is not there, or in the way


def test_what_is_not_there(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    said = run("restore", disk.as_uri(), tmp_path / "new", "nothing", "many/below/note/x", "--quiet")
    assert said.code == ExitCode.ERROR
    assert said.out == b""
    assert said.err.splitlines() == [
        "vaultfs: /nothing: No such file or directory in the snapshot",
        "vaultfs: /many/below/note/x: Not a directory in the snapshot",
    ]
    assert not (tmp_path / "new").exists()
    said = run("restore", disk.as_uri(), tmp_path / "new", "nothing", "small", "--quiet")
    assert (said.code, said.error_line) == (3, "vaultfs: /nothing: No such file or directory in the snapshot")
    assert said.out.startswith(b"Restored 1 of 2 paths")
    assert os.listdir(tmp_path / "new") == ["small"]


def test_nothing_is_replaced_unasked(copied: Path, disk: Path, out: Path, run: Run) -> None:
    (out / "small").write_bytes(b"mine")
    (out / "many").mkdir()
    before = digest(out)
    said = run("restore", disk.as_uri(), out, "small", "many", "--quiet")
    assert said.code == ExitCode.USAGE
    assert len(said.err.splitlines()) == 2
    assert digest(out) == before
    said = run("restore", disk.as_uri(), out, "small", "random", "--quiet")
    assert (said.code, said.error_line) == (3, f"vaultfs: /small: {out}/small exists; --force replaces it")
    assert (out / "small").read_bytes() == b"mine"
    assert (out / "random").read_bytes() == read_file(copied, "/random")
    said = run("restore", disk.as_uri(), out, "small", "many", "--force", "--quiet")
    assert (said.code, "many exists; choose another name" in said.error_line) == (3, True)
    assert (out / "small").read_bytes() == b"a few bytes"
    assert os.listdir(out / "many") == []


def test_symlinks_in_the_way(copied: Path, disk: Path, out: Path, tmp_path: Path, run: Run) -> None:
    """They lead nowhere: nothing is written through one."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (out / "small").symlink_to(outside / "precious")
    (out / "random").symlink_to(outside / "new")
    (out / "many").symlink_to(outside)
    before = digest(outside)
    said = run("restore", disk.as_uri(), out, "small", "random", "many", "--quiet")
    assert said.code == ExitCode.USAGE
    assert digest(outside) == before
    said = run("restore", disk.as_uri(), out, "small", "random", "many", "--quiet", "--force")
    assert (said.code, "many exists" in said.error_line) == (3, True)
    assert digest(outside) == before
    assert (out / "many").is_symlink()
    for name in ("small", "random"):
        assert not (out / name).is_symlink()
        assert (out / name).read_bytes() == read_file(copied, f"/{name}")


@pytest.mark.parametrize(
    ("dest", "words", "reason"),
    [
        ("out", ["--force"], "--force goes with a PATH"),
        ("out", [""], "PATH: empty"),
        ("out", ["/many/.."], "names no file or directory"),
        ("out", ["small", "many/small"], "into different directories"),
        ("out", ["small", "/small/"], "into different directories"),
        ("out", ["/", "small"], "no other path goes with it"),
        ("out", ["/"], "the whole tree needs a name of its own"),
        ("no/parent", ["small"], "does not exist"),
        ("no/parent", ["/"], "does not exist"),
        ("password", ["small"], "is not a directory"),
        ("vault", ["small"], "in a vault's directory"),
        ("vault/segments/new", ["small"], "in a vault's directory"),
        ("vault/segments/new", ["/"], "in a vault's directory"),
        ("hidden/segments/new", ["small"], "in a vault's directory"),
        ("inside/new", ["small"], "in a vault's directory"),
    ],
)
def test_words_that_make_no_sense(
    vault: Path, disk: Path, out: Path, tmp_path: Path, run: Run, dest: str, words: list[str], reason: str
) -> None:
    """Told before the remote is asked for anything: it has nothing."""
    (tmp_path / "hidden").symlink_to(vault)
    (tmp_path / "inside").symlink_to(vault / "segments")
    before = digest(tmp_path)
    said = run("restore", disk.as_uri(), tmp_path / dest, *words)
    assert (said.code, reason in said.error_line) == (ExitCode.USAGE, True)
    assert digest(tmp_path) == before


def test_a_wrong_password(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    said = run("restore", disk.as_uri(), tmp_path / "new", "small", "--passfile", wrong, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD
    assert said.error_line
    assert not (tmp_path / "new").exists()


# --- disks and remotes that fail


def test_the_disk_is_full(copied: Path, disk: Path, out: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete stays, what is not goes, and the rest is not fetched in vain."""
    real = os.pwrite
    written = 0

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        nonlocal written
        written += len(data)
        if written > MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", _only_in(transfer_out.__name__, pwrite, real))
        said = run("restore", disk.as_uri(), out, "small", "random", "many", "many/03", "--quiet")
    assert said.code == 3
    assert said.err.splitlines() == [
        f"vaultfs: /random: {out}: No space left on device",
        "vaultfs: /many: not tried, because the disk is full",
        "vaultfs: /many/03: not tried, because the disk is full",
    ]
    assert os.listdir(out) == ["small"]
    assert run("restore", disk.as_uri(), out, "random", "--quiet").code == 0, "the rest, when there is room"


def _only_in(module: str, function: object, real: object) -> object:
    """``function`` for callers in a module, ``real`` for all others: the cache writes with the same call."""
    import sys

    def call(*arguments: object) -> object:
        caller = sys._getframe(1).f_globals["__name__"]
        return (function if caller == module else real)(*arguments)  # type: ignore[operator]

    return call


@pytest.mark.root
def test_a_place_where_one_may_not_write(vault: Path, disk: Path, reachable: Path, run: Run) -> None:
    if os.geteuid():
        pytest.skip("needs root, to be an ordinary user")
    write_file(vault, "/small", b"a few bytes")
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    assert run("sync", vault, "--snapshot").code == 0
    shutil.move(disk, reachable / "disk")
    (reachable / "password").write_text("correct horse battery staple\n")
    give_to_ordinary_user(reachable)
    (reachable / "out").mkdir(mode=0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(reachable / "cache"))
        words = ["restore", (reachable / "disk").as_uri(), str(reachable / "out"), "small", "--quiet"]
        words += ["--passfile", str(reachable / "password")]
        assert as_ordinary_user(*words) == ExitCode.ERROR
        assert os.listdir(reachable / "out") == []
        os.chown(reachable / "out", 65534, 65534)
        assert as_ordinary_user(*words) == 0
    assert (reachable / "out" / "small").read_bytes() == b"a few bytes"
    assert left(reachable / "cache" / "vaultfs") == []


@pytest.mark.parametrize("how", ["changed", "gone", "cut"])
def test_damage_on_the_remote(copied: Path, disk: Path, out: Path, run: Run, how: str) -> None:
    """The file is named and left out, the others come."""
    victim = segment_of(copied, disk, "/random")
    data = victim.read_bytes()
    if how == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[: len(data) // 2] + (b"" if how == "cut" else bytes(len(data) - len(data) // 2)))
    said = run("restore", disk.as_uri(), out, "random", "many/03", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert "/random: damaged from byte " in said.err.splitlines()[-1]
    assert os.listdir(out) == ["03"]
    said = run("restore", disk.as_uri(), out.parent / "all", "/", "--quiet", "--json")
    assert (said.code, "/random: left out: damaged" in said.err) == (ExitCode.INTEGRITY, True)
    assert sorted(os.listdir(out.parent / "all")) == ["many", "small", "way"]
    files = [path.lstat() for path in (out.parent / "all").rglob("*") if path.is_file() and not path.is_symlink()]
    assert json.loads(said.out)["bytes"] == sum({each.st_ino: each.st_size for each in files}.values())


def test_the_metadata_is_missing(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    (disk / "segments").rename(tmp_path / "segments")
    said = run("restore", disk.as_uri(), tmp_path / "new", "small", "--quiet")
    assert said.code == ExitCode.ERROR
    assert not (tmp_path / "new").exists()


def test_the_remote_goes_away(copied: Path, disk: Path, out: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, victim = CountingStore.get, segment_of(copied, disk, "/random").name

    def get(self: CountingStore, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if key.endswith(victim):
            raise RemoteUnreachableError("it went away")
        return real(self, key, offset=offset, length=length)

    monkeypatch.setattr(CountingStore, "get", get)
    said = run("restore", disk.as_uri(), out, "many/below", "random", "--quiet")
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    assert said.err.splitlines() == [
        "vaultfs: 1 of 2 paths were restored before this",
        "vaultfs: it went away",
    ]
    assert os.listdir(out) == ["below"]


# --- interrupting, and what is left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(
    copied: Path, disk: Path, out: Path, cache: Path, passfile: Path, run: Run, number: signal.Signals
) -> None:
    """Half a file has no name, and the scratch directory, which never has plaintext, goes: now or with the next."""
    words = command("restore", disk.as_uri(), out, "many", "--bwlimit", "3M", "--passfile", passfile)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as restore:
        deadline = time.monotonic() + PATIENCE_S
        while not list(out.glob(".many.vaultfs-*/0*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        (scratch,) = left(cache)
        assert scratch.stat().st_mode == 0o40700
        parts = [path for path in scratch.rglob("*") if path.is_file()]
        assert any(path.suffix == ".part" for path in parts)
        assert not [path for path in parts if CANARY in path.read_bytes() or b"SQLite format" in path.read_bytes()]
        with scratch_directory() as other:
            assert left(cache) == sorted([scratch, other], key=left(cache).index), "somebody works there"
        restore.send_signal(number)
        restore.communicate(timeout=PATIENCE_S)
    killed = number == signal.SIGKILL
    assert restore.returncode == (-number if killed else 128 + number)
    assert left(cache) == ([scratch] if killed else [])
    assert killed or os.listdir(out) == []
    assert run("restore", disk.as_uri(), out, "small", "--quiet").code == 0
    assert left(cache) == []


def test_what_cannot_be_removed_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vaultfs.cli.scratch.shutil.rmtree", lambda path, *, ignore_errors: None)
        with scratch_directory() as scratch:
            pass
    assert capsys.readouterr().err == (
        f"vaultfs: warning: {scratch} cannot be removed; it holds nothing but ciphertext, delete it\n"
    )
    with scratch_directory() as other:
        assert left(cache) == [other], "the next one removes it"
