"""A segment that is damaged here, before or while it is sent, with the real code of each kind of store.

What counts is what the remote has afterwards: nothing under the name of a segment but its bytes, no snapshot that needs
what is not there, and everything else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from remotes.conftest import BUCKET, s3_endpoint, webdav_endpoint, webdav_root
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, target
from vaultfs.errors import IntegrityError, RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.remotes.bodies import PIECE_BYTES, opened
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.remotes.locations import parse
from vaultfs.remotes.opendal_services import make_store
from vaultfs.remotes.s3 import S3Options, S3Store
from vaultfs.remotes.store import Source, Store
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.upload import TargetOutcome, sync
from vaultfs.sync.verify import verify

__all__ = ["s3_endpoint", "webdav_endpoint", "webdav_root"]

SIZE = 2 * PIECE_BYTES + 321
KINDS = ["directory", "s3", "webdav"]


@pytest.fixture
def make(
    s3_endpoint: str,  # the fixture
    webdav_endpoint: str,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[str], Store]]:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    made: list[Store] = []

    def make(kind: str) -> Store:
        token = secrets.token_hex(8)
        if kind == "s3":
            made.append(S3Store(BUCKET, token, S3Options(s3_endpoint, region="us-east-1", path_style=True)))
        elif kind == "webdav":
            options = {"username": "user", "password_command": "printf very-secret"}
            made.append(make_store(parse(f"webdav+http://{webdav_endpoint}/{token}"), options))
        else:
            (scratch / token).mkdir()
            made.append(DirectoryStore(scratch / token))
        return made[-1]

    yield make
    for store in made:
        store.close()


class Shaken:
    """A vault of two snapshots, the first of which needs the segment ``bad``; and what happens to that.

    ``changes`` is called before each piece of it that is read, with the number of times that its begin was asked for.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vault = Fabricated(root)
        self.bad, self.good = self.vault.segment(SIZE), self.vault.segment(SIZE)
        self.vault.snapshot(self.bad)
        self.vault.snapshot(self.good)
        self.path = self.vault.layout.sealed_path(self.bad)
        self.path.chmod(0o600)
        self.changes: Callable[[int, int], None] = lambda _begins, _offset: None
        inode = self.path.stat().st_ino
        begins = 0
        real = os.preadv

        def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            nonlocal begins
            if os.fstat(descriptor).st_ino == inode:
                begins += offset == 0
                self.changes(begins, offset)
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)

    def harm(self, how: str) -> None:
        with self.path.open("r+b") as file:
            if how == "flipped":
                file.seek(SIZE // 2)
                file.write(bytes([self.vault.segments[self.bad][SIZE // 2] ^ 1]))
            elif how == "last byte":
                file.seek(SIZE - 1)
                file.write(bytes([self.vault.segments[self.bad][-1] ^ 1]))
            elif how == "cut":
                file.truncate(SIZE - 5)
            else:
                file.truncate(0)

    def sync(self, store: Store, state: Path) -> TargetOutcome:
        [outcome] = sync(self.vault.layout, [target(self.vault, store, state)])
        return outcome


@pytest.fixture
def shaken(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Shaken:
    return Shaken(scratch / "vault", monkeypatch)


def require_only_the_good(shaken: Shaken, store: Store, outcome: TargetOutcome, scratch: Path) -> None:
    assert isinstance(outcome.error, IntegrityError)
    assert "snapshot 1 was not sent" in str(outcome.error)
    assert shaken.bad in str(outcome.error)
    there = {info.key: info.size_bytes for info in store.list("segments/")}
    part = there.pop(segment_key(shaken.bad), None) if isinstance(store, S3Store) else None
    assert part is None or part < SIZE  # ministack keeps what has come of a request that broke, unlike S3
    assert there == {segment_key(shaken.good): SIZE}
    assert [head.seq for head in heads(store)] == [2]
    assert len(verify(store, read_share=1.0).problems) == (part is not None)
    # Once the segment is as it was, the same sync sends it.
    shaken.changes = lambda _begins, _offset: None
    shaken.path.write_bytes(shaken.vault.segments[shaken.bad])
    assert shaken.sync(store, scratch / "state").is_up_to_date
    assert verify(store, read_share=1.0).problems == []
    assert b"".join(store.get(segment_key(shaken.bad))) == shaken.vault.segments[shaken.bad]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_before(make: Callable[[str], Store], shaken: Shaken, scratch: Path, kind: str) -> None:
    store = make(kind)
    shaken.harm("last byte")
    require_only_the_good(shaken, store, shaken.sync(store, scratch / "state"), scratch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damaged_while_it_is_read(
    make: Callable[[str], Store], shaken: Shaken, scratch: Path, kind: str, how: str
) -> None:
    store = make(kind)
    shaken.changes = lambda _begins, offset: shaken.harm(how) if offset == PIECE_BYTES else None
    require_only_the_good(shaken, store, shaken.sync(store, scratch / "state"), scratch)


@pytest.mark.parametrize("how", ["last byte", "emptied"])
def test_damaged_after_it_was_signed(make: Callable[[str], Store], shaken: Shaken, scratch: Path, how: str) -> None:
    """S3 reads twice.  What is sent then is not what was signed, and never whole."""
    store = make("s3")
    seen: list[int] = []

    def changes(begins: int, offset: int) -> None:
        if begins == 2 and offset == 0:
            shaken.harm(how)
        seen.append(begins)

    shaken.changes = changes
    outcome = shaken.sync(store, scratch / "state")
    assert max(seen) == 2
    require_only_the_good(shaken, store, outcome, scratch)


def test_grown_after_it_was_signed(make: Callable[[str], Store], shaken: Shaken, scratch: Path) -> None:
    """What is sent is right all the same."""
    store = make("s3")

    def changes(begins: int, offset: int) -> None:
        if begins == 2 and offset == 0:
            os.truncate(shaken.path, SIZE + 1)

    shaken.changes = changes
    assert shaken.sync(store, scratch / "state").is_up_to_date
    assert b"".join(store.get(segment_key(shaken.bad))) == shaken.vault.segments[shaken.bad]


def test_damaged_between_two_remotes(make: Callable[[str], Store], shaken: Shaken, scratch: Path) -> None:
    """The first has got it, whole; the second does not, and neither gets the snapshot of a damaged vault."""
    first, second = make("directory"), make("directory")
    shaken.changes = lambda begins, _offset: shaken.harm("flipped") if begins == 2 else None
    targets = [target(shaken.vault, each, scratch / "state", name) for name, each in (("a", first), ("b", second))]
    for outcome in sync(shaken.vault.layout, targets, connections=1):
        assert isinstance(outcome.error, IntegrityError)
    assert b"".join(first.get(segment_key(shaken.bad))) == shaken.vault.segments[shaken.bad]
    assert second.size_bytes(segment_key(shaken.bad)) is None
    assert [head.seq for head in heads(first)] == [head.seq for head in heads(second)] == [2]


class Watched(MemoryStore):
    """Remembers what it was asked to store."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked: list[str] = []

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        self.asked.append(key)
        super().put(key, source, if_absent=if_absent)


def test_no_further_remote_is_troubled_with_a_damaged_segment(shaken: Shaken, scratch: Path) -> None:
    stores = [Watched("memory:a"), Watched("memory:b")]
    shaken.harm("flipped")
    targets = [target(shaken.vault, each, scratch / "state", each.name[-1]) for each in stores]
    for outcome in sync(shaken.vault.layout, targets):
        assert isinstance(outcome.error, IntegrityError)
    asked = [segment_key(shaken.bad) in each.asked for each in stores]
    assert asked == [True, False]


class Breaking(MemoryStore):
    """Loses the connection in the middle of each segment, until it is told not to."""

    is_breaking = True

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        if self.is_breaking and key.startswith("segments/"):
            with opened(key, source) as file:
                assert len(file.read(SIZE // 2)) == SIZE // 2
            raise RemoteUnreachableError("the connection broke")
        super().put(key, source, if_absent=if_absent)


def test_one_of_several_remotes_breaks_in_the_middle(
    make: Callable[[str], Store], shaken: Shaken, scratch: Path
) -> None:
    breaking = Breaking("memory:breaking")
    stores = {"breaking": breaking, "disk": make("directory"), "cloud": make("s3")}
    targets = [target(shaken.vault, store, scratch / "state", name) for name, store in stores.items()]
    failed, disk, cloud = sync(shaken.vault.layout, targets)
    assert isinstance(failed.error, RemoteUnreachableError)
    assert disk.is_up_to_date
    assert cloud.is_up_to_date
    breaking.is_breaking = False
    assert sync(shaken.vault.layout, targets[:1])[0].is_up_to_date
    for name, store in stores.items():
        assert verify(store, read_share=1.0).problems == []
        back = Fabricated(scratch / f"back-{name}").layout
        back.header.unlink()
        fetch(store, back, heads(store)[-1])
        assert names(back.root) == [shaken.good]


def names(vault: Path) -> list[SegmentName]:
    return [SegmentName(path.stem) for path in sorted(vault.glob("segments/*/*.seg"))]
