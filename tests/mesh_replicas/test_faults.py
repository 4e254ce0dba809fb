"""A peer dies, or its disk fails, between any two calls to the system: what was said holds, the rest may be done again.

A process that dies is simulated by an exception after which no call changes the disk any more.  What a disk would lose
in a power cut is not simulated; the order of syncing and naming is looked at instead.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mesh_replicas.peer_objects import (
    ALICE,
    DEVICE,
    NOTE,
    STRANGER,
    VAULT,
    Clock,
    begin,
    check,
    data_of,
    digest_of,
    head_key,
    header,
    manifest,
    put,
    read,
    segment_key,
    send,
)
from vaultfs.errors import NoSpaceError, RemoteError, StorageError, VaultError
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replicas import ReplicaStore

CALLS = (
    "open",
    "mkdir",
    "write",
    "pread",
    "fsync",
    "rename",
    "unlink",
    "rmdir",
    "ftruncate",
    "lseek",
    "scandir",
    "listdir",
)
CHANGING = ("mkdir", "write", "rename", "unlink", "rmdir", "ftruncate")


class Died(BaseException):
    """The process is not there any more."""


class Faults:
    """Counts calls to the system, and lets one fail.

    Attributes:
        calls: names of the calls so far; of those with descriptors, also the path.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: int | None) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        self._error = error
        self._is_dead = False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self._is_dead:
                if name in CHANGING:
                    raise Died
                return real(*args, **options)
            self.calls.append(name)
            if len(self.calls) == self._fail_at:
                if self._error is None:
                    self._is_dead = True
                    raise Died
                raise OSError(self._error, os.strerror(self._error))
            return real(*args, **options)

        return call


SEGMENT = data_of(1, 3000)
OTHER = data_of(2, 3000)
SHARE = "shares/" + "7" * 64 + "/2-3-0-100000-" + digest_of(b"share").hex()
HEAD = manifest(5)
FIRST, SECOND = header(1, filler="a"), header(2, filler="b")


class Run:
    """Does everything once, and notes what was said to be done."""

    def __init__(self, root: Path) -> None:
        self.done: set[str] = set()
        self._root = root
        self._store: ReplicaStore | None = None
        self._uploads: list[Upload] = []

    def run(self) -> None:
        self._store = store = ReplicaStore.open(self._root, None, Clock(), reserve_bytes=0)
        self._put(segment_key(SEGMENT), SEGMENT, "segment")
        self._put(head_key(HEAD, 5), HEAD, "head")
        self._put("vault.json", FIRST, "first", revision=3)
        self._put("vault.json", SECOND, "second", revision=4)
        interrupted = self._begin(segment_key(OTHER), OTHER)
        interrupted.write(OTHER[:1500])
        interrupted.abort(keep=True)
        resumed = self._begin(segment_key(OTHER), OTHER)
        send(resumed, OTHER)
        self.done.add("other")
        self._put(NOTE, b"note", "note")
        self._put(SHARE, b"share", "share")
        store.delete(VAULT, [segment_key(SEGMENT), SHARE])
        self.done.add("deleted")
        store.forget(VAULT, NOTE)
        self.done.add("forgotten")
        (self._root / VAULT.hex() / segment_key(OTHER)).write_bytes(b"damaged")
        self._put(segment_key(OTHER), OTHER, "mended")
        (self._root / VAULT.hex() / segment_key(OTHER)).write_bytes(b"damaged")
        store.scrub_some(1000)
        store.scrub_some(1000)
        self.done.add("scrubbed")

    def end(self) -> None:
        """The descriptors of a process that died; nothing of its own is called."""
        if self._store is not None:
            for upload in self._uploads:
                with suppress(OSError):
                    os.fstat(upload.descriptor)
                    if not upload._is_over:
                        os.close(upload.descriptor)
            os.close(self._store._root)
            os.close(self._store._lock)

    def _begin(self, key: str, data: bytes, revision: int = 0) -> Upload:
        assert self._store is not None
        upload = begin(self._store, key, data, revision=revision)
        assert upload is not None
        self._uploads.append(upload)
        return upload

    def _put(self, key: str, data: bytes, name: str, revision: int = 0) -> None:
        send(self._begin(key, data, revision), data, 1000)
        self.done.add(name)


