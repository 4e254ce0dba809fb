"""Walking below an open directory: nothing is followed, nothing odd is opened, and no descriptor stays open."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from descriptors import open_files

from vaultfs.storage.anchored_paths import (
    directory_below,
    is_regular,
    made_directory,
    open_regular,
    size_bytes,
    status_of,
    sync_names,
)

TOO_LONG = "n" * 256


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    descriptor = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    before = open_files()
    yield descriptor
    assert open_files() == before  # whatever happened
    os.close(descriptor)


@pytest.fixture
def top(root: int, tmp_path: Path) -> Path:
    return tmp_path / "root"


def lay_symlink_to_directory(path: Path) -> None:
    (path.parent / "real").mkdir()
    path.symlink_to("real")


def lay_symlink_to_file(path: Path) -> None:
    (path.parent / "real").write_bytes(b"real")
    path.symlink_to("real")


def lay_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # such names are short
        made.bind(path.name)


NO_DIRECTORIES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "symlink": lay_symlink_to_directory,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "file": Path.touch,
    "fifo": os.mkfifo,
}
NO_FILES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "symlink": lay_symlink_to_file,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "fifo": os.mkfifo,
    "socket": lay_socket,
    "directory": Path.mkdir,
}


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("kind", NO_DIRECTORIES)
def test_what_is_no_directory_is_not_walked_through(root: int, top: Path, kind: str, depth: int) -> None:
    parts = ["a", "b", "c"]
    above = top.joinpath(*parts[:depth])
    above.mkdir(parents=True, exist_ok=True)
    NO_DIRECTORIES[kind](above / parts[depth])
    with directory_below(root, parts) as found:
        assert found is None


def test_a_directory_that_is_there(root: int, top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    with directory_below(root, ["a", "b"]) as found:
        assert found is not None
        assert os.path.samestat(os.fstat(found), (top / "a" / "b").stat())
    with directory_below(root, []) as found:
        assert found == root
    os.fstat(root)  # it was not closed


def test_an_error_in_the_block_closes_the_directory(root: int, top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), directory_below(root, ["a", "b"]):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), made_directory(root, ["a", "b", "c"], set()):
        raise ZeroDivisionError


def test_names_that_are_too_long_are_errors(root: int, top: Path) -> None:
    (top / "a").mkdir()
    for act in (
        lambda: directory_below(root, ["a", TOO_LONG, "b"]).__enter__(),
        lambda: made_directory(root, ["a", TOO_LONG], set()).__enter__(),
        lambda: status_of(root, TOO_LONG),
        lambda: open_regular(root, TOO_LONG),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.ENAMETOOLONG


def test_a_directory_that_is_swapped_for_a_symlink_meanwhile(
    root: int, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is open stays what it was; what is opened after it is looked for there, not where the name leads now."""
    (top / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside" / "b").mkdir(parents=True)
    inside = (top / "a" / "b").stat()
    real = os.open

    def swapping(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        if path == "a":
            (top / "a").rename(tmp_path / "moved")
            (top / "a").symlink_to(tmp_path / "outside")
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    with directory_below(root, ["a", "b"]) as found:
        assert found is not None
        assert os.path.samestat(os.fstat(found), inside)


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_opened(root: int, top: Path, kind: str) -> None:
    NO_FILES[kind](top / "name")
    assert open_regular(root, "name") == -1
    assert size_bytes(root, "name") is None
    assert not is_regular(status_of(root, "name"))
    assert (status_of(root, "name") is None) == (kind == "nothing")


def test_a_file_that_is_there(root: int, top: Path) -> None:
    (top / "name").write_bytes(b"what it holds")
    assert size_bytes(root, "name") == 13
    descriptor = open_regular(root, "name")
    assert os.read(descriptor, 100) == b"what it holds"
    os.close(descriptor)


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_file_that_is_swapped_after_it_was_looked_at(
    root: int, top: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening follows no symlink, waits for no FIFO, and what was opened is looked at once more."""
    (top / "name").write_bytes(b"what it holds")
    real = os.stat

    def swapping(path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        status = real(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        (top / "name").unlink()
        NO_FILES[kind](top / "name")
        return status

    monkeypatch.setattr(os, "stat", swapping)
    assert open_regular(root, "name") == -1


def test_what_cannot_be_opened_is_an_error(root: int, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "a").mkdir()
    (top / "name").touch()

    def refusing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(OSError, match="Too many open files"):
        directory_below(root, ["a"]).__enter__()
    with pytest.raises(OSError, match="Too many open files"):
        made_directory(root, ["a"], set()).__enter__()
    with pytest.raises(OSError, match="Too many open files"):
        open_regular(root, "name")


@pytest.mark.parametrize("kind", sorted(NO_DIRECTORIES.keys() - {"nothing"}))
def test_no_directory_is_made_where_something_else_is(root: int, top: Path, tmp_path: Path, kind: str) -> None:
    NO_DIRECTORIES[kind](top / "a")
    durable: set[tuple[str, ...]] = set()
    with pytest.raises(OSError):
        made_directory(root, ["a", "b"], durable).__enter__()
    assert durable == set()
    assert not list(tmp_path.rglob("b"))


class Syncs:
    """Notes which directories are synced, and what was known to be durable then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, durable: set[tuple[str, ...]]) -> None:
        self.seen: list[tuple[int, int]] = []
        self._real = os.fsync
        self._durable = durable
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.seen.append((os.fstat(descriptor).st_ino, len(self._durable)))
        self._real(descriptor)


def test_each_name_is_durable_before_the_next_is_made(root: int, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable: set[tuple[str, ...]] = set()
    syncs = Syncs(monkeypatch, durable)
    firsts: list[int] = []
    with made_directory(root, ["a", "b"], durable, lambda directory: firsts.append(os.fstat(directory).st_ino)) as made:
        assert os.path.samestat(os.fstat(made), (top / "a" / "b").stat())
    assert syncs.seen == [(top.stat().st_ino, 0), ((top / "a").stat().st_ino, 1)]
    assert durable == {("a",), ("a", "b")}
    assert firsts == [(top / "a").stat().st_ino, (top / "a" / "b").stat().st_ino]
    assert (top / "a" / "b").stat().st_mode & 0o777 == 0o700
    with made_directory(root, ["a", "b"], durable, firsts.append):
        pass
    assert (len(syncs.seen), len(firsts)) == (2, 2)  # it is known by now


def test_what_another_run_made_is_synced_too(root: int, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "a").mkdir()
    syncs = Syncs(monkeypatch, set())
    with made_directory(root, ["a"], set()):
        pass
    assert [number for number, _ in syncs.seen] == [top.stat().st_ino]


def test_a_known_directory_that_went_is_made_and_synced_again(
    root: int, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: set[tuple[str, ...]] = {("a",)}
    syncs = Syncs(monkeypatch, durable)
    with made_directory(root, ["a"], durable):
        assert (top / "a").is_dir()
    assert [number for number, _ in syncs.seen] == [top.stat().st_ino]


def test_a_directory_that_somebody_else_makes_just_then(root: int, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir

    def beaten(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        real(path, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", beaten)
    with made_directory(root, ["a"], set()) as made:
        assert os.path.samestat(os.fstat(made), (top / "a").stat())


def test_a_sync_that_fails_leaves_the_name_unknown(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    durable: set[tuple[str, ...]] = set()

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        made_directory(root, ["a"], durable).__enter__()
    assert durable == set()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_file_systems_that_cannot_sync_directories(root: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    if code == errno.EINVAL:
        sync_names(root)
    else:
        with pytest.raises(OSError, match="Input/output"):
            sync_names(root)
