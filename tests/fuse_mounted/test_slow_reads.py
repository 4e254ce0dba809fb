"""Writes that wait for a slow disk, while others replace what is read, and its room is given back."""

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
from vaultfs.vault.api import Vault, open_vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.opening import create_vault
from vaultfs.vault.reading import ReadPlan

CHUNK_BYTES = 4096
KEY, _ = Secret.generate_recovery()
CONTEXT: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    """A vault with a file of two chunks, each in a segment of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "vault"
    create_vault(path, KEY, kdf=KdfParameters.weakest(), chunk_size_bytes=CHUNK_BYTES)
    for number in range(2):
        with open_vault(path, KEY) as vault, vault.open("/file", "r+b" if number else "wb") as file:
            file.pwrite(b"%d" % number * CHUNK_BYTES, number * CHUNK_BYTES)
    with open_vault(path, KEY) as vault:
        yield vault.filesystem


async def test_a_write_over_a_border_while_its_second_chunk_is_replaced(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    durability = Durability(fs)
    operations = VaultOperations(fs, durability, ReadAround(is_on=False))
    number = Vault(fs).stat("/file").st_ino
    handle = (await operations.open(number, os.O_RDWR, CONTEXT)).fh
    began, go_on = threading.Event(), threading.Event()
    real = ReadPlan.fill

    def slow_fill(self: ReadPlan) -> None:
        if not began.is_set():
            began.set()
            assert go_on.wait(20)
        real(self)

    monkeypatch.setattr(ReadPlan, "fill_nowait", lambda self: not self.wanted)
    monkeypatch.setattr(ReadPlan, "fill", slow_fill)
    written: list[int] = []

    async def write() -> None:
        written.append(await operations.write(handle, CHUNK_BYTES - 10, b"A" * 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.to_thread.run_sync(began.wait)
        # Another program replaces the second chunk, durably; its old segment holds nothing any more.
        await operations.write(handle, CHUNK_BYTES, b"n" * CHUNK_BYTES)
        await durability.commit()
        # The next commit is about to be completed when the disk has answered at last.
        durability.gate = gate = trio.Event()
        go_on.set()
        for _ in range(20):
            await trio.sleep(0.01)
        assert not fs.segments.is_leased
        assert not written
        before = len(list(fs.layout.segments.glob("??/*.seg")))
        while durability._tidy():
            pass
        assert len(list(fs.layout.segments.glob("??/*.seg"))) < before
        durability.gate = None
        gate.set()
    assert written == [20]
    wanted = b"0" * (CHUNK_BYTES - 10) + b"A" * 20 + b"n" * (CHUNK_BYTES - 10)
    monkeypatch.undo()
    inode = fs.inodes.get(number)  # type: ignore[arg-type]
    assert fs.read(inode, 0, 3 * CHUNK_BYTES) == wanted
    await durability.commit()
    assert fs.read(inode, 0, 3 * CHUNK_BYTES) == wanted
    await operations.release(handle)
