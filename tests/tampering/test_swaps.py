"""Genuine bytes in a wrong place or at a wrong time: swapped chunks and segments, old pages, old vaults."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fsck.vault_copies import (
    CHUNK,
    Copy,
    codes,
    damaged_files,
    data_of,
    named,
    names_in,
    repair,
    writable,
)

from vaultfs.errors import ExitCode, IntegrityError, RollbackError
from vaultfs.metadata.chunk_rows import ChunkPlace
from vaultfs.vault.head import witness_path

Where = tuple[Path, ChunkPlace]


def sealed(where: Where) -> bytes:
    path, place = where
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.stored)


def put(where: Where, data: bytes) -> None:
    path, place = where
    assert len(data) == place.stored
    with writable(path).open("r+b") as file:
        file.seek(place.offset)
        file.write(data)


def swap(first: Where, second: Where) -> None:
    one, two = sealed(first), sealed(second)
    assert one != two
    put(first, two)
    put(second, one)


def test_two_chunks_of_a_file(copy: Copy) -> None:
    path = b"/folder/file7"
    swap(copy.segment_of(path, 1), copy.segment_of(path, 2))
    assert damaged_files(copy) == {path}
    (found,) = [each for each in copy.check().findings if each.code == "damaged-data"]
    assert [(part.offset, part.length) for part in found.ranges] == [(CHUNK, 2 * CHUNK)]
    repair(copy, lost={path})
    assert data_of(copy, b"/lost+found/%d.readable" % copy.inode(path))[CHUNK : 3 * CHUNK] == bytes(2 * CHUNK)


def test_chunks_of_two_files(copy: Copy) -> None:
    swap(copy.segment_of(b"/folder/file5", 1), copy.segment_of(b"/folder/file6", 0))
    assert damaged_files(copy) == {b"/folder/file5", b"/folder/file6"}
    report = copy.check()
    assert named(report, b"/folder/file5")
    assert named(report, b"/folder/file6")
    repair(copy, lost={b"/folder/file5", b"/folder/file6"})


def test_chunks_of_two_segments(copy: Copy) -> None:
    late = b"/folder/deep/er/late"
    swap(copy.segment_of(late, 1), copy.segment_of(b"/folder/file7", 1))
    assert damaged_files(copy) == {late, b"/folder/file7"}
    repair(copy, lost={late, b"/folder/file7"})


def test_a_chunk_of_another_vault(copy: Copy, other: Copy) -> None:
    path = b"/folder/file3"
    put(copy.segment_of(path), sealed(other.segment_of(path)))
    assert damaged_files(copy) == {path}
    repair(copy, lost={path})


def test_an_old_version_of_a_chunk(copy: Copy, tmp_path: Path) -> None:
    """What lay at the same place of the same file before has another number, whatever its length."""
    path = b"/folder/file3"
    with copy.open() as vault, vault.open(path, "r+b") as file:
        file.pwrite(b"new", 0)
    old = tmp_path / "old"
    shutil.copytree(copy.path, old)
    with copy.open() as vault, vault.open(path, "r+b") as file:
        file.pwrite(b"newer", 0)
    changed = Copy(copy.path, copy.keyring, {**copy.contents, path: b"newer" + copy.contents[path][5:]})
    witness_path(copy.keyring).unlink()
    before = sealed(Copy(old, copy.keyring, {}).segment_of(path))
    put(changed.segment_of(path), before)
    assert damaged_files(changed) == {path}
    repair(changed, lost={path})


def test_two_segments_swapped(copy: Copy) -> None:
    """Every file fails; a repair finds out which is which, and loses nothing."""
    first, second = copy.segments()
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    assert damaged_files(copy) == {path for path, data in copy.contents.items() if data}
    assert copy.check().exit_code == ExitCode.INTEGRITY
    report = copy.check(repair=True)
    assert not report.unrepaired
    assert damaged_files(copy) == set()
    assert copy.check().is_clean


def test_a_segment_of_another_vault(copy: Copy, other: Copy) -> None:
    late = b"/folder/deep/er/late"
    segment = copy.segments()[1]
    saved = segment.read_bytes()
    writable(segment).write_bytes(other.segments()[1].read_bytes())
    assert damaged_files(copy) == {late}
    assert named(copy.check(), late)
    repair(copy, lost={late})
    # The right one is put back: the next repair finds what was lost in it.
    segment.write_bytes(saved)
    report = copy.check(repair=True)
    assert "found-again" in codes(report)
    assert report.exit_code == ExitCode.OK
    assert damaged_files(copy) == set()
    assert copy.check().findings == []


def test_a_segment_that_is_missing_and_comes_back(copy: Copy, tmp_path: Path) -> None:
    late = b"/folder/deep/er/late"
    segment = copy.segments()[1]
    away = tmp_path / "away"
    shutil.move(segment, away)
    assert damaged_files(copy) == {late}
    report = copy.check()
    assert codes(report) == {"segment-missing", "damaged-data"}
    assert named(report, late)
    repair(copy, lost={late})
    shutil.move(away, segment)
    assert copy.check().is_clean
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert damaged_files(copy) == set()


def _changed(copy: Copy, tmp_path: Path) -> Path:
    """Keep the vault as it is now; then change a file in the copy that stays in use."""
    old = tmp_path / "old"
    shutil.copytree(copy.path, old)
    with copy.open() as vault:
        vault.rename(b"/empty", b"/renamed")
        with vault.open(b"/folder/file3", "wb") as file:
            file.write(b"new content")
    return old


def test_an_old_page_of_the_database(copy: Copy, tmp_path: Path) -> None:
    """Each page that differs, put back alone: it decrypts, but HEAD says that it does not belong there."""
    old = (_changed(copy, tmp_path) / "metadata.db").read_bytes()
    new = copy.layout.database.read_bytes()
    pages = [
        start
        for start in range(0, min(len(old), len(new)), 4096)
        if old[start : start + 4096] != new[start : start + 4096]
    ]
    assert len(pages) >= 3
    current = Copy(copy.path, copy.keyring, {**copy.contents, b"/folder/file3": b"new content"})
    for number, start in enumerate(pages):
        tampered = current.copy(tmp_path / f"vault{number}")
        tampered.layout.database.write_bytes(new[:start] + old[start : start + 4096] + new[start + 4096 :])
        with pytest.raises(IntegrityError, match="not the database"):
            tampered.open()
        assert "database-replaced" in codes(tampered.check())
        tampered.check(repair=True)
        second = tampered.check()
        assert second.is_clean, second.findings
        with tampered.open(read_only=True) as vault:
            # The person has accepted a mix of two states; each file is of one of them, or says that it is damaged.
            for path in (b"/folder/file6", b"/sparse", b"/folder/deep/er/late"):
                if vault.exists(path):
                    assert vault.open(path).read() == copy.contents[path]


def test_an_old_database(copy: Copy, tmp_path: Path) -> None:
    old = _changed(copy, tmp_path)
    shutil.copy(old / "metadata.db", copy.layout.database)
    with pytest.raises(IntegrityError, match="not the database"):
        copy.open()
    report = copy.check()
    assert "database-replaced" in codes(report)
    copy.check(repair=True)
    assert copy.check().is_clean
    names = names_in(copy, b"/")
    assert b"empty" in names  # it is the old tree, as the person has accepted
    failing = damaged_files(copy)
    assert failing <= {b"/folder/file3"}  # the new state has given its old chunks back


def test_an_old_head_and_database(copy: Copy, tmp_path: Path) -> None:
    """They fit each other; only the witness knows better."""
    old = _changed(copy, tmp_path)
    shutil.copy(old / "metadata.db", copy.layout.database)
    shutil.copy(old / "heads" / "HEAD", copy.layout.head)
    with pytest.raises(RollbackError):
        copy.open()
    assert "rollback" in codes(copy.check())
    copy.check(repair=True)
    assert copy.check().is_clean


def test_an_old_vault(copy: Copy, tmp_path: Path) -> None:
    old = _changed(copy, tmp_path)
    rolled_back = Copy(old, copy.keyring, copy.contents)
    for read_only in (True, False):
        with pytest.raises(RollbackError, match="older copy"):
            rolled_back.open(read_only=read_only)
    report = rolled_back.check()
    assert codes(report) == {"rollback"}
    assert report.exit_code == ExitCode.INTEGRITY
    assert repair(rolled_back).exit_code == ExitCode.OK
    # Now this is the vault, and the one that was newer is a fork of it.
    with pytest.raises(RollbackError):
        copy.open()


def test_a_log_of_another_time(copy: Copy, tmp_path: Path) -> None:
    """A WAL beside a database that was closed in order: it belongs to nothing, and is not replayed."""
    vault = copy.open()
    with vault.open(b"/late news", "wb") as file:
        file.write(b"news")
    vault.commit()
    log = Path(f"{copy.layout.database}-wal")
    saved = log.read_bytes()
    vault.close()
    assert saved
    log.write_bytes(saved)
    with pytest.raises(IntegrityError, match="belongs to no state"):
        copy.open()
    assert codes(copy.check()) == {"foreign-log"}
    assert repair(copy).exit_code == ExitCode.OK
    assert (copy.path / "damaged" / log.name).read_bytes() == saved
