"""Every system call that changes the disk fails, once or for good: nothing acknowledged is lost, no byte is wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest

from vaultfs.errors import NoSpaceError, StorageError, VaultError
from vaultfs.ids import InodeId
from vaultfs.vault.api import Vault

from .faults import Faults
from .vaults import CHUNK_BYTES, Makers, Place, read, require_consistent, write

Tree = dict[bytes, bytes]


def noise(seed: int, size: int) -> bytes:
    """No chunk of it is zeros, or equal to one of another seed."""
    pattern = bytes((index * 31 + seed * 7 + 1) % 255 + 1 for index in range(251))
    return (seed.to_bytes(2, "little") + pattern * (size // 251 + 1))[:size]


def tree_of(vault: Vault) -> Tree:
    return {name: read(vault, "/" + name.decode()) for name in vault.listdir()}


@dataclass
class Work:
    """A workload on one vault that notes what must survive."""

    vault: Vault
    moments: list[Tree] = field(default_factory=list)
    acknowledged: int = 0

    def __post_init__(self) -> None:
        self.moments = [tree_of(self.vault)]

    def change(self, do: Callable[[], Any]) -> None:
        do()
        self.moments.append(tree_of(self.vault))

    def durable(self, how: Callable[[], None]) -> None:
        how()
        self.acknowledged = len(self.moments) - 1

    def run(self) -> None:
        vault, committer = self.vault, self.vault.filesystem.committer
        self.change(lambda: write(vault, "/a", noise(1, 3 * CHUNK_BYTES)))
        self.durable(committer.commit)
        self.change(lambda: write(vault, "/a", noise(2, 100), CHUNK_BYTES - 50))
        self.durable(committer.fsync)
        self.change(lambda: write(vault, "/b", noise(3, 5 * CHUNK_BYTES + 7)))
        self.change(lambda: vault.truncate("/a", CHUNK_BYTES + 9))
        self.durable(committer.commit)
        self.change(lambda: vault.rename("/b", "/c"))
        self.change(lambda: write(vault, "/c", noise(4, 2 * CHUNK_BYTES), CHUNK_BYTES))
        vault.filesystem.pipeline.seal_soon()
        self.durable(committer.fsync)
        self.change(lambda: vault.remove("/a"))
        self.change(lambda: write(vault, "/d", noise(5, CHUNK_BYTES + 1)))
        self.durable(committer.commit)
        vault.filesystem.files.sweep()
        self.durable(committer.commit)


def run_with(place: Place, faults: Faults) -> None:
    """The workload with a fault, a second try, and a crash; then look at what is left."""
    fs = place.open()
    vault = Vault(fs)
    work = Work(vault)
    with faults.injected():
        try:
            work.run()
        except VaultError as error:
            failed: VaultError | None = error
        else:
            failed = None
        if failed is not None:
            # Reading goes on, with what the program wrote, or with what was there before.
            work.moments.append(tree_of(vault))
            try:
                work.change(lambda: write(vault, "/again", noise(6, 2 * CHUNK_BYTES)))
                work.durable(fs.committer.commit)
            except VaultError:
                work.moments.append(tree_of(vault))
            else:
                assert not faults.is_for_good or faults.code == errno.ENOSPC, "a disk that is broken wrote something"
    old = place.root
    place.leave_copy()
    faults.lose(old, place.root)
    fs.abandon()
    with place.opened() as found:
        left = tree_of(found)
        allowed = work.moments[work.acknowledged :]
        assert left in allowed, f"{faults.fired}: not a moment since the last promise"
    require_consistent(place.root)


def fresh(makers: Makers, scratch: Path) -> Place:
    shutil.rmtree(scratch)
    scratch.mkdir()
    return makers.place(scratch)


def count_calls(makers: Makers, scratch: Path) -> list[str]:
    faults = Faults()
    run_with(fresh(makers, scratch), faults)
    return faults.calls


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("is_for_good", [False, True], ids=["once", "for-good"])
def test_every_call_fails(makers: Makers, scratch: Path, code: int, is_for_good: bool) -> None:
    calls = count_calls(makers, scratch)
    assert {"open", "pwritev", "fdatasync", "fsync", "link", "write"} <= set(calls)
    for number in range(len(calls)):
        faults = Faults(at=number, code=code, is_for_good=is_for_good)
        run_with(fresh(makers, scratch), faults)
        assert faults.fired or code == errno.ENOSPC


# --- each remedy for itself


def test_what_a_failed_sync_left_behind_is_sealed_again(place: Place) -> None:
    fs = place.open()
    vault = Vault(fs)
    faults = Faults(only=("fdatasync",))
    with faults.injected():
        write(vault, "/safe", noise(1, 3 * CHUNK_BYTES))
        fs.committer.commit()
        write(vault, "/a", noise(2, 3 * CHUNK_BYTES))
        before = {row.id for row in fs.chunk_rows.segments()}
        faults.at = len(faults.calls)
        fs.committer.commit()
    assert faults.fired
    inode = vault.stat("/a").st_ino
    places = fs.chunk_rows.places(InodeId(inode), 0, 9)
    assert len(places) == 3
    assert not before & {each.segment for each in places}, "the data lies where the sync failed"
    assert read(vault, "/a") == noise(2, 3 * CHUNK_BYTES)
    old = place.root
    place.leave_copy()
    faults.lose(old, place.root)
    fs.abandon()
    with place.opened() as found:
        assert tree_of(found) == {b"safe": noise(1, 3 * CHUNK_BYTES), b"a": noise(2, 3 * CHUNK_BYTES)}
    require_consistent(place.root)


def test_a_second_failed_sync_makes_the_vault_read_only(place: Place) -> None:
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/a", noise(2, 3 * CHUNK_BYTES))
    with Faults(at=0, only=("fdatasync",), is_for_good=True).injected():
        with pytest.raises(StorageError):
            fs.committer.commit()
        with pytest.raises(StorageError):
            fs.committer.fsync()
        with pytest.raises(StorageError):
            write(vault, "/b", b"more")
        assert read(vault, "/a") == noise(2, 3 * CHUNK_BYTES)
    # That the disk works again changes nothing: what it lost is not known.
    with pytest.raises(StorageError):
        write(vault, "/b", b"more")
    with pytest.raises(StorageError):
        fs.committer.fsync()
    place.crash(fs)
    with place.opened() as found:
        assert found.listdir() == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_append_goes_into_another_segment(place: Place, code: int) -> None:
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/safe", noise(1, 3 * CHUNK_BYTES))
    fs.committer.commit()
    before = {row.id for row in fs.chunk_rows.segments()}
    faults = Faults(at=0, code=code, only=("pwritev",))
    with faults.injected():
        write(vault, "/a", noise(2, 3 * CHUNK_BYTES))
        fs.committer.commit()
        write(vault, "/b", noise(3, 3 * CHUNK_BYTES))
        fs.committer.commit()
    assert faults.fired
    segments = {each.segment for each in fs.chunk_rows.places(InodeId(vault.stat("/a").st_ino), 0, 9)}
    assert len(segments) == 1
    assert not segments & before
    place.crash(fs)
    with place.opened() as found:
        assert [read(found, name) for name in ("/safe", "/a", "/b")] == [
            noise(number, 3 * CHUNK_BYTES) for number in (1, 2, 3)
        ]
    require_consistent(place.root)


@pytest.mark.parametrize("failing", ["COMMIT", "INSERT", "UPDATE", "DELETE"])
def test_a_database_that_fails_stops_the_vault(place: Place, failing: str) -> None:
    """Whatever statement fails for the disk's sake: nothing half done is ever committed."""
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/a", noise(1, 3 * CHUNK_BYTES))
    write(vault, "/b", noise(1, 3 * CHUNK_BYTES))
    fs.committer.commit()
    safe = tree_of(vault)

    def fail(_: object, sql: str, __: object) -> bool:
        if sql.startswith(failing):
            raise apsw.IOError("disk I/O error")
        return True

    fs.database._connection.exec_trace = fail

    def work() -> None:
        write(vault, "/a", noise(2, 2 * CHUNK_BYTES))
        vault.rename("/a", "/b")
        vault.remove("/b")
        vault.commit()

    with pytest.raises(StorageError):
        work()
    fs.database._connection.exec_trace = None
    with pytest.raises(StorageError, match="read-only"):
        write(vault, "/c", b"more")
    with pytest.raises(StorageError, match="read-only"):
        fs.committer.fsync()
    with pytest.raises(StorageError, match="read-only"):
        fs.close()
    with place.opened() as found:
        assert tree_of(found) == safe
    require_consistent(place.root)


