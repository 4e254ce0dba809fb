"""put and get: a whole tree there and back, with everything that a tree can hold; where copies go; what stops them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vaultfs
from vaultfs.errors import ExitCode, NoSpaceError
from vaultfs.vault import transfer
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.transfer_staging import STAGING_MARK, STAGING_NAME

from .conftest import (
    NOBODY,
    PASSWORD,
    REPOSITORY,
    Run,
    as_ordinary_user,
    command,
    give_to_ordinary_user,
    listing,
    opened,
    process,
    read_file,
    write_file,
)

CHUNK = 128 << 10


def tree(base: Path) -> Path:
    """Some of everything."""
    top = base / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").write_bytes(b"")
    (top / "small").write_bytes(b"some text\n")
    (top / "chunks").write_bytes(os.urandom(3 * CHUNK + 17))
    (top / "sub" / "zeros").write_bytes(bytes(CHUNK + 1))
    with (top / "sparse").open("wb") as file:
        file.seek(5 * CHUNK + 3)
        file.write(b"island")
        file.truncate(64 << 20)
    os.link(top / "small", top / "sub" / "linked")
    (top / "symlink").symlink_to("sub/zeros")
    (top / "dangling").symlink_to("/nowhere/at all")
    os.mkfifo(top / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))
    (top / os.fsdecode(b"odd \xff\n name")).write_bytes(b"x")
    (top / ("n" * 255)).write_bytes(b"y")
    os.setxattr(top / "small", "user.note", b"\0\xff")
    os.setxattr(top / "sub", "user.of-directory", b"1")
    (top / "small").chmod(0o4711)
    (top / "sub" / "deep").chmod(0o500)
    if os.geteuid() == 0:
        os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(top / "chunks", 12, 34)
    os.utime(top / "dangling", ns=(1, -1_500_000_001), follow_symlinks=False)
    os.utime(top / "small", ns=(1_000_000_001, 1_000_000_002))
    os.utime(top / "sub", ns=(2_000_000_001, 2_000_000_002))
    return top


def described(top: Path) -> dict[str, Any]:
    """What must be the same afterwards, by relative path; hard links as groups."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        name = str(path.relative_to(top))
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        found[name] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0,
            path.read_bytes() if kind == stat.S_IFREG else b"",
            os.readlink(path) if kind == stat.S_IFLNK else "",
            first.setdefault(status.st_ino, name) if status.st_nlink > 1 and kind != stat.S_IFDIR else "",
            {n: os.getxattr(path, n) for n in os.listxattr(path)} if kind in {stat.S_IFREG, stat.S_IFDIR} else {},
        )
    return found


def test_tree_there_and_back(run: Run, vault: Path, tmp_path: Path) -> None:
    source = tree(tmp_path)
    before = described(source)
    assert run("put", vault, source, "/copy").code == 0
    assert listing(vault) == [b"copy"]
    said = run("get", vault, "/copy", tmp_path / "back")
    assert (said.code, said.out) == (0, b"")
    assert described(tmp_path / "back") == before
    assert (tmp_path / "back" / "sparse").stat().st_blocks * 512 <= 2 * CHUNK
    assert sorted(os.listdir(tmp_path)) == ["back", "password", "state", "tree", "vault"]


def test_holes_take_no_room_in_the_vault(run: Run, vault: Path, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x")
    assert run("put", vault, tmp_path / "huge", "/huge").code == 0
    assert sum(path.stat().st_size for path in vault.rglob("*")) < 4 << 20
    assert run("get", vault, "/huge", tmp_path / "back").code == 0
    assert (tmp_path / "back").stat().st_size == 1 << 40
    with (tmp_path / "back").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) >= (1 << 39) - CHUNK


@pytest.mark.parametrize(
    ("target", "lands"),
    [
        ("/", "/file"),
        ("new", "/new"),
        ("/dir", "/dir/file"),
        ("/dir/", "/dir/file"),
        ("/dir/x", "/dir/x"),
        ("/link", "/dir/file"),
        ("dir/../dir/y", "/dir/y"),
    ],
)
def test_where_a_put_lands(run: Run, vault: Path, tmp_path: Path, target: str, lands: str) -> None:
    with opened(vault) as found:
        found.mkdir("/dir")
        found.symlink("dir", "/link")
    (tmp_path / "file").write_bytes(b"contents")
    assert run("put", vault, tmp_path / "file", target).code == 0
    assert read_file(vault, lands) == b"contents"


@pytest.mark.parametrize(("local", "lands"), [("out", "out/file"), ("new", "new"), ("out/x", "out/x")])
def test_where_a_get_lands(run: Run, vault: Path, tmp_path: Path, local: str, lands: str) -> None:
    write_file(vault, "/file", b"contents")
    (tmp_path / "out").mkdir()
    assert run("get", vault, "file", tmp_path / local).code == 0
    assert (tmp_path / lands).read_bytes() == b"contents"


