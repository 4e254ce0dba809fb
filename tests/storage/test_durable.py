from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_files

from vaultfs.errors import IntegrityError, NoSpaceError, ReadOnlyError, StorageError, VaultError
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors, write_all

from .faults import failing


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EROFS, ReadOnlyError),
        (errno.EIO, StorageError),
        (errno.EACCES, StorageError),
    ],
)
def test_errors_of_the_system_become_ours(code: int, expected: type[VaultError]) -> None:
    with pytest.raises(VaultError) as caught, storage_errors("cannot do it"):
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is expected
    assert str(caught.value) == f"cannot do it: {os.strerror(code)}"
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_without_a_code_keeps_its_text() -> None:
    with pytest.raises(StorageError, match="cannot do it: odd"), storage_errors("cannot do it"):
        raise OSError("odd")


@pytest.mark.parametrize("error", [IntegrityError("x"), ValueError("x")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, storage_errors("cannot do it"):
        raise error
    assert caught.value is error


def test_replace_creates_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = os.umask(0o777)
    try:
        atomic_replace(path, b"one")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    atomic_replace(path, b"two", 0o644)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    atomic_replace(path, b"")
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["file"]


def test_replace_does_not_follow_a_symlink(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep")
    path = tmp_path / "file"
    path.symlink_to(target)
    atomic_replace(path, b"new")
    assert target.read_bytes() == b"keep"
    assert not path.is_symlink()
    assert path.read_bytes() == b"new"


def test_replace_does_not_follow_a_symlink_at_the_temporary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep")
    (tmp_path / ".file.0011223344556677.tmp").symlink_to(target)
    monkeypatch.setattr(secrets, "token_hex", lambda _bytes: "0011223344556677")
    with pytest.raises(StorageError):
        atomic_replace(tmp_path / "file", b"new")
    assert target.read_bytes() == b"keep"


def test_replace_survives_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    data = bytes(range(100))
    atomic_replace(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["open", "fchmod", "write", "fsync", "rename"])
def test_a_failed_replace_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = open_files()
    with monkeypatch.context() as patch:
        failing(patch, call, code)
        with pytest.raises(NoSpaceError if code == errno.ENOSPC else StorageError, match="cannot write"):
            atomic_replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    assert open_files() == before


def test_a_failed_sync_of_the_directory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "fsync", errno.EIO, skip=1)
    with pytest.raises(StorageError, match="directory"):
        atomic_replace(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_the_first_error_is_reported_even_if_cleaning_up_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "write", errno.ENOSPC)
    failing(monkeypatch, "unlink", errno.EIO)
    with pytest.raises(NoSpaceError):
        atomic_replace(tmp_path / "file", b"new")


def test_fsync_directory_wants_a_directory(tmp_path: Path) -> None:
    fsync_directory(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(StorageError, match="cannot sync the directory"):
            fsync_directory(path)


@pytest.mark.parametrize("made", [lambda: b"", lambda: b"abc"])
def test_a_write_of_nothing_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch, made: Callable[[], Any]) -> None:
    monkeypatch.setattr(os, "write", lambda _fd, _data: 0)
    if made():
        with pytest.raises(OSError, match="error"):
            write_all(-1, made())
    else:
        write_all(-1, made())
