"""What is put into the kernel's page cache unasked must be what is in the file now."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.fuse.durability import Durability
from vaultfs.fuse.operations import VaultOperations
from vaultfs.fuse.read_around import ReadAround
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.opening import create_vault, open_filesystem
from vaultfs.vault.reading import ReadPlan

CHUNK_BYTES = 128 << 10
KEY, _ = Secret.generate_recovery()


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    create_vault(tmp_path / "vault", KEY, kdf=KdfParameters.weakest())
    fs = open_filesystem(tmp_path / "vault", KEY)
    try:
        yield fs
    finally:
        fs.abandon()


class Offers(ReadAround):
    """Keeps what it is offered."""

    def __init__(self) -> None:
        super().__init__(is_on=True)
        self.made: list[tuple[int, bytes]] = []

    def offer(self, inode: int, base: int, data: bytes, start: int, end: int) -> None:
        self.made.append((base, bytes(data)))


@pytest.fixture
def ready(fs: FileSystem) -> tuple[VaultOperations, Offers, int]:
    """A file of one chunk of ``o``, and the handlers."""
    vault = Vault(fs)
    with vault.open("/a", "wb") as file:
        file.write(b"o" * CHUNK_BYTES)
    vault.commit()
    offers = Offers()
    return VaultOperations(fs, Durability(fs), offers), offers, vault.stat("/a").st_ino


CONTEXT: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)


async def test_the_rest_of_a_chunk_is_offered(ready: tuple[VaultOperations, Offers, int]) -> None:
    operations, offers, number = ready
    handle = (await operations.open(number, os.O_RDONLY, CONTEXT)).fh
    assert bytes(await operations.read(handle, 4096, 4096)) == b"o" * 4096
    assert offers.made == [(0, b"o" * CHUNK_BYTES)]


async def test_nothing_is_offered_while_somebody_may_write(ready: tuple[VaultOperations, Offers, int]) -> None:
    operations, offers, number = ready
    handle = (await operations.open(number, os.O_RDONLY, CONTEXT)).fh
    await operations.open(number, os.O_RDWR, CONTEXT)
    await operations.read(handle, 4096, 4096)
    assert offers.made == []


async def test_a_chunk_that_was_replaced_while_it_was_read_is_not_offered(
    ready: tuple[VaultOperations, Offers, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk reads the old chunk, and meanwhile a program opens, writes, syncs and closes the file."""
    operations, offers, number = ready
    began, go_on = threading.Event(), threading.Event()
    real = ReadPlan.fill

    def slow_fill(self: ReadPlan) -> None:
        real(self)
        began.set()
        go_on.wait(20)

    monkeypatch.setattr(ReadPlan, "fill_nowait", lambda self: not self.wanted)
    monkeypatch.setattr(ReadPlan, "fill", slow_fill)
    reader = (await operations.open(number, os.O_RDONLY, CONTEXT)).fh
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operations.read, reader, 4096, 4096)
            await trio.to_thread.run_sync(began.wait)
            writer = (await operations.open(number, os.O_RDWR, CONTEXT)).fh
            await operations.write(writer, 0, b"n" * CHUNK_BYTES)
            await operations.durability.commit()
            await operations.release(writer)
            go_on.set()
    finally:
        go_on.set()
    assert all(data == b"n" * CHUNK_BYTES for _, data in offers.made), "the page cache would get the old bytes back"
