"""Writing into chunks of a segment: what is read first becomes what is written to, unless it changed meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from vaultfs.errors import NoSpaceError
from vaultfs.vault import writeback
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode

from .vaults import CHUNK_BYTES, Place, require_consistent, write

CHUNKS = 8


@pytest.fixture
def content() -> bytes:
    return os.urandom(CHUNKS * CHUNK_BYTES)


@pytest.fixture
def fs(place: Place, content: bytes) -> Iterator[FileSystem]:
    fs = place.open()
    write(Vault(fs), "/file", content)
    fs.committer.commit()
    try:
        yield fs
    finally:
        fs.close()
    require_consistent(place.root)


@pytest.fixture
def inode(fs: FileSystem) -> Inode:
    return fs.inodes.get(Vault(fs).stat("/file").st_ino)  # type: ignore[arg-type]


def rewrite(fs: FileSystem, inode: Inode, offset: int, data: bytes) -> int:
    """As a mounted vault does it; return how many chunks were read for it."""
    planned = fs.files.plan_write(inode, offset, len(data))
    for each in planned:
        if not each.plan.fill_nowait():
            each.plan.fill()
        fs.files.adopt(inode, each, has_waited=False)
    fs.files.write(inode, offset, data)
    return len(planned)


@pytest.mark.parametrize(
    ("offset", "length", "reads"),
    [
        (10, 100, 1),
        (0, CHUNK_BYTES, 0),
        (CHUNK_BYTES - 1, 2, 2),
        (100, 3 * CHUNK_BYTES, 2),
        (CHUNK_BYTES, 2 * CHUNK_BYTES + 1, 1),
        (CHUNKS * CHUNK_BYTES - 5, 5, 1),
        (CHUNKS * CHUNK_BYTES - 5, 50, 1),
        (CHUNKS * CHUNK_BYTES + 5, 50, 0),
    ],
)
def test_only_the_outer_chunks_are_read(
    fs: FileSystem, inode: Inode, content: bytes, offset: int, length: int, reads: int
) -> None:
    data = os.urandom(length)
    assert rewrite(fs, inode, offset, data) == reads
    wanted = bytearray(content.ljust(offset + length, b"\0"))
    wanted[offset : offset + length] = data
    assert fs.read(inode, 0, 1 << 20) == wanted
    assert rewrite(fs, inode, offset, data) == 0  # it is dirty now, or was handed on
    fs.committer.commit()
    assert fs.read(inode, 0, 1 << 20) == wanted


def overwrite(fs: FileSystem, inode: Inode) -> None:
    fs.files.write(inode, 0, b"\x01" * CHUNK_BYTES)


def overwrite_durably(fs: FileSystem, inode: Inode) -> None:
    overwrite(fs, inode)
    fs.committer.commit()


def write_a_part(fs: FileSystem, inode: Inode) -> None:
    fs.files.write(inode, 50, b"part")


def cut_away(fs: FileSystem, inode: Inode) -> None:
    fs.files.truncate(inode, 0)


def cut_within(fs: FileSystem, inode: Inode) -> None:
    fs.files.truncate(inode, 60)


@pytest.mark.parametrize("change", [overwrite, overwrite_durably, write_a_part, cut_away, cut_within])
def test_what_changed_while_it_was_read_is_not_put_back(
    fs: FileSystem, inode: Inode, change: Callable[[FileSystem, Inode], None]
) -> None:
    (planned,) = fs.files.plan_write(inode, 100, 4)
    planned.plan.fill()
    change(fs, inode)
    wanted = bytearray(fs.read(inode, 0, 1 << 20).ljust(104, b"\0"))
    wanted[100:104] = b"data"
    fs.files.adopt(inode, planned, has_waited=True)
    fs.files.write(inode, 100, b"data")
    assert fs.read(inode, 0, 1 << 20) == wanted
    fs.committer.commit()
    assert fs.read(inode, 0, 1 << 20) == wanted


def test_adopted_chunks_count_as_dirty(fs: FileSystem, inode: Inode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "DIRTY_LIMIT_BYTES", 3 * CHUNK_BYTES)
    most = 0
    for index in range(CHUNKS):
        rewrite(fs, inode, index * CHUNK_BYTES + 7, b"x")
        most = max(most, fs.writeback.dirty_bytes)
    assert most <= 4 * CHUNK_BYTES
    fs.committer.commit()
    assert fs.writeback.dirty_bytes == 0


def test_a_full_disk_takes_nothing_more(fs: FileSystem, inode: Inode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails before anything of it is taken."""
    rewrite(fs, inode, 7, b"x")
    (planned,) = fs.files.plan_write(inode, CHUNK_BYTES + 7, 1)
    planned.plan.fill()
    before = bytes(fs.read(inode, 0, 1 << 20))

    def full(*_: object) -> None:
        raise NoSpaceError("full")

    with monkeypatch.context() as patch:
        patch.setattr(writeback, "DIRTY_LIMIT_BYTES", 0)
        patch.setattr(fs.pipeline, "submit", full)
        with pytest.raises(NoSpaceError):
            fs.files.adopt(inode, planned, has_waited=False)
    assert fs.read(inode, 0, 1 << 20) == before
