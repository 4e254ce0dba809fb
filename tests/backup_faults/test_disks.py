"""Disks that are full, broken or unplugged: the one that is restored to, the remote's, and the one of the ledgers."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Run, objects, process, write_file

from vaultfs.errors import ExitCode
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.sync import fetched_file

from .conftest import CONTENTS, require_complete_heads, require_restored, require_same
from .s3_double import S3Double

KIB = 1 << 10
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)

Small = Callable[[int], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Small]:
    """Mounts a file system in memory of so many KiB; called again, it changes the size."""
    where = tmp_path / "small disk"
    where.mkdir()
    is_mounted = False

    def sized(size_kib: int) -> Path:
        nonlocal is_mounted
        how = ["-o", f"{'remount,' if is_mounted else ''}size={size_kib}k,mode=700"]
        done = subprocess.run(["mount", "-t", "tmpfs", *how, "tmpfs", where], check=False, capture_output=True)
        if done.returncode:
            pytest.skip("this user may not mount a tmpfs")
        is_mounted = True
        return where

    yield sized
    if is_mounted:
        assert _libc.umount2(os.fsencode(where), MNT_DETACH) == 0


@pytest.fixture
def on_disk(source: Path, disk: Path, run: Run) -> Path:
    """The vault with a directory as a further remote."""
    assert run("remote", "remove", source, "s3", bare=True).code == 0
    assert run("remote", "add", source, "disk", disk.as_uri(), bare=True).code == 0
    return source


def require_clean(vault: Path, disk: Path, run: Run) -> None:
    """The next sync succeeds, and the remote is sound and the same as the vault."""
    said = run("sync", vault, "--quiet", bare=True)
    assert said.code == 0, said.err
    said = run("verify", vault, "disk", "--read-data", "--quiet", bare=True)
    assert (said.code, said.out.endswith(b"nothing is wrong\n")) == (0, True), said
    require_same(vault, objects(disk))


# --- where it is restored to


def test_restored_to_a_disk_that_is_full(
    copied: Path, double: S3Double, run: Run, small_disk: Small, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, long_run: bool,
) -> None:  # fmt: skip
    """At whichever byte it is full; with more room the same command goes on, and fetches nothing again."""
    whole = sum(map(len, double.stored().values()))
    full = 0
    for size_kib in range(16, 3000, 16 if long_run else 200):
        where = small_disk(size_kib)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / f"machine {size_kib}"))
        words = ["restore", double.url, where / "back", *double.options, "--quiet"]
        double.heal()
        said = run(*words)
        if said.code == 0:
            shutil.rmtree(where / "back")
            break
        full += 1
        assert said.code == ExitCode.ERROR, said
        assert "No space left on device" in said.error_line or "is full" in said.error_line
        assert not (where / "back" / "heads" / "HEAD").exists()
        had = sum(path.stat().st_size for path in where.rglob("*.seg"))
        small_disk(20_000)
        double.heal()
        said = run(*words, "--json")
        assert said.code == 0, said
        assert had <= whole
        require_restored(where / "back")
        shutil.rmtree(where / "back")
    assert full >= 3
    assert size_kib < 2900


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("write_all", errno.ENOSPC),
        ("write_all", -signal.SIGINT),
        ("fdatasync", errno.EIO),
        ("rename", errno.EIO),
        ("fsync", errno.ENOSPC),
        pytest.param("fsync", -signal.SIGINT, marks=pytest.mark.long),
        pytest.param("fsync", errno.EIO, marks=pytest.mark.long),
        pytest.param("fdatasync", -signal.SIGINT, marks=pytest.mark.long),
        ("rename", -signal.SIGINT),
    ],
)
def test_restored_to_a_disk_that_breaks(
    copied: Path, double: S3Double, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """Each of these calls fails in turn; or Ctrl-C is pressed in the middle of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    words = ["restore", double.url, tmp_path / "back", *double.options, "--quiet"]
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            fail(patch, call, number, code)
            said = run(*words)
        if said.code == 0:
            break
        assert said.code == (ExitCode.ERROR if code > 0 else ExitCode.SIGINT), said
        assert "internal error" not in said.err
        assert code < 0 or os.strerror(code) in said.err or "is full" in said.err, said.err
        if (tmp_path / "back" / "heads" / "HEAD").exists():  # that comes last: it is whole, and only was not opened yet
            require_restored(tmp_path / "back")
            shutil.rmtree(tmp_path / "back")
    assert number > 1
    require_restored(tmp_path / "back")


