"""Segments of which the present needs little: a vault that is synced often does not grow for ever."""

from __future__ import annotations

import random

import pytest
from vault_compaction.vaults import read, require_exact_counts, settle, write

from vaultfs.errors import NoSpaceError
from vaultfs.ids import SegmentName
from vaultfs.vault.api import Vault
from vaultfs.vault.compaction import POLICY
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.shipping import LABEL, WORN_PERCENT, prepare
from vaultfs.vault.steps import Step, run
from vaultfs.vault.worn_segments import finding_worn

from .test_shipping import add_remote, require_whole


def stored(fs: FileSystem) -> int:
    """Bytes in sealed segments on disk."""
    return sum(fs.layout.sealed_path(name).stat().st_size for name in fs.layout.sealed_names())


def worn(fs: FileSystem) -> list[int]:
    return list(run(fs, finding_worn(fs, LABEL, WORN_PERCENT, POLICY.least_gain, 1 << 40)))


def test_rewriting_here_and_there_and_syncing_after_it(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    add_remote(fs)
    content = bytearray(data)
    write(vault, "/file", data)
    rng = random.Random(7)
    largest = 0
    for _ in range(25):
        for _ in range(40):
            offset = rng.randrange(len(data) // 16384) * 16384
            piece = rng.randbytes(16384)
            content[offset : offset + len(piece)] = piece
            write(vault, "/file", piece, offset)
        info, is_new = prepare(fs)
        assert is_new
        require_whole(fs, info)
        settle(fs)
        largest = max(largest, stored(fs))
    # The present, what the older snapshot of a sync keeps, and at most as much again that is worn by half.
    assert largest < 4 * len(data)
    assert read(vault, "/file") == bytes(content)
    require_exact_counts(fs)


def test_what_is_shared_is_found_wherever_it_is(vault: Vault, data: bytes) -> None:
    """Two files with the same chunks: both are copied, and the segment goes."""
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/one", data)
    settle(fs)
    prepare(fs)
    write(vault, "/two", data[: 1 << 19])
    vault.link("/two", "/name")
    vault.remove("/one")
    prepare(fs)
    write(vault, "/more", b"x")
    prepare(fs)
    settle(fs)
    assert not worn(fs)
    assert read(vault, "/two") == read(vault, "/name") == data[: 1 << 19]
    require_exact_counts(fs)


def test_what_a_persons_snapshot_needs_is_left(vault: Vault, data: bytes) -> None:
    """Copying would only take more room."""
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", data)
    vault.create_snapshot("mine")
    write(vault, "/file", bytes(len(data) - 100_000))
    before = {row.name for row in fs.chunk_rows.segments()}
    assert not worn(fs)
    prepare(fs)
    assert before <= {row.name for row in fs.chunk_rows.segments()}
    vault.delete_snapshot("1")
    write(vault, "/other", b"x")
    prepare(fs)
    assert not worn(fs)
    require_exact_counts(fs)


def test_a_vault_without_changes_is_left_alone(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", data)
    prepare(fs)
    changes = fs.database.changes()
    prepare(fs)
    assert fs.database.changes() == changes


def test_a_damaged_chunk_stays_where_it_is(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", data)
    prepare(fs)
    write(vault, "/file", bytes(len(data) - (1 << 19)))
    segments = worn(fs)
    assert segments
    row = next(row for row in fs.chunk_rows.segments() if row.id == segments[-1])
    assert row.name is not None
    path = fs.layout.sealed_path(row.name)  # type: ignore[arg-type]
    path.chmod(0o600)
    with path.open("r+b") as file:
        for offset in range(100, path.stat().st_size, 10_000):
            file.seek(offset)
            file.write(b"damage")
    fs.segments.forget(row.id)
    info, _ = prepare(fs)
    assert info.label == LABEL
    assert segments[-1] in {row.id for row in fs.chunk_rows.segments()}
    require_exact_counts(fs)


def test_what_is_not_on_this_disk_is_left(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", data)
    prepare(fs)
    write(vault, "/file", bytes(len(data) - (1 << 19)))
    [number] = worn(fs)[-1:]
    row = fs.chunk_rows.segment(number)  # type: ignore[arg-type]
    assert row is not None
    assert row.name is not None
    fs.layout.sealed_path(SegmentName(row.name)).unlink()
    fs.segments.forget(row.id)
    info, is_new = prepare(fs)
    assert is_new
    assert row.name in {segment.name for segment in fs.chunk_rows.segments()}
    assert number in worn(fs)
    assert info.label == LABEL


def test_a_full_disk_is_told_and_nothing_is_lost(vault: Vault, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", data)
    prepare(fs)
    write(vault, "/file", bytes(len(data) - (1 << 19)))
    assert worn(fs)

    def full(_size: int) -> None:
        raise NoSpaceError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(fs, "check_room", full)
        with pytest.raises(NoSpaceError):
            prepare(fs)
    assert read(vault, "/file")[-(1 << 19) :] == data[-(1 << 19) :]
    prepare(fs)
    assert not worn(fs)
    require_exact_counts(fs)


def test_pieces_of_images_in_worn_segments_are_not_shared(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large tree of which little changes: an old image does not keep the segment that it lies in for ever."""
    monkeypatch.setattr("vaultfs.vault.pipeline.SEGMENT_TARGET_BYTES", 16 << 20)
    fs = vault.filesystem
    add_remote(fs)
    for number in range(6000):
        write(vault, f"/{number:0200}", b"")
    prepare(fs)
    [old] = [row.id for row in fs.chunk_rows.segments()]
    for number in range(5000):  # most of the image's pieces change
        vault.rename(f"/{number:0200}", f"/x{number:0199}")
    for count in range(4):
        write(vault, "/one", bytes([count]))
        info, _ = prepare(fs)
        require_whole(fs, info)
        settle(fs)
        if count == 0:
            assert old in {row.id for row in fs.chunk_rows.segments()}  # the older image has most of it
    assert old not in {row.id for row in fs.chunk_rows.segments()}
    require_exact_counts(fs)


def test_what_was_not_shared_once_is_shared_again(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each snapshot would store such pieces anew."""
    test_pieces_of_images_in_worn_segments_are_not_shared(vault, monkeypatch)
    fs = vault.filesystem
    before = fs.chunks.new_id()
    write(vault, "/one", b"changed")
    prepare(fs)
    assert fs.chunks.new_id() - before < 40  # of 216; the pieces with the rows that changed


def test_a_sync_copies_so_much_and_the_next_one_the_rest(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of which the least is needed first; a backup does not wait until all is copied."""
    monkeypatch.setattr("vaultfs.vault.shipping.WORN_BYTES", 1)
    fs = vault.filesystem
    add_remote(fs)
    for number in range(3):
        write(vault, f"/file{number}", random.Random(number).randbytes(1 << 20))
        prepare(fs)
    for number in range(3):
        vault.truncate(f"/file{number}", 100_000 * (number + 1))
    found = worn(fs)
    assert len(found) == 3
    assert found == sorted(found)  # the first file needs the least
    for count in range(1, 4):
        write(vault, "/more", bytes([count]))
        prepare(fs)
        assert worn(fs) == found[count:]
    require_exact_counts(fs)
    for number in range(3):
        size = 100_000 * (number + 1)
        assert read(vault, f"/file{number}") == random.Random(number).randbytes(1 << 20)[:size]


def test_it_is_found_in_small_pieces(vault: Vault, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if one snapshot's end left more dead chunks than are looked at once."""
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", data)
    prepare(fs)
    write(vault, "/file", bytes(len(data) - (1 << 19)))
    at_once = worn(fs)
    assert at_once
    monkeypatch.setattr("vaultfs.vault.worn_segments.ROWS_AT_ONCE", 2)
    monkeypatch.setattr("vaultfs.vault.worn_segments.ASKED_AT_ONCE", 1)
    steps = list(finding_worn(fs, LABEL, WORN_PERCENT, POLICY.least_gain, 1 << 40))
    assert worn(fs) == at_once
    assert len(steps) > 10
    assert set(steps) == {Step.PAUSE}
