from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from vault_keys.crashing import survives_every_crash

import vaultfs
from vault_compaction.vaults import (
    EAGER,
    KEY,
    compacted,
    next_step,
    read,
    require_exact_counts,
    sealed,
    settle,
    thinned,
    write,
)
from vaultfs.errors import ChunkIntegrityError, NoSpaceError, StorageError
from vaultfs.ids import ChunkId, SegmentId, SegmentName, SnapshotSeq
from vaultfs.metadata.compaction_rows import Policy
from vaultfs.storage.segment_writer import SegmentWriter
from vaultfs.vault.api import Vault
from vaultfs.vault.compaction import STEP_BYTES, STEP_CHUNKS, Compactor
from vaultfs.vault.opening import open_filesystem
from vaultfs.vault.segment_index import read_index
from vaultfs.vault.snapshot_deleting import delete_snapshot
from vaultfs.vault.snapshot_making import create_snapshot


def test_segments_with_little_left_are_written_again_and_deleted(path: Path, vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    content = thinned(vault, data)
    old = {row.id for row in sealed(fs).values() if row.live < 0.3 * row.size}
    assert len(old) >= 2
    compacted(fs)
    assert not old & sealed(fs).keys()
    files = {file.stem for file in path.glob("segments/*/*.seg")} - {row.token for row in fs.chunk_rows.segments()}
    assert files == {row.name for row in sealed(fs).values()}
    require_exact_counts(fs)
    assert read(vault, "/file") == content


def test_full_segments_are_left_alone(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    write(vault, "/file", data)
    settle(fs)
    before = sealed(fs)
    assert Compactor(fs, EAGER).plan() is None
    compacted(fs)
    assert sealed(fs) == before


def test_what_no_hole_can_give_back_is_given_back_by_writing_again(vault: Vault) -> None:
    """Chunks smaller than a block die one by one; the segment stays more than half alive, and no hole fits."""
    fs = vault.filesystem
    contents = {f"/{number}": os.urandom(3000) for number in range(400)}
    for name, content in contents.items():
        write(vault, name, content)
    settle(fs)
    fs.pipeline.seal()
    settle(fs)
    for number in range(0, 400, 3):
        vault.remove(f"/{number}")
        del contents[f"/{number}"]
    while fs.files.sweep():
        pass
    settle(fs)
    wasting = [row for row in sealed(fs).values() if row.size - row.holes - row.live > row.size // 4]
    assert wasting
    assert all(row.live > row.size // 2 for row in wasting)
    compacted(fs)
    assert not {row.id for row in wasting} & sealed(fs).keys()
    assert {name: read(vault, name) for name in contents} == contents


def test_many_small_segments_become_one(path: Path) -> None:
    contents = {}
    for number in range(8):
        with vaultfs.open_vault(path, KEY) as vault:
            contents[f"/{number}"] = os.urandom(5000)
            write(vault, f"/{number}", contents[f"/{number}"])
    fs = open_filesystem(path, KEY)
    vault = Vault(fs)
    assert len(sealed(fs)) == 8
    compacted(fs, EAGER._replace(small=1 << 20, most_small=8))
    assert len(sealed(fs)) == 8
    compacted(fs, EAGER._replace(small=1 << 20, most_small=7))
    vault.close()
    with vaultfs.open_vault(path, KEY) as again:
        assert len(sealed(again.filesystem)) == 1
        assert {name: read(again, name) for name in contents} == contents


def test_the_new_segment_says_whose_its_chunks_are(path: Path, vault: Vault, data: bytes) -> None:
    """As the old one did: with that, files can be found again if all metadata is lost."""
    fs = vault.filesystem
    thinned(vault, data)
    size = fs.chunk_size
    old = {row.id for row in sealed(fs).values() if row.live < 0.3 * row.size}
    kept = {row.id for number in old for row in fs.chunk_rows.chunks_of_segment(SegmentId(number))}
    compacted(fs)
    fs.pipeline.seal()
    settle(fs)
    number = int(fs.tree.child(fs.tree.root().id, b"file").id)
    found = {}
    for row in sealed(fs).values():
        for entry in read_index(fs.layout, SegmentName(str(row.name)), fs.keyring).entries:
            if entry.chunk_id in kept:
                found[entry.chunk_id] = (int(entry.inode), entry.index)
    assert sorted(found.values()) == [(number, index) for index in range(0, len(data) // size, 8)]


def test_steps_are_bounded(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    thinned(vault, data, keep_every=4)
    compactor = Compactor(fs, EAGER._replace(live_percent=100))
    steps = []
    while (step := compactor.plan()) is not None:
        steps.append(step)
    assert len(steps) > 2
    assert all(sum(row.length for row in step.rows) <= STEP_BYTES and len(step.rows) <= STEP_CHUNKS for step in steps)


def test_the_tables_are_searched_only_when_something_has_changed(
    vault: Vault, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = vault.filesystem
    write(vault, "/file", data)
    settle(fs)
    compactor = Compactor(fs, EAGER)
    assert compactor.plan() is None

    def refuse(*arguments: object) -> None:
        pytest.fail("searched again")

    monkeypatch.setattr("vaultfs.metadata.compaction_rows.CompactionRows.worth_rewriting", refuse)
    assert compactor.plan() is None


# --- what happens between reading a chunk and its new place


def test_a_file_that_changes_meanwhile_keeps_its_new_content(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    content = bytearray(thinned(vault, data))
    step = next_step(compactor := Compactor(fs, EAGER))
    step.read()
    size = fs.chunk_size
    for number in range(len(content) // size):  # all that the step has read, and more
        content[number * size : number * size + 5] = b"newer"
        write(vault, "/file", b"newer", number * size)
    fs.committer.commit()
    assert all(fs.chunk_rows.chunk(row.id) is None for row in step.rows)
    compactor.submit(step)
    settle(fs)
    require_exact_counts(fs)
    assert read(vault, "/file") == bytes(content)
    compacted(fs)
    assert read(vault, "/file") == bytes(content)


def test_a_chunk_that_ends_while_its_copy_is_appended_is_garbage(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    thinned(vault, data)
    step = next_step(compactor := Compactor(fs, EAGER))
    step.read()
    compactor.submit(step)
    vault.remove("/file")
    while fs.files.sweep():
        pass
    settle(fs)
    fs.pipeline.seal()
    settle(fs)
    assert not fs.chunks.moves
    assert fs.chunk_rows.segments() == []
    assert fs.database.scalar("SELECT count(*) FROM reclaim") == 0


def test_a_segment_that_a_snapshot_needs_waits_for_its_end(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    write(vault, "/file", data)
    info = create_snapshot(fs, "keep")
    needed = set(sealed(fs))
    content = thinned(vault, data)
    before = {number: row.name for number, row in sealed(fs).items() if number in needed}
    compacted(fs)
    assert {number: row.name for number, row in sealed(fs).items() if number in needed} == before
    delete_snapshot(fs, info.seq)
    settle(fs)
    compacted(fs)
    assert not [row for row in sealed(fs).values() if row.live < 0.3 * row.size and row.size > 100_000]
    assert read(vault, "/file") == content


def test_a_snapshot_taken_meanwhile_keeps_the_old_place(vault: Vault, data: bytes) -> None:
    """Its image names the places of that moment; so a copy that arrives later must come to nothing."""
    fs = vault.filesystem
    content = thinned(vault, data)
    step = next_step(compactor := Compactor(fs, EAGER))
    step.read()
    before = {row.id: (row.segment, row.offset) for row in step.rows}
    seq = fs.chunks.snapshot_seq + 1
    compactor.submit(step)
    fs.chunks.snapshot_taken(SnapshotSeq(seq))
    settle(fs)
    for number, place in before.items():
        row = fs.chunk_rows.chunk(ChunkId(number))
        assert row is not None
        assert (row.segment, row.offset) == place
    require_exact_counts(fs)
    fs.chunks.snapshot_ended(SnapshotSeq(seq))
    assert read(vault, "/file") == content


def test_nothing_is_begun_while_a_snapshot_is_made(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    thinned(vault, data)
    compactor = Compactor(fs, EAGER)
    step = next_step(compactor)
    step.read()
    fs.is_snapshot_busy = True
    assert compactor.plan() is None
    compactor.submit(step)
    assert not fs.chunks.moves
    fs.is_snapshot_busy = False
    assert compactor.plan() is not None


# --- what breaks


def test_a_damaged_chunk_is_never_copied_and_harms_no_other(path: Path, vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    content = thinned(vault, data)
    step = next_step(Compactor(fs, EAGER))
    row = fs.chunk_rows.segment(step.rows[0].segment)
    assert row is not None
    assert row.name is not None
    victim = step.rows[1]
    file = fs.layout.sealed_path(SegmentName(row.name))
    file.chmod(0o600)
    with file.open("r+b") as raw:
        raw.seek(victim.offset + victim.stored - 1)
        byte = raw.read(1)
        raw.seek(-1, 1)
        raw.write(bytes([byte[0] ^ 128]))
    compacted(fs)
    assert [chunk.id for chunk in fs.chunk_rows.chunks_of_segment(row.id)] == [victim.id]
    assert set(sealed(fs)) >= {row.id}
    ((index,),) = fs.database.execute("SELECT idx FROM extent WHERE chunk=?", (victim.id,))
    size = fs.chunk_size
    with vault.open("/file") as opened:
        for number in range(len(content) // size):
            if number == index:
                with pytest.raises(ChunkIntegrityError):
                    opened.pread(size, number * size)
            else:
                assert opened.pread(size, number * size) == content[number * size : (number + 1) * size]


def test_a_missing_segment_is_passed_over(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    thinned(vault, data)
    row = min((row for row in sealed(fs).values() if row.live), key=lambda row: row.live)
    assert row.name is not None
    fs.layout.sealed_path(SegmentName(row.name)).unlink()
    fs.segments.forget(row.id)
    compacted(fs)
    assert [each.id for each in sealed(fs).values() if each.live * 100 < each.size * 30] == [row.id]


def test_a_full_disk_loses_nothing(vault: Vault, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = vault.filesystem
    content = thinned(vault, data)
    before = sealed(fs)
    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> int:
            raise NoSpaceError("no space")

        patch.setattr(SegmentWriter, "append", fail)
        with pytest.raises(NoSpaceError):
            compacted(fs)
    assert not fs.chunks.moves
    assert {number: row.live for number, row in sealed(fs).items()} == {n: row.live for n, row in before.items()}
    compacted(fs)
    assert len(sealed(fs)) < len(before)
    require_exact_counts(fs)
    assert read(vault, "/file") == content


def test_a_failed_sync_moves_the_copies_once_more(path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with vaultfs.open_vault(path, KEY) as vault:
        fs = vault.filesystem
        content = thinned(vault, data)
        settle(fs)
        compactor = Compactor(fs, EAGER)
        step = next_step(compactor)
        step.read()
        compactor.submit(step)
        failures = 0
        sync = SegmentWriter.sync

        def fail_once(self: SegmentWriter) -> None:
            nonlocal failures
            failures += 1
            if failures == 1:
                self._failure = "its sync failed"
                raise StorageError("sync failed")
            sync(self)

        monkeypatch.setattr(SegmentWriter, "sync", fail_once)
        settle(fs)
        assert failures > 1
        monkeypatch.setattr(SegmentWriter, "sync", sync)
        require_exact_counts(fs)
        compacted(fs)
        require_exact_counts(fs)
        assert read(vault, "/file") == content
    with vaultfs.open_vault(path, KEY) as vault:
        assert read(vault, "/file") == content


def test_closing_does_not_wait_for_compaction(path: Path, data: bytes) -> None:
    """What was begun counts or not; what was not begun is left to the next mount."""
    vault = vaultfs.open_vault(path, KEY)
    content = thinned(vault, data)
    compactor = Compactor(vault.filesystem, EAGER)
    step = next_step(compactor)
    step.read()
    compactor.submit(step)
    left = {row.id for row in sealed(vault.filesystem).values()} - {step.rows[0].segment}
    vault.close()
    with vaultfs.open_vault(path, KEY) as again:
        assert left <= sealed(again.filesystem).keys()
        require_exact_counts(again.filesystem)
        assert read(again, "/file") == content


def test_a_crash_at_any_call(path: Path, tmp_path: Path, long_run: bool) -> None:
    data = os.urandom(600_000)
    with vaultfs.open_vault(path, KEY) as vault:
        content = thinned(vault, data, keep_every=5)

    def work(copy: Path) -> None:
        fs = open_filesystem(copy, KEY)
        compacted(fs)
        fs.close()

    def check(copy: Path) -> None:
        with vaultfs.open_vault(copy, KEY) as again:
            fs = again.filesystem
            require_exact_counts(fs)
            assert read(again, "/file") == content
            compacted(fs)
            assert not [row for row in sealed(fs).values() if row.live < 0.3 * row.size]
            assert read(again, "/file") == content
        shutil.rmtree(copy)

    assert survives_every_crash(path, tmp_path, work, check, step=1 if long_run else 3) > 30


def test_the_usual_policy_leaves_tiny_vaults_alone(path: Path) -> None:
    """A segment of one chunk is mostly header and index; writing it again at every mount would never end."""
    for number in range(3):
        with vaultfs.open_vault(path, KEY) as vault:
            write(vault, f"/{number}", b"x")
    with vaultfs.open_vault(path, KEY) as vault:
        assert Compactor(vault.filesystem).plan() is None
        assert Compactor(vault.filesystem, Policy(0, 100, 0, 0, 0)).plan() is not None