# --- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "vaultfs-test", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_full_disk(makers: Makers, small_disk: Path) -> None:
    """Writers are told; what was acknowledged stays; removing works and gives room back, and then writing works."""
    place = makers.place(small_disk, chunk_size=128 << 10)
    piece = 512 << 10
    with place.opened() as vault:
        written: list[int] = []

        def fill() -> None:
            for number in range(1000):
                write(vault, f"/{number}", noise(number, piece))
                vault.commit()
                written.append(number)

        with pytest.raises(NoSpaceError):
            fill()
        assert len(written) * piece > 12 << 20, "most of the disk can be used"
        vault.commit()
        assert all(read(vault, f"/{number}") == noise(number, piece) for number in written)
        for number in written[::2]:
            vault.remove(f"/{number}")
        vault.filesystem.files.sweep(10_000)
        vault.filesystem.pipeline.seal()
        for _ in range(3):
            vault.commit()
        for number in range(1000, 1008):
            write(vault, f"/{number}", noise(number, piece))
            vault.commit()
        kept = [*written[1::2], *range(1000, 1008)]
    with place.opened() as vault:
        assert all(read(vault, f"/{number}") == noise(number, piece) for number in kept)
    require_consistent(place.root)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_disk_that_others_fill_to_the_last_byte(makers: Makers, small_disk: Path) -> None:
    place = makers.place(small_disk)
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/safe", noise(1, 100_000))
    vault.commit()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))

    def write_durably() -> None:
        write(vault, "/more", noise(2, 3 * CHUNK_BYTES))
        vault.commit()

    with pytest.raises(NoSpaceError):
        write_durably()
    assert read(vault, "/safe") == noise(1, 100_000)
    filler.unlink()
    write_durably()
    fs.close()
    with place.opened() as vault:
        assert read(vault, "/more") == noise(2, 3 * CHUNK_BYTES)
    require_consistent(place.root)
