"""More segments than may be open at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode

from .vaults import CHUNK_BYTES, Place

SESSIONS = 12
OPEN = 4


@pytest.fixture
def content() -> bytes:
    return os.urandom(SESSIONS * CHUNK_BYTES)


@pytest.fixture
def fs(place: Place, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    """A file with each chunk in a segment of its own."""
    for number in range(SESSIONS):
        with place.opened() as vault, vault.open("/file", "r+b" if number else "wb") as file:
            file.pwrite(content[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES], number * CHUNK_BYTES)
    monkeypatch.setattr("vaultfs.vault.segments.OPEN_SEGMENTS", OPEN)
    fs = place.open()
    try:
        yield fs
    finally:
        fs.close()


@pytest.fixture
def inode(fs: FileSystem) -> Inode:
    return fs.inodes.get(Vault(fs).stat("/file").st_ino)  # type: ignore[arg-type]


def descriptors() -> int:
    count = 0
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            count += os.readlink(f"/proc/self/fd/{each}").endswith(".seg")
    return count


def test_a_read_that_needs_more_than_may_be_open(fs: FileSystem, inode: Inode, content: bytes) -> None:
    assert len(list(fs.layout.segments.glob("??/*.seg"))) == SESSIONS
    assert fs.read(inode, 0, len(content)) == content
    assert descriptors() <= OPEN + 1


def test_a_write_whose_first_chunk_is_in_the_oldest_open_segment(fs: FileSystem, inode: Inode, content: bytes) -> None:
    for border in range(1, SESSIONS):
        for index in range(border - 1, border - 1 + OPEN):  # the border's first chunk is now the one to go
            fs.read(inode, index % SESSIONS * CHUNK_BYTES, 1)
        planned = fs.files.plan_write(inode, border * CHUNK_BYTES - 1, 2)
        for each in planned:
            each.plan.fill()
        for each in planned:
            fs.files.adopt(inode, each, has_waited=True)
        fs.files.write(inode, border * CHUNK_BYTES - 1, b"xx")
    wanted = bytearray(content)
    for border in range(1, SESSIONS):
        wanted[border * CHUNK_BYTES - 1 : border * CHUNK_BYTES + 1] = b"xx"
    assert fs.read(inode, 0, len(content)) == wanted


def test_what_is_forgotten_can_still_be_read_by_who_planned_to(fs: FileSystem, inode: Inode, content: bytes) -> None:
    plan = fs.files.plan_read(inode, 0, CHUNK_BYTES)
    (place,) = fs.chunk_rows.places(inode.id, 0, 0)
    fs.segments.forget(place.segment)
    plan.fill()
    assert plan.result == content[:CHUNK_BYTES]