def test_get_of_the_root(run: Run, vault: Path, tmp_path: Path) -> None:
    write_file(vault, "/file", b"contents")
    assert run("get", vault, "/", tmp_path / "all").code == 0
    assert os.listdir(tmp_path / "all") == ["file"]


def test_nothing_is_replaced_without_force(run: Run, vault: Path, tmp_path: Path) -> None:
    write_file(vault, "/file", b"in the vault")
    (tmp_path / "file").write_bytes(b"local")
    assert "--force" in run("put", vault, tmp_path / "file", "/").error_line
    assert "--force" in run("get", vault, "/file", tmp_path).error_line
    assert read_file(vault, "/file") == b"in the vault"
    assert (tmp_path / "file").read_bytes() == b"local"
    assert run("get", vault, "/file", tmp_path, "--force").code == 0
    assert (tmp_path / "file").read_bytes() == b"in the vault"
    (tmp_path / "file").write_bytes(b"local again")
    assert run("put", vault, tmp_path / "file", "/", "--force").code == 0
    assert read_file(vault, "/file") == b"local again"


def test_directories_are_not_merged(run: Run, vault: Path, tmp_path: Path) -> None:
    with opened(vault) as found:
        found.mkdir("/dir")
    (tmp_path / "dir").mkdir()
    assert run("put", vault, tmp_path / "dir", "/", "--force").code == ExitCode.USAGE
    assert run("get", vault, "/dir", tmp_path, "--force").code == ExitCode.USAGE


