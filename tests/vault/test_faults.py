"""Every system call that changes the disk fails, once or for good: nothing acknowledged is lost, no byte is wrong."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vaultfs.errors import VaultError
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
