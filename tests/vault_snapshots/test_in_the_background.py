"""Snapshots of a vault that is in use: the steps in an event loop, without a kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.lowlevel

from vault_snapshots.checking import problems
from vault_snapshots.sample import Sample, contents, write
from vaultfs.errors import NoSpaceError
from vaultfs.fuse.durability import Durability
from vaultfs.vault import snapshot_deleting, snapshot_making
from vaultfs.vault.api import Vault
from vaultfs.vault.snapshot_deleting import deleting
from vaultfs.vault.snapshot_making import creating
from vaultfs.vault.steps import Step, Want


class Busy:
    """Writes pairs of equal numbers into two files, the first one first, as a program would, and commits.

    Args:
        vault: open.
        durability: of the vault.
    """

    def __init__(self, vault: Vault, durability: Durability) -> None:
        self._vault = vault
        self._durability = durability
        self.rounds = 0

    async def write(self) -> None:
        fs = self._vault.filesystem
        inodes = []
        for name in (b"/left", b"/right"):
            write(self._vault, name, b"0")
            with self._vault.open(name) as file:
                inodes.append(fs.inodes.get(file.inode))
        while True:
            self.rounds += 1
            for inode in inodes:
                await self._durability.room_to_write()
                fs.write(inode, 0, str(self.rounds).encode())
                fs.write(inode, 100_000, os.urandom(20_000))
                await trio.lowlevel.checkpoint()

    async def commit(self) -> None:
        while True:
            await self._durability.commit()
            await trio.lowlevel.checkpoint()


@contextmanager
def opened(sample: Sample) -> Iterator[tuple[Vault, Durability]]:
    with sample.open() as vault:
        yield vault, Durability(vault.filesystem)


async def test_programs_go_on(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a snapshot holds is what was there at one moment, between two writes."""
    monkeypatch.setattr(snapshot_making, "READ_BYTES", 40 << 10)
    with opened(sample) as (vault, durability):
        busy = Busy(vault, durability)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy.write)
            nursery.start_soon(busy.commit)
            seen = []
            for _ in range(4):
                before = busy.rounds
                await durability.run(creating(vault.filesystem, ""))
                seen.append((before, busy.rounds))
            assert durability.gate is None
            nursery.cancel_scope.cancel()
        assert seen[-1][0] < seen[-1][1], "nothing was written while a snapshot was made"
        vault.commit()
        assert problems(vault.filesystem) == []
    for seq, (before, after) in enumerate(seen, 1):
        found = sample.snapshot_contents(seq)
        left, right = (int((found[name] or b"").split(b"\0")[0]) for name in (b"/left", b"/right"))
        assert left - right in {0, 1}
        assert before - 1 <= right
        assert left <= after


async def test_deleting_goes_on_beside_others(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_deleting, "SWEEP_CHUNKS", 10)
    with opened(sample) as (vault, durability):
        write(vault, b"/old", os.urandom(1 << 20))
        vault.create_snapshot()
        vault.remove(b"/old")
        vault.create_snapshot()
        kept = sample.snapshot_contents(2)
        busy = Busy(vault, durability)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy.write)
            nursery.start_soon(busy.commit)
            await durability.run(deleting(vault.filesystem, 1))
            nursery.cancel_scope.cancel()
        vault.commit()
        assert problems(vault.filesystem) == []
        assert sample.snapshot_contents(2) == kept


async def test_cancelled_at_any_step(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an unmount in the middle of it."""
    carry_out = Durability._carry_out
    for step in range(100):
        with opened(sample) as (vault, durability):
            done = 0
            is_over = True
            with trio.CancelScope() as scope:

                async def cancelling(
                    self: Durability, want: Want, step: int = step, scope: trio.CancelScope = scope
                ) -> None:
                    nonlocal done
                    if done == step:
                        scope.cancel()
                    done += 1
                    await carry_out(self, want)
                    await trio.lowlevel.checkpoint()

                monkeypatch.setattr(Durability, "_carry_out", cancelling)
                await durability.run(creating(vault.filesystem, ""))
            is_over = not scope.cancelled_caught
            monkeypatch.setattr(Durability, "_carry_out", carry_out)
            assert durability.gate is None
            await durability.commit()
            then = contents(vault)
        with sample.open() as vault:
            assert problems(vault.filesystem) == []
            assert contents(vault) == then
            assert len(vault.snapshots()) in ({1} if is_over else {0, 1})
            for info in vault.snapshots():
                vault.delete_snapshot(info.seq)
        if is_over:
            assert step >= 10
            return
    pytest.fail("it never ended")


async def test_a_checkpoint_commits_no_half_of_a_request(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done while a commit waits for the disk is in the next commit as a whole, and not in this checkpoint."""
    monkeypatch.setattr("vaultfs.vault.commit.CHECKPOINT_BYTES", 0)
    vault = sample.open()
    durability = Durability(vault.filesystem)
    sync_rows = durability._sync_rows

    async def sync_and_serve() -> None:
        await sync_rows()
        vault.mkdir(b"/later")

    monkeypatch.setattr(durability, "_sync_rows", sync_and_serve)
    await durability.commit()
    vault.filesystem.abandon()
    with sample.open() as vault:
        assert b"later" not in vault.listdir()
        assert len(contents(vault)) >= 6


async def test_a_failure_lets_programs_go_on(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out = Durability._carry_out

    async def failing(self: Durability, want: Want) -> None:
        if self.gate is not None and not isinstance(want, Step):
            raise NoSpaceError("on purpose")
        await carry_out(self, want)

    with opened(sample) as (vault, durability):
        write(vault, b"/new", b"x" * 50_000)
        monkeypatch.setattr(Durability, "_carry_out", failing)
        with pytest.raises(NoSpaceError, match="on purpose"):
            await durability.run(creating(vault.filesystem, ""))
        monkeypatch.undo()
        with trio.fail_after(60):
            await durability.pass_gate()
            await durability.commit()
        assert (await durability.run(creating(vault.filesystem, ""))).seq == 1
        assert problems(vault.filesystem) == []