def fail(patch: pytest.MonkeyPatch, call: str, number: int, code: int) -> None:
    """Let one call of a function fail, or interrupt it if ``code`` is a signal, negative."""
    place = fetched_file if call == "write_all" else os
    real = getattr(place, call)
    left = number

    def failing(*arguments: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and code > 0:
            raise OSError(code, os.strerror(code))
        if left == 0:
            signal.raise_signal(-code)
        return real(*arguments, **more)

    patch.setattr(place, call, failing)


def test_restored_under_a_limit_for_files(
    copied: Path, double: S3Double, run: Run, tmp_path: Path, passfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ulimit -f` sets it."""
    words: list[str | Path] = ["restore", double.url, tmp_path / "back", *double.options, "--passfile", passfile]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "another machine")}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    said = process(*words, preexec_fn=limit, env=environment)
    assert (said.code, "File too large" in said.err) == (ExitCode.ERROR, True), said
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    assert run(*words[:-2]).code == 0
    require_restored(tmp_path / "back")


# --- the remote's disk


def test_a_remote_whose_disk_is_full(
    source: Path, run: Run, small_disk: Small, own_state: Path, long_run: bool
) -> None:
    assert run("remote", "remove", source, "s3", bare=True).code == 0
    full = 0
    for size_kib in range(16, 3000, 16 if long_run else 150):
        disk = small_disk(size_kib) / "backup"
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir()
        os.environ["XDG_STATE_HOME"] = str(own_state / str(size_kib))
        if not full:
            small_disk(3000)
            assert run("remote", "add", source, "disk", disk.as_uri(), bare=True).code == 0
            small_disk(size_kib)
        said = run("sync", source, "--quiet", bare=True)
        require_complete_heads(objects(disk))
        if said.code == 0:
            break
        full += 1
        assert (said.code, "No space left" in said.err) == (ExitCode.ERROR, True), said
        assert not list(disk.rglob(".*")), "a half object is in the way"
        assert run("status", source, bare=True).code == ExitCode.PARTIAL
        small_disk(20_000)
        require_clean(source, disk, run)
        shutil.rmtree(disk)
    assert full >= 3
    assert said.code == 0


def test_a_state_directory_that_is_full(
    source: Path, double: S3Double, run: Run, impatient: None, small_disk: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be remembered, so nothing is said to be there; with room again, all is well."""
    where = small_disk(64)
    monkeypatch.setenv("XDG_STATE_HOME", str(where))
    filler = where / "filler"
    filler.write_bytes(bytes(os.statvfs(where).f_bavail * os.statvfs(where).f_bsize))
    assert os.statvfs(where).f_bavail == 0
    said = run("sync", source, "--quiet", bare=True)
    assert (said.code, "internal error" in said.err) == (ExitCode.ERROR, False), said
    require_complete_heads(double.stored())
    filler.unlink()
    small_disk(4096)
    assert run("sync", source, "--quiet", bare=True).code == 0
    assert run("verify", source, "s3", "--read-data", "--quiet", bare=True).code == 0


@pytest.fixture
def plugged(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """Where a disk is mounted, and what plugs it in and out; what is on it stays on it."""
    data, where = tmp_path / "the disk itself", tmp_path / "mount point"
    data.mkdir()
    where.mkdir()

    def plug_in() -> None:
        done = subprocess.run(["mount", "--bind", data, where], check=False, capture_output=True)
        if done.returncode:
            pytest.skip("this user may not mount anything")

    def pull_out() -> None:
        assert _libc.umount2(os.fsencode(where), MNT_DETACH) == 0

    plug_in()
    yield where, plug_in, pull_out
    _libc.umount2(os.fsencode(where), MNT_DETACH)  # unless it is pulled out already


@pytest.mark.parametrize("below", ["backup", ""], ids=["a directory on it", "the mount point"])
def test_a_disk_that_is_pulled_out_meanwhile(
    source: Path, run: Run, plugged: tuple[Path, Callable[[], None], Callable[[], None]], own_state: Path,
    monkeypatch: pytest.MonkeyPatch, long_run: bool, below: str,
) -> None:  # fmt: skip
    """At each request.  Nobody is told that the backup is complete, and the disk shows complete snapshots only."""
    where, plug_in, pull_out = plugged
    disk = where / below
    disk.mkdir(exist_ok=True)
    assert run("remote", "remove", source, "s3", bare=True).code == 0
    assert run("remote", "add", source, "disk", disk.as_uri(), bare=True).code == 0
    real = {name: getattr(DirectoryStore, name) for name in ("put", "size_bytes")}
    for number in range(1, 100, 1 if long_run else 3):
        count = 0

        def request(self: DirectoryStore, *arguments: Any, name: str = "put", at: int = number, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                pull_out()
            return real[name](self, *arguments, **more)

        os.environ["XDG_STATE_HOME"] = str(own_state / f"{number}")
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(
                    DirectoryStore,
                    name,
                    lambda self, *arguments, name=name, **more: request(self, *arguments, name=name, **more),
                )
            said = run("sync", source, "--quiet", "--connections", "1", bare=True)
        if count < number:
            break
        require_complete_heads(objects(where))  # what is on the disk below
        assert said.code in {ExitCode.REMOTE_UNREACHABLE, ExitCode.ERROR}, said
        assert run("status", source, bare=True).code == ExitCode.PARTIAL
        for left in where.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        plug_in()
        require_complete_heads(objects(disk))
        require_clean(source, disk, run)
        for path in sorted(disk.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert number > 5
    assert said.code == 0


# --- what lies where an object should


def make_symlink(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def make_fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"mine")


@pytest.mark.parametrize("make", [make_symlink, make_fifo, make_directory])
@pytest.mark.parametrize("part", ["vault.json", "segments", "heads"])
def test_something_else_in_an_objects_place(
    on_disk: Path, disk: Path, run: Run, tmp_path: Path, make: Callable[[Path, Path], None], part: str
) -> None:
    """Nothing waits for it, follows it, or writes through it; when it is gone, all is mended."""
    assert run("sync", on_disk, "--quiet", bare=True).code == 0
    victim = next(path for path in [disk / part, *sorted((disk / part).rglob("*"))] if path.is_file())
    outside = tmp_path / "outside"
    outside.write_bytes(b"somebody's own")
    kept = victim.read_bytes()
    victim.unlink()
    make(victim, outside)
    write_file(on_disk, "/later", b"later")
    for words in (
        ["verify", on_disk, "disk", "--read-data"],
        ["sync", on_disk, "--check"],
        ["restore", disk.as_uri(), tmp_path / "back"],
    ):
        said = run(*words, "--quiet", bare=words[0] != "restore")
        assert "internal error" not in said.err
        if words[0] == "verify" and part != "heads":  # a snapshot that is not there is missed by nobody
            assert said.code == ExitCode.INTEGRITY, said
        if words[0] == "restore" and said.code == 0:  # the sync has replaced it
            require_restored(tmp_path / "back")
    assert outside.read_bytes() == b"somebody's own"
    if victim.is_dir() and not victim.is_symlink():
        shutil.rmtree(victim)
    elif os.path.lexists(victim):
        victim.unlink()
    said = run("sync", on_disk, "--check", "--quiet", bare=True)
    assert said.code == 0, said
    assert victim.read_bytes() == kept
    require_clean(on_disk, disk, run)


def test_symlinks_in_the_place_of_folders(on_disk: Path, disk: Path, run: Run, tmp_path: Path) -> None:
    """Otherwise whoever can write to the disk has objects written anywhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("segments", "heads"):
        (disk / name).symlink_to(outside)
    said = run("sync", on_disk, "--quiet", bare=True)
    assert (said.code != 0, "internal error" in said.err) == (True, False), said
    assert list(outside.iterdir()) == []
    for name in ("segments", "heads"):
        (disk / name).unlink()
    require_clean(on_disk, disk, run)


def test_the_files_are_as_large_as_these_tests_think() -> None:
    assert sum(map(len, CONTENTS.values())) > 400 * KIB
