from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vaultfs.errors import (
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    VaultError,
)
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.remotes.store import BytesSource, ObjectInfo

from .data import body, read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "remote"
    path.mkdir()
    return path


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def failing(
    patch: pytest.MonkeyPatch, name: str, code: int, *, only: Callable[..., bool] = lambda *_args, **_kwargs: True
) -> None:
    """Let calls of ``os.<name>`` fail."""
    real: Callable[..., Any] = getattr(os, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if only(*args, **kwargs):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    patch.setattr(os, name, call)


class Trace:
    """What is done to the disk, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("mkdir", "fsync", "rename", "link", "unlink"):
            self._watch(patch, name)

    def _watch(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "fsync":
                path = os.readlink(f"/proc/self/fd/{args[0]}")
                what = Path(path).name
            else:
                what = str(args[-1])
            self.calls.append(f"{name} {'temporary' if what.endswith('.tmp') else what}")
            return real(*args, **kwargs)

        patch.setattr(os, name, call)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


class TestDurability:
    def test_order_of_a_put(self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        trace = Trace(monkeypatch)
        store.put("a/b/key", BytesSource(b"data"))
        assert trace.calls == [
            "mkdir 448",  # the mode comes last
            "fsync remote",
            "mkdir 448",
            "fsync a",
            "fsync temporary",
            "rename key",
            "fsync b",
        ]

    def test_order_of_creating(self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        trace = Trace(monkeypatch)
        store.put("key", BytesSource(b"data"), if_absent=True)
        assert trace.calls == ["fsync temporary", "link key", "unlink temporary", "fsync remote"]

    def test_directories_of_another_run_are_synced_once(
        self, root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (root / "a").mkdir()
        trace = Trace(monkeypatch)
        store.put("a/1", BytesSource(b"data"))
        store.put("a/2", BytesSource(b"data"))
        assert [call for call in trace.calls if call.startswith("fsync")] == [
            "fsync remote",
            "fsync temporary",
            "fsync a",
            "fsync temporary",
            "fsync a",
        ]

    def test_a_directory_that_went_is_made_and_synced_again(
        self, root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put("a/1", BytesSource(b"data"))
        store.delete("a/1")
        (root / "a").rmdir()
        trace = Trace(monkeypatch)
        store.put("a/2", BytesSource(b"data"))
        assert "fsync remote" in trace.calls

    def test_a_delete_is_durable(self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        store.put("a/1", BytesSource(b"data"))
        trace = Trace(monkeypatch)
        store.delete("a/1")
        assert trace.calls == ["unlink 1", "fsync a"]

    def test_file_systems_that_cannot_sync_directories(
        self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failing(monkeypatch, "fsync", errno.EINVAL, only=lambda descriptor: stat.S_ISDIR(os.fstat(descriptor).st_mode))
        store.put("a/1", BytesSource(b"data"))
        assert read(store, "a/1") == b"data"

    def test_only_the_owner_can_read(self, root: Path, store: DirectoryStore) -> None:
        store.put("a/1", BytesSource(b"data"))
        assert stat.S_IMODE((root / "a").stat().st_mode) == 0o700
        assert stat.S_IMODE((root / "a/1").stat().st_mode) == 0o600


class TestTheRootIsNotThere:
    @pytest.mark.parametrize("name", ["remote", "remote/below"])
    def test_nothing_is_made(self, tmp_path: Path, name: str) -> None:
        store = DirectoryStore(tmp_path / name)
        requests: list[Callable[[], object]] = [
            lambda: store.put("a/key", BytesSource(b"data")),
            lambda: store.put("key", BytesSource(b"data"), if_absent=True),
            lambda: read(store, "key"),
            lambda: store.size_bytes("key"),
            lambda: list(store.list("")),
            lambda: list(store.list("a/")),
            lambda: store.delete("key"),
        ]
        for request in requests:
            with pytest.raises(RemoteUnreachableError, match="plugged in"):
                request()
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "remote").write_bytes(b"")
        with pytest.raises(RemoteUnreachableError):
            DirectoryStore(tmp_path / "remote").put("key", BytesSource(b"data"))

    def test_it_goes_in_the_middle_of_a_listing(self, root: Path, store: DirectoryStore) -> None:
        for key in ("1", "a/1", "b/1"):
            store.put(key, BytesSource(b"data"))
        listing = store.list("")
        assert next(listing).key == "1"
        root.rename(root.with_name("unplugged"))
        with pytest.raises(RemoteUnreachableError):
            list(listing)

    @pytest.mark.parametrize("if_absent", [False, True])
    def test_another_directory_comes_in_its_place(self, root: Path, store: DirectoryStore, if_absent: bool) -> None:
        """As when a disk is unplugged, and the folder below comes to light: nothing is stored there."""
        store.put("a/1", BytesSource(b"data"))
        root.rename(root.with_name("unplugged"))
        root.mkdir()
        with pytest.raises(RemoteUnreachableError, match="unplugged"):
            store.put("a/2", BytesSource(b"data"), if_absent=if_absent)
        assert list(root.iterdir()) == []
        assert store.size_bytes("a/1") is None
        root.rmdir()
        root.with_name("unplugged").rename(root)
        store.put("a/2", BytesSource(b"data"), if_absent=if_absent)
        assert {info.key for info in store.list("")} == {"a/1", "a/2"}


class TestWhatOthersLaidThere:
    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        path = tmp_path / "outside"
        path.mkdir()
        (path / "key").write_bytes(b"private")
        return path

    def test_a_symlink_in_a_files_place(self, root: Path, store: DirectoryStore, outside: Path) -> None:
        (root / "key").symlink_to(outside / "key")
        assert store.size_bytes("key") is None
        assert list(store.list("")) == []
        with pytest.raises(ObjectMissingError):
            read(store, "key")
        store.delete("key")
        with pytest.raises(ObjectExistsError):
            store.put("key", BytesSource(b"mine"), if_absent=True)
        store.put("key", BytesSource(b"mine"))
        assert not (root / "key").is_symlink()
        assert read(store, "key") == b"mine"
        assert (outside / "key").read_bytes() == b"private"

    def test_a_symlink_in_a_directorys_place(self, root: Path, store: DirectoryStore, outside: Path) -> None:
        (root / "a").symlink_to(outside)
        assert store.size_bytes("a/key") is None
        assert list(store.list("")) == []
        assert list(store.list("a/")) == []
        with pytest.raises(ObjectMissingError):
            read(store, "a/key")
        store.delete("a/key")
        for if_absent in (False, True):
            with pytest.raises(RemoteError):
                store.put("a/new", BytesSource(b"mine"), if_absent=if_absent)
        assert files(outside) == ["key"]
        assert (outside / "key").read_bytes() == b"private"

    @pytest.mark.timeout(20)
    def test_a_fifo(self, root: Path, store: DirectoryStore) -> None:
        os.mkfifo(root / "key")
        assert store.size_bytes("key") is None
        assert list(store.list("")) == []
        with pytest.raises(ObjectMissingError):
            read(store, "key")
        store.put("key", BytesSource(b"data"))
        assert read(store, "key") == b"data"

    @pytest.mark.parametrize("if_absent", [False, True])
    def test_a_directory_in_a_files_place(self, root: Path, store: DirectoryStore, if_absent: bool) -> None:
        (root / "key").mkdir()
        assert store.size_bytes("key") is None
        with pytest.raises(ObjectMissingError):
            read(store, "key")
        store.delete("key")
        with pytest.raises(RemoteError):
            store.put("key", BytesSource(b"data"), if_absent=if_absent)
        assert files(root) == []

    def test_a_file_in_a_directorys_place(self, root: Path, store: DirectoryStore) -> None:
        (root / "a").write_bytes(b"x")
        assert store.size_bytes("a/key") is None
        store.delete("a/key")
        with pytest.raises(RemoteError):
            store.put("a/key", BytesSource(b"data"))
        assert files(root) == ["a"]

    def test_names_that_are_no_keys(self, root: Path, store: DirectoryStore) -> None:
        (root / ".hidden").mkdir()
        (root / ".hidden" / "x").write_bytes(b"x")
        (root / "lost+found").mkdir()
        (root / "lost+found" / "x").write_bytes(b"x")
        (root / os.fsdecode(b"\xff")).write_bytes(b"x")
        (root / "line\nfeed").write_bytes(b"x")
        store.put("key", BytesSource(b"x"))
        assert list(store.list("")) == [ObjectInfo("key", 1)]

    def test_the_root_may_be_a_symlink(self, root: Path) -> None:
        link = root.with_name("link")
        link.symlink_to(root)
        DirectoryStore(link).put("key", BytesSource(b"x"))
        assert files(root) == ["key"]


class TestFailures:
    @pytest.mark.parametrize("if_absent", [False, True])
    @pytest.mark.parametrize("call", ["write", "fsync"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def test_nothing_is_left_and_the_old_object_stays(
        self,
        root: Path,
        store: DirectoryStore,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
        call: str,
        if_absent: bool,
    ) -> None:
        store.put("a/key", BytesSource(b"old"))
        with monkeypatch.context() as patch:
            failing(patch, call, code)
            with pytest.raises(RemoteError if code == errno.EIO else NoSpaceError):
                store.put("a/new" if if_absent else "a/key", BytesSource(b"data"), if_absent=if_absent)
        assert files(root) == ["a/key"]
        assert read(store, "a/key") == b"old"

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (errno.ENOSPC, NoSpaceError),
            (errno.EDQUOT, NoSpaceError),
            (errno.EACCES, RemoteRefusedError),
            (errno.EROFS, RemoteRefusedError),
            (errno.ENOTCONN, RemoteUnreachableError),
            (errno.ESTALE, RemoteUnreachableError),
            (errno.ENODEV, RemoteUnreachableError),
            (errno.ETIMEDOUT, RemoteUnreachableError),
            (errno.EIO, RemoteError),
        ],
    )
    @pytest.mark.parametrize("call", ["mkdir", "open", "rename"])
    def test_errors_of_the_system_become_ours(
        self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[VaultError]
    ) -> None:
        with monkeypatch.context() as patch:
            failing(patch, call, code)
            with pytest.raises(VaultError) as caught:
                store.put("a/key", BytesSource(b"data"))
        assert type(caught.value) is error
        assert "a/key" in str(caught.value)
        assert store.name in str(caught.value)

    @pytest.mark.parametrize("call", ["open", "stat", "scandir", "pread", "unlink"])
    def test_other_requests(self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        store.put("key", BytesSource(b"data"))
        requests: dict[str, Callable[[], object]] = {
            "open": lambda: read(store, "key"),
            "stat": lambda: store.size_bytes("key"),
            "scandir": lambda: list(store.list("")),
            "pread": lambda: read(store, "key"),
            "unlink": lambda: store.delete("key"),
        }
        with monkeypatch.context() as patch:
            failing(patch, call, errno.EIO)
            with pytest.raises(RemoteError) as caught:
                requests[call]()
        assert type(caught.value) is RemoteError

    def test_a_file_that_is_cut_while_it_is_read(self, root: Path, store: DirectoryStore) -> None:
        store.put("key", BytesSource(body(3 * PIECE_BYTES)))
        pieces = store.get("key")
        next(pieces)
        os.truncate(root / "key", PIECE_BYTES + 5)
        with pytest.raises(RemoteError, match=f"{PIECE_BYTES + 5} bytes instead of {3 * PIECE_BYTES}"):
            list(pieces)

    def test_a_file_that_goes_while_it_is_listed(
        self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, root: Path
    ) -> None:
        for key in ("1", "2", "3"):
            store.put(key, BytesSource(b"x"))
        real = os.scandir

        class Entries:
            def __init__(self, descriptor: int) -> None:
                self._inner = real(descriptor)

            def __enter__(self) -> Iterator[os.DirEntry[str]]:
                found = list(self._inner)
                (root / "2").unlink()
                return iter(found)

            def __exit__(self, *_: object) -> None:
                self._inner.close()

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", Entries)
            assert sorted(info.key for info in store.list("")) == ["1", "3"]

    def test_a_directory_that_goes_while_it_is_listed(self, root: Path, store: DirectoryStore) -> None:
        for key in ("1", "a/1", "b/1"):
            store.put(key, BytesSource(b"x"))
        listing = store.list("")
        assert next(listing).key == "1"
        for name in ("a", "b"):
            (root / name / "1").unlink()
            (root / name).rmdir()
        assert list(listing) == []

    def test_no_descriptors_are_lost(self, root: Path, store: DirectoryStore) -> None:
        store.put("a/b/key", BytesSource(body(2 * PIECE_BYTES)))
        (root / "file").write_bytes(b"x")
        before = sorted(os.listdir("/proc/self/fd"))
        next(store.get("a/b/key"))
        read(store, "a/b/key")
        list(store.list(""))
        store.size_bytes("a/no/key")
        store.size_bytes("a/b/key")
        store.put("c/d/e", BytesSource(b"x"), if_absent=True)
        store.delete("c/d/e")
        for key in ("file/x", "file/x/y", "a/b/key/x"):
            with pytest.raises(RemoteError):
                store.put(key, BytesSource(b"x"))
            with pytest.raises(ObjectMissingError):
                read(store, key)
        assert sorted(os.listdir("/proc/self/fd")) == before


class TestFileSystemsWithoutLinks:
    @pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP])
    def unlinked(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        failing(monkeypatch, "link", request.param)

    @pytest.mark.usefixtures("unlinked")
    def test_creating(self, root: Path, store: DirectoryStore) -> None:
        store.put("a/key", BytesSource(b"old"), if_absent=True)
        with pytest.raises(ObjectExistsError):
            store.put("a/key", BytesSource(b"new"), if_absent=True)
        assert read(store, "a/key") == b"old"
        assert files(root) == ["a/key"]

    @pytest.mark.usefixtures("unlinked")
    def test_one_of_many_creates(self, root: Path, store: DirectoryStore) -> None:
        for turn in range(20):
            barrier = threading.Barrier(4)
            won: list[int] = []

            def create(number: int, key: str, barrier: threading.Barrier, won: list[int]) -> None:
                barrier.wait()
                try:
                    store.put(key, BytesSource(bytes([number])), if_absent=True)
                except ObjectExistsError:
                    return
                won.append(number)

            key = f"key{turn}"
            threads = [threading.Thread(target=create, args=(number, key, barrier, won)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert read(store, key) == bytes(won)


class TestTemporaryFiles:
    NAME = ".vaultfs-" + "0" * 32 + ".tmp"

    @pytest.mark.parametrize("where", ["", "a/"])
    def test_old_ones_are_removed_by_the_next_run(self, root: Path, store: DirectoryStore, where: str) -> None:
        store.put(f"{where}key", BytesSource(b"data"))
        old, new, other = (root / where / name for name in (self.NAME, self.NAME.replace("0", "1"), ".other.tmp"))
        for path in (old, new, other):
            path.write_bytes(b"half")
        for path in (old, other):
            os.utime(path, (1, 1))
        store.put(f"{where}key", BytesSource(b"data"))
        assert old.exists()
        DirectoryStore(root).put(f"{where}key", BytesSource(b"data"))
        assert not old.exists()
        assert new.exists()
        assert other.exists()

    def test_they_are_not_objects(self, root: Path, store: DirectoryStore) -> None:
        (root / self.NAME).write_bytes(b"half")
        assert list(store.list("")) == []