@contextmanager
def reopened(root: Path) -> Iterator[ReplicaStore]:
    store = ReplicaStore.open(root, None, Clock(), reserve_bytes=0)
    try:
        yield store
    finally:
        store.close()


def check_after(root: Path, done: set[str]) -> None:
    damaged = "deleted" in done and "scrubbed" not in done
    with reopened(root) as store:
        assert store.warnings == []
        if damaged:  # by the test
            store.scrub_some(1 << 20)
            store.scrub_some(1 << 20)
        check(root, store)
        there = dict(store.listing(VAULT, "", "", 100)[0])
        for name, key, gone in [
            ("segment", segment_key(SEGMENT), "deleted"),
            ("share", SHARE, "deleted"),
            ("note", NOTE, "forgotten"),
        ]:
            if gone in done:
                assert key not in there
            elif name in done and len(done) < 7:  # after that deleting may have begun
                assert key in there
        if "head" in done and head_key(HEAD, 5) not in there:  # reading it failed when it was looked for damage
            assert (root / VAULT.hex() / ".mesh" / "damaged" / digest_of(HEAD).hex()).read_bytes() == HEAD
        if head_key(HEAD, 5) in there:
            assert [head.seq for head in store.newest_heads(VAULT)] == [5]
            assert store.may_delete(VAULT, DEVICE.public_key)
        if "vault.json" in there:
            revision = {FIRST: 3, SECOND: 4}[read(store, "vault.json")]
            assert store.stat(VAULT, "vault.json")[1] == revision
            assert revision >= 4 * ("second" in done)
        assert "vault.json" in there or "first" not in done
        # everything may be done again, and then is there
        put(store, "vault.json", SECOND, revision=5)
        for key, data in [
            (segment_key(SEGMENT), SEGMENT),
            (segment_key(OTHER), OTHER),
            (head_key(HEAD, 5), HEAD),
            (NOTE, b"note"),
        ]:
            put(store, key, data)
            assert read(store, key) == data
        assert read(store, "vault.json") == SECOND
        check(root, store)
        put(store, head_key(manifest(6, STRANGER), 6, STRANGER), manifest(6, STRANGER))
        assert not store.may_delete(VAULT, STRANGER.public_key)
    with reopened(root) as store:
        check(root, store)
        assert [head.seq for head in store.newest_heads(VAULT)] == [6, 5]


def calls_of_a_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        faults = Faults(patch, 0, None)
        run = Run(root)
        run.run()
    run.end()
    assert len(run.done) == 11
    return len(faults.calls)


STEP = 23