def test_stream_in_and_out(vault: Path, passfile: Path) -> None:
    data = os.urandom(3 * CHUNK + 5)
    assert process("put", vault, "-", "/stream", "--passfile", passfile, stdin=None, input=data).code == 0
    said = process("cat", vault, "/stream", "/stream", "--passfile", passfile)
    assert (said.code, said.out, said.err) == (0, data + data, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_of_a_pipe_that_goes_away(vault: Path, passfile: Path, unbuffered: str) -> None:
    write_file(vault, "/file", os.urandom(1 << 20))
    with subprocess.Popen(
        command("cat", vault, "/file", "--passfile", passfile),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as cat:
        assert cat.stdout is not None
        assert cat.stderr is not None
        assert len(cat.stdout.read(1000)) == 1000
        cat.stdout.close()
        assert cat.stderr.read() == b""
    assert cat.returncode == ExitCode.ERROR


def test_json_says_what_was_done(run: Run, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    said = run("put", vault, tmp_path / "file", "/", "--json")
    assert json.loads(said.out) == {"files": 1, "bytes": 5, "problems": 0}
    last = json.loads(said.err.splitlines()[-1])
    assert (last["done_bytes"], last["total_bytes"], last["files"], last["finished"]) == (5, 5, 1, True)
    said = run("get", vault, "/file", tmp_path / "back", "--json")
    assert json.loads(said.out) == {"files": 1, "bytes": 5, "problems": 0}


def test_quiet(run: Run, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    said = run("put", vault, tmp_path / "file", "/", "--quiet")
    assert (said.out, said.err) == (b"", "")


# --- nothing half


def test_put_that_fails_leaves_nothing(run: Run, vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(vault, "/old", b"old")
    source = tree(tmp_path)
    real, calls = FileSystem.write, 0

    def failing(self: FileSystem, *arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise NoSpaceError("the disk below is full")
        real(self, *arguments, **more)

    monkeypatch.setattr(FileSystem, "write", failing)
    said = run("put", vault, source, "/copy")
    assert said.code == ExitCode.ERROR
    assert "full" in said.error_line
    assert calls == 3
    assert listing(vault) == [b"old"]


def test_put_is_invisible_until_it_is_whole(vault: Path, tmp_path: Path) -> None:
    """At every point where the process might be killed, the names are those of before."""
    (tmp_path / "file").write_bytes(os.urandom(3 << 20))
    seen: set[bytes] = set()

    def look(done_bytes: int, total_bytes: int | None, files: int) -> None:
        names = {name for name in found.listdir("/") if name != STAGING_NAME}
        seen.update(names or {b"none"})

    with opened(vault) as found:
        transfer.put(found, tmp_path / "file", b"/new", progress=look)
        assert found.listdir("/") == [b"new"]
    assert seen == {b"none"}


def test_put_that_is_killed_is_swept_by_the_next_command(vault: Path, tmp_path: Path, run: Run) -> None:
    """A directory as a kill leaves it; reading commands hide it, one that writes removes it."""
    kill_in_the_middle(vault, tmp_path)
    assert listing(vault) == [STAGING_NAME]
    assert run("ls", vault).out == b""
    assert run("get", vault, "/", tmp_path / "all").code == 0
    assert os.listdir(tmp_path / "all") == []
    (tmp_path / "file").write_bytes(b"x")
    assert run("put", vault, tmp_path / "file", "/").code == 0
    assert listing(vault) == [b"file"]
    with opened(vault) as found:
        assert found.status()["files"] == 2
        assert found.status()["live_bytes"] < CHUNK


def kill_in_the_middle(vault: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
import vaultfs
from vaultfs.vault import transfer
transfer.COMMIT_BYTES = 1 << 20
(Path({str(tmp_path)!r}) / "big").write_bytes(os.urandom(4 << 20))
def kill(done, total, files):
    if done >= 3 << 20:
        os.kill(os.getpid(), signal.SIGKILL)
vault = vaultfs.open_vault({str(vault)!r}, vaultfs.Secret.password({PASSWORD!r}))
transfer.put(vault, Path({str(tmp_path)!r}) / "big", b"/big", progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False, capture_output=True)
    assert done.returncode == -9, done.stderr


def test_a_persons_directory_of_that_name_is_not_swept(run: Run, vault: Path, tmp_path: Path) -> None:
    with opened(vault) as found:
        found.mkdir(b"/" + STAGING_NAME)
        found.mkdir(b"/" + STAGING_NAME + b"/mine")
    (tmp_path / "file").write_bytes(b"x")
    said = run("put", vault, tmp_path / "file", "/")
    assert said.code == ExitCode.USAGE
    assert "in the way" in said.error_line
    with opened(vault) as found:
        assert found.listdir(b"/" + STAGING_NAME) == [b"mine"]
        found.setxattr(b"/" + STAGING_NAME, STAGING_MARK, b"1")
    assert run("put", vault, tmp_path / "file", "/").code == 0
    assert listing(vault) == [b"file"]


def test_get_that_fails_leaves_nothing(run: Run, vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path)
    assert run("put", vault, source, "/copy").code == 0

    def failing(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "pwrite", failing)
    said = run("get", vault, "/copy", out / "back")
    assert said.code == ExitCode.ERROR
    assert "No space left" in said.error_line
    assert os.listdir(out) == []


# --- sources that cannot be read, or change


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with a file that cannot be opened, also not by root."""
    top = tmp_path / "source"
    top.mkdir()
    (top / "a").write_bytes(b"a")
    (top / "b").write_bytes(b"b")
    real = os.open

    def refusing(path: Any, *arguments: Any, **more: Any) -> int:
        if path == b"b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refusing)
    return top


def test_unreadable_source_stops_a_put(run: Run, vault: Path, unreadable: Path) -> None:
    said = run("put", vault, unreadable, "/copy")
    assert said.code == ExitCode.ERROR
    assert said.error_line == f"vaultfs: {unreadable}/b: Permission denied"
    assert listing(vault) == []


def test_keep_going_leaves_it_out(run: Run, vault: Path, unreadable: Path) -> None:
    said = run("put", vault, unreadable, "/copy", "--keep-going", "--quiet")
    assert said.code == ExitCode.PARTIAL
    assert said.error_line == f"vaultfs: {unreadable}/b: left out: Permission denied"
    assert read_file(vault, "/copy/a") == b"a"
    with opened(vault) as found:
        assert found.listdir("/copy") == [b"a"]


def test_source_that_changes_while_it_is_read(
    run: Run, vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "log"
    source.write_bytes(b"first")
    real = os.pread

    def growing(descriptor: int, size: int, offset: int) -> bytes:
        data = real(descriptor, size, offset)
        if data == b"first":
            with source.open("ab") as file:
                file.write(b" second")
        return data

    monkeypatch.setattr(os, "pread", growing)
    said = run("put", vault, source, "/", "--quiet")
    assert said.code == ExitCode.PARTIAL
    assert "changed while it was read" in said.error_line


def test_a_vault_is_not_put_into_itself(run: Run, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(vault)
    for source in (vault, vault.parent, vault.parent / ".." / vault.parent.name):
        said = run("put", vault, source, "/copy")
        assert said.code == ExitCode.USAGE
        assert "into itself" in said.error_line
    assert listing(vault) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_set_id_bits_of_others_are_not_taken_over(vault: Path, passfile: Path, reachable: Path) -> None:
    """An ordinary user who copies root's set-uid file owns the copy, and must not make it set-uid."""
    for path in (vault, passfile):
        shutil.move(path, reachable / path.name)
    source = reachable / "source"
    source.mkdir()
    (source / "tool").write_bytes(b"x")
    (source / "tool").chmod(0o6755)
    give_to_ordinary_user(reachable, source, source / "tool")
    words: list[str | Path] = ["put", reachable / "vault", source, "/copy", "--passfile", reachable / passfile.name]
    assert as_ordinary_user(*words) == 0
    with vaultfs.open_vault(reachable / "vault", vaultfs.Secret.password(PASSWORD), read_only=True) as found:
        status = found.stat("/copy/tool")
        assert (status.st_uid, oct(status.st_mode)) == (NOBODY, oct(stat.S_IFREG | 0o755))
