"""Compaction beside the requests of a mounted vault; without the mount, as FUSE plays no part in it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from vault_compaction.vaults import EAGER, KEY, read, require_exact_counts, sealed, settle, thinned, write
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.errors import NoSpaceError, StorageError
from vaultfs.fuse import compacting
from vaultfs.fuse.compacting import BackgroundCompaction
from vaultfs.fuse.durability import Durability
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_writer import SegmentWriter
from vaultfs.vault.api import Vault
from vaultfs.vault.compaction import CompactionStep, Compactor
from vaultfs.vault.opening import load_header, open_filesystem
from vaultfs.vault.rotation import rotate


class Counter:
    """Requests as a test makes them up."""

    def __init__(self) -> None:
        self.requests = 0


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "Compactor", lambda fs, _: Compactor(fs, EAGER))


def few_left(vault: Vault) -> set[int]:
    return {row.id for row in sealed(vault.filesystem).values() if row.live < 0.3 * row.size}


async def until_idle(background: BackgroundCompaction) -> None:
    while await background.step():
        pass


async def test_it_works_in_steps_beside_others(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    content = bytearray(thinned(vault, data))
    old = few_left(vault)
    background = BackgroundCompaction(fs, Durability(fs), Counter())
    steps = 0
    while await background.step():
        steps += 1
        piece = steps.to_bytes(4, "little")
        content[steps * 40_000 : steps * 40_000 + 4] = piece
        write(vault, "/file", piece, steps * 40_000)
    assert steps >= len(old) >= 2
    settle(fs)
    assert not old & sealed(fs).keys()
    require_exact_counts(fs)
    assert read(vault, "/file") == bytes(content)


async def test_no_segment_is_deleted_while_its_chunks_are_read(
    vault: Vault, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = vault.filesystem
    thinned(vault, data)
    leased = []
    real = CompactionStep.read

    def look(step: CompactionStep) -> None:
        leased.append(fs.segments.is_leased)
        real(step)

    monkeypatch.setattr(CompactionStep, "read", look)
    await until_idle(BackgroundCompaction(fs, Durability(fs), Counter()))
    assert leased
    assert all(leased)
    assert not fs.segments.is_leased


async def test_it_waits_for_an_idle_moment_and_does_a_little_without(
    vault: Vault, data: bytes, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = vault.filesystem
    thinned(vault, data)
    counter = Counter()
    background = BackgroundCompaction(fs, Durability(fs), counter)
    done: list[float] = []

    async def step() -> bool:
        done.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        return True

    monkeypatch.setattr(background, "step", step)
    start = trio.current_time()

    async def always_busy() -> None:
        while trio.current_time() - start < 100:
            counter.requests += 1
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(background.run)
        await always_busy()
        nursery.cancel_scope.cancel()
    # The moments that the tenth of a second leaves count for nothing: about one step in ten seconds.
    assert 5 <= len(done) <= 12


async def test_a_full_disk_is_tried_again_later(
    vault: Vault, data: bytes, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = vault.filesystem
    content = thinned(vault, data)
    old = few_left(vault)
    background = BackgroundCompaction(fs, Durability(fs), Counter())
    step = background.step
    failed_at: list[float] = []
    was_tried_again = trio.Event()

    async def watched() -> bool:
        try:
            return await step()
        except NoSpaceError:
            failed_at.append(trio.current_time())
            if len(failed_at) == 3:
                was_tried_again.set()
            raise

    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> int:
            raise NoSpaceError("no space")

        patch.setattr(SegmentWriter, "append", fail)
        patch.setattr(background, "step", watched)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background.run)
            await was_tried_again.wait()  # not for a time: the clock jumps while a thread works for a step
            nursery.cancel_scope.cancel()
    assert all(later - earlier >= compacting.FULL_PAUSE_S for earlier, later in itertools.pairwise(failed_at))
    assert fs.committer.failure is None
    await until_idle(background)
    settle(fs)
    assert not old & sealed(fs).keys()
    assert read(vault, "/file") == content


async def test_a_vault_that_failed_is_left_alone(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    thinned(vault, data)
    fs.committer.failure = StorageError("broken")
    await BackgroundCompaction(fs, Durability(fs), Counter()).run()
    assert not fs.chunks.moves
    fs.committer.failure = None


async def test_it_stays_away_from_a_snapshot_that_is_made(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    thinned(vault, data)
    background = BackgroundCompaction(fs, Durability(fs), Counter())
    fs.is_snapshot_busy = True
    assert not await background.step()
    fs.is_snapshot_busy = False
    assert await background.step()


async def test_a_rotation_goes_on_in_the_background_and_ends(path: Path, data: bytes) -> None:
    fs = open_filesystem(path, KEY)
    write(Vault(fs), "/file", data)
    fs.close()
    rotate(path, KEY, kdf=KdfParameters.weakest())
    fs = open_filesystem(path, KEY)
    durability = Durability(fs)
    background = BackgroundCompaction(fs, durability, Counter())
    assert await background.step()
    assert load_header(VaultLayout(path)).unlock(KEY).epochs == (1, 2)
    fs.close()  # in the middle of it
    fs = open_filesystem(path, KEY)
    background = BackgroundCompaction(fs, Durability(fs), Counter())
    await until_idle(background)
    settle(fs)  # gives back what the steps have emptied, as others do in a mounted vault
    await until_idle(background)
    assert load_header(VaultLayout(path)).unlock(KEY).epochs == (2,)
    assert read(Vault(fs), "/file") == data
    fs.close()
    fs = open_filesystem(path, KEY)
    assert read(Vault(fs), "/file") == data
    fs.close()


async def test_overwriting_without_a_pause_does_not_fill_the_disk(
    vault: Vault, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not needed any more is given back at once when it is much, not only in an idle moment."""
    monkeypatch.setattr("vaultfs.vault.commit.URGENT_RECLAIM_BYTES", 1 << 20)
    fs = vault.filesystem
    durability = Durability(fs)
    counter = Counter()
    write(vault, "/file", data)
    largest = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durability.sweep_when_idle, counter)
        for number in range(1, 41):
            counter.requests += 1
            write(vault, "/file", bytes([number]) + os.urandom(len(data) // 2 - 1), number % 2 * len(data) // 2)
            await durability.commit()
            await trio.sleep(0.005)
            largest = max(largest, sum(each.stat().st_blocks * 512 for each in fs.layout.segments.glob("**/*.seg")))
        nursery.cancel_scope.cancel()
    # What was written last, what it replaced, and the segment being written; 60 MiB were written in all.
    assert largest < 5 * len(data)
    require_exact_counts(fs)