@pytest.mark.parametrize(
    ("start", "step"),
    [
        *((start, STEP) for start in (1, 12)),
        *(pytest.param(start, 10, marks=pytest.mark.long) for start in range(1, 11)),
    ],
)
@pytest.mark.parametrize("error", [None, errno.EIO, errno.ENOSPC])
def test_at_every_call(root: Path, monkeypatch: pytest.MonkeyPatch, start: int, step: int, error: int | None) -> None:
    count = calls_of_a_run(root.with_name("counted"), monkeypatch)
    assert count > 300
    for fail_at in range(start, count + 1, step):
        here = root.with_name(f"replicas{fail_at}")
        run = Run(here)
        with monkeypatch.context() as patch:
            Faults(patch, fail_at, error)
            try:
                run.run()
            except Died:
                assert error is None
            except NoSpaceError:
                assert error == errno.ENOSPC
            except (RemoteError, StorageError):
                assert error == errno.EIO
        run.end()
        check_after(here, run.done)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_the_server_goes_on_after_a_failure(root: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """What is counted is right without a restart, whichever call failed, and the same may be tried again."""
    data = data_of(3, 3000)
    fail_at = 0
    while True:
        fail_at += 1
        here = root.with_name(f"replicas{fail_at}")
        store = ReplicaStore.open(here, None, Clock(), reserve_bytes=0)
        put(store, segment_key(OTHER), OTHER)
        has_failed = False
        with monkeypatch.context() as patch:
            faults = Faults(patch, fail_at, error)
            try:
                put(store, segment_key(data), data, piece_bytes=1000)
                put(store, head_key(HEAD, 5), HEAD)
                put(store, "vault.json", FIRST, revision=1)
                put(store, NOTE, b"note")
                store.delete(VAULT, [segment_key(data)])
            except VaultError:
                has_failed = True
        assert has_failed or len(faults.calls) != fail_at
        check(here, store)
        for _ in range(2):
            put(store, segment_key(data), data, piece_bytes=1000)
            put(store, head_key(HEAD, 5), HEAD)
            put(store, "vault.json", FIRST, revision=1)
            put(store, NOTE, b"note")
            check(here, store)
            assert store.usage(ALICE) == 5 * 4096
            store.close()
            store = ReplicaStore.open(here, None, Clock(), reserve_bytes=0)
            assert [head.seq for head in store.newest_heads(VAULT)] == [5]
            assert store.stat(VAULT, "vault.json")[1] == 1
        store.close()
        if len(faults.calls) < fail_at:
            break
    assert fail_at > 100


def test_the_order_of_syncing_and_naming(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, then its name, then the directory; a manifest and a revision are remembered before the name is given."""
    store = ReplicaStore.open(root, None, Clock(), reserve_bytes=0)
    put(store, segment_key(OTHER), OTHER)
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root / VAULT.hex())
        steps.append(f"sync {'partial' if '-' + ALICE.hex() in path.name else path}")
        fsync(descriptor)

    def noted_rename(source: str, target: str, **options: Any) -> None:
        steps.append(f"name {target}")
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)

    remembered = ["sync .mesh/.record.json.new", "name record.json", "sync .mesh"]
    name = digest_of(SEGMENT).hex()
    put(store, segment_key(SEGMENT), SEGMENT)
    assert steps == ["sync partial", "sync segments", f"name {name}", f"sync segments/{name[:2]}"]
    steps.clear()
    put(store, head_key(HEAD, 5), HEAD)
    _, device, name = head_key(HEAD, 5).split("/")
    assert steps == ["sync partial", *remembered, "sync .", "sync heads", f"name {name}", f"sync heads/{device}"]
    steps.clear()
    put(store, "vault.json", FIRST, revision=1)
    assert steps == ["sync partial", *remembered, "name vault.json", "sync ."]
    steps.clear()
    assert not put(store, segment_key(SEGMENT), SEGMENT)
    assert steps == [f"sync {segment_key(SEGMENT)}", f"sync segments/{digest_of(SEGMENT).hex()[:2]}"]
    steps.clear()
    assert not put(store, "vault.json", FIRST, revision=1)
    assert steps == ["sync vault.json", "sync ."]
    steps.clear()
    store.delete(VAULT, [segment_key(SEGMENT)])
    assert steps == [f"sync segments/{digest_of(SEGMENT).hex()[:2]}"]
    store.close()


def test_what_could_not_be_synced_is_not_gone_on_with(
    store: ReplicaStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the kernel may take what it did not write for written."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    upload = begin(store, segment_key(SEGMENT), SEGMENT)
    assert upload is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RemoteError):
            send(upload, SEGMENT)
    again = begin(store, segment_key(SEGMENT), SEGMENT)
    assert again is not None
    assert again.offset == 0
    again.abort(keep=False)
    check(root, store)
