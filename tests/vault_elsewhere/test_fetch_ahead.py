"""Fetching ahead of a copy: what it needs, in its order, not too early, in several threads, and no harm if it fails."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vault_compaction.vaults import KEY

import vaultfs
from vault_elsewhere.sources import Elsewhere
from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import SegmentId, SegmentName
from vaultfs.storage.segment_cache import BLOCK_BYTES
from vaultfs.vault import fetch_ahead
from vaultfs.vault.api import Vault
from vaultfs.vault.fetch_ahead import RUN_BLOCKS, FetchAhead, Run, needed_runs
from vaultfs.vault.inodes import Inode
from vaultfs.vault.transfer_out import get, total_bytes

PATIENCE_S = 30
MIB = 1 << 20


@pytest.fixture
def away(path: Path) -> Iterator[tuple[Vault, Elsewhere]]:
    """A vault whose segments are all elsewhere: a tree, and a file that shares its segments."""
    with vaultfs.open_vault(path, KEY) as vault:
        vault.makedirs("/tree/deep/below")
        for name, size in (("/tree/z", 5 * MIB), ("/tree/deep/a", 3 * MIB), ("/tree/deep/below/b", 100_000)):
            with vault.open(name, "wb") as file:
                file.write(os.urandom(size))
        with vault.open("/other", "wb") as file:
            file.write(os.urandom(2 * MIB))
        with vault.open("/tree/last", "wb") as file:
            file.write(os.urandom(400_000))
            file.seek(40 * MIB)
            file.write(b"after a hole")
        vault.link("/tree/z", "/tree/deep/again")
        vault.symlink("z", "/tree/link")
        vault.filesystem.committer.commit()
    source = Elsewhere.of(path)
    shutil.rmtree(path / "segments")
    (path / "segments" / "open").mkdir(parents=True)
    with vaultfs.open_vault(path, KEY, read_only=True, source=source) as vault:
        yield vault, source


def top(vault: Vault, path: str) -> Inode:
    return vault.filesystem.inodes.get(vault.stat(path).st_ino)  # type: ignore[arg-type]


def blocks_of(vault: Vault, path: str) -> list[tuple[SegmentId, int]]:
    """The blocks of a file's chunks, in their order, some more than once."""
    places = vault.filesystem.chunk_rows.places(vault.stat(path).st_ino, 0, 1 << 20)  # type: ignore[arg-type]
    return [
        (place.segment, block)
        for place in places
        for block in (place.offset // BLOCK_BYTES, (place.offset + place.stored - 1) // BLOCK_BYTES)
    ]


def flat(runs: list[Run]) -> list[tuple[SegmentId, int]]:
    return [(run.segment, block) for run in runs for block in range(run.first, run.last + 1)]


def settled(source: Elsewhere, count: int) -> None:
    """Wait until so many bytes were asked for, and see that nothing more is."""
    deadline = time.monotonic() + PATIENCE_S
    while source.fetched_bytes < count and time.monotonic() < deadline:
        time.sleep(0.005)
    assert source.fetched_bytes == count


@pytest.mark.parametrize("most", [1, RUN_BLOCKS])
def test_what_a_copy_needs(away: tuple[Vault, Elsewhere], monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Each block once, in the order of the copy: names as they were made, directories at once, a linked file once."""
    monkeypatch.setattr(fetch_ahead, "RUN_BLOCKS", most)
    vault, _ = away
    runs = list(needed_runs(vault.filesystem, [top(vault, "/tree"), top(vault, "/other")]))
    names = [entry.name for entry in vault.filesystem.tree.entries(top(vault, "/tree/deep").id)]
    assert names == [b"below", b"a", b"again"], "or the order is another"
    order = ["/tree/deep/below/b", "/tree/deep/a", "/tree/deep/again", "/tree/last", "/other"]
    expected = [block for path in order for block in blocks_of(vault, path)]
    assert flat(runs) == list(dict.fromkeys(expected))
    assert max(run.last - run.first for run in runs) == min(most, 2) - 1, "segments are small here"
    assert [run.position for run in runs] == sorted(run.position for run in runs)
    tree_bytes = total_bytes(vault.filesystem, top(vault, "/tree"))
    assert tree_bytes <= runs[-1].position < tree_bytes + 2 * MIB, "in bytes of what is copied"
    alone = list(needed_runs(vault.filesystem, [top(vault, "/other")]))
    assert (alone[0].position, flat(alone)) == (0, list(dict.fromkeys(blocks_of(vault, "/other"))))


def test_blocks_of_different_segments_are_not_side_by_side(
    away: tuple[Vault, Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [(SegmentId(1), 0, 0), (SegmentId(2), 1, 10), (SegmentId(2), 2, 20), (SegmentId(2), 4, 30)]
    monkeypatch.setattr(fetch_ahead, "_needed_blocks", lambda fs, tops: iter(blocks))
    runs = list(needed_runs(away[0].filesystem, []))
    assert runs == [Run(SegmentId(1), 0, 0, 0), Run(SegmentId(2), 1, 2, 10), Run(SegmentId(2), 4, 4, 30)]


def test_the_copy_asks_for_nothing_more(away: tuple[Vault, Elsewhere], tmp_path: Path) -> None:
    vault, source = away
    tops = [top(vault, "/tree")]
    wanted = sum(
        min((run.last + 1) * BLOCK_BYTES, vault.filesystem.segments.get(run.segment).reader.size_bytes())
        - run.first * BLOCK_BYTES
        for run in needed_runs(vault.filesystem, tops)
    )
    with FetchAhead(vault.filesystem, tops, 3, lambda: None):
        settled(source, wanted)
        get(vault, b"/tree", str(tmp_path / "out"))
    assert source.fetched_bytes == wanted
    with vault.open("/tree/z") as file:
        assert (tmp_path / "out" / "z").read_bytes() == file.read()


def test_not_too_early(away: tuple[Vault, Elsewhere], monkeypatch: pytest.MonkeyPatch) -> None:
    """As far ahead as the window, measured in what was copied."""
    monkeypatch.setattr(fetch_ahead, "WINDOW_BYTES", MIB)
    vault, source = away
    tops = [top(vault, "/tree"), top(vault, "/other")]
    runs = list(needed_runs(vault.filesystem, tops))
    sizes = [
        min((run.last + 1) * BLOCK_BYTES, vault.filesystem.segments.get(run.segment).reader.size_bytes())
        - run.first * BLOCK_BYTES
        for run in runs
    ]
    with FetchAhead(vault.filesystem, tops, 2, lambda: None) as ahead:
        for position in (0, 100_000, 4 * MIB, 90 * MIB):
            ahead.reached(position)
            near = [size for run, size in zip(runs, sizes, strict=True) if run.position <= position + MIB]
            settled(source, sum(near))
            assert len(near) < len(runs) or position == 90 * MIB


def test_several_at_once(away: tuple[Vault, Elsewhere], monkeypatch: pytest.MonkeyPatch) -> None:
    vault, _ = away
    under_way, both = threading.Semaphore(0), threading.Event()
    real = Elsewhere.fetch

    def fetch(self: Elsewhere, name: SegmentName, offset: int, length: int) -> bytes:
        under_way.release()
        assert both.wait(PATIENCE_S)
        return real(self, name, offset, length)

    monkeypatch.setattr(Elsewhere, "fetch", fetch)
    with FetchAhead(vault.filesystem, [top(vault, "/tree")], 2, both.set):
        for _ in range(2):
            assert under_way.acquire(timeout=PATIENCE_S)  # neither has an answer yet
        both.set()


def test_a_failure_is_left_to_the_copy(away: tuple[Vault, Elsewhere], tmp_path: Path) -> None:
    vault, source = away
    source.is_down = True
    tops = [top(vault, "/tree")]
    runs = list(needed_runs(vault.filesystem, tops))
    with FetchAhead(vault.filesystem, tops, 1, lambda: None):
        deadline = time.monotonic() + PATIENCE_S
        while len(source.requests) < len(runs) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(source.requests) == len(runs), "one that fails does not end the thread"
        with pytest.raises(RemoteUnreachableError):
            get(vault, b"/tree", str(tmp_path / "out"))
        source.is_down = False
        get(vault, b"/tree", str(tmp_path / "out"))


@pytest.mark.parametrize("is_silent", [False, True])
def test_interrupted(away: tuple[Vault, Elsewhere], monkeypatch: pytest.MonkeyPatch, is_silent: bool) -> None:
    """Requests that are under way are hurried, and what has no answer is not waited for."""
    vault, source = away
    released, under_way = threading.Event(), threading.Event()
    real = Elsewhere.fetch

    def fetch(self: Elsewhere, name: SegmentName, offset: int, length: int) -> bytes:
        under_way.set()
        released.wait(PATIENCE_S)
        return real(self, name, offset, length)

    monkeypatch.setattr(Elsewhere, "fetch", fetch)
    if is_silent:
        monkeypatch.setattr(fetch_ahead, "GRACE_S", 0.01)
    ahead = FetchAhead(vault.filesystem, [top(vault, "/tree")], 1, (lambda: None) if is_silent else released.set)
    ahead.__enter__()
    assert under_way.wait(PATIENCE_S)
    ahead.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("vaultfs-ahead")]
    assert len(threads) == is_silent
    assert all(thread.daemon for thread in threads)
    released.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(source.requests) == 1, "what was planned besides is not begun"
