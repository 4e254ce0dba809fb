"""``metadata.db`` lost or destroyed: what comes back from its remains, a snapshot, and the segments."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fsck.vault_copies import CHUNK, Copy, assert_sound, codes, damaged_files, data_of, names_in, walk
from vaultfs.errors import ExitCode, IntegrityError, VaultError
from vaultfs.metadata.compaction_rows import Policy
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.vault.compaction import compact
from vaultfs.vault.opening import open_database

LOST = b"/lost+found"


def lose_database(copy: Copy) -> None:
    copy.layout.database.unlink()


def rebuilt(copy: Copy) -> str:
    """Repair; return what the report says of the rebuilding."""
    report = copy.check(repair=True)
    assert report.exit_code == ExitCode.PARTIAL, report.findings
    assert not report.unrepaired
    (message,) = [each.message for each in report.findings if each.code == "rebuilt"]
    return message


def test_from_the_segments_alone(copy: Copy) -> None:
    numbers = {path: copy.inode(path) for path, data in copy.contents.items() if data}
    lose_database(copy)
    with pytest.raises(VaultError, match=r"metadata\.db"):
        copy.open()
    report = copy.check()
    assert report.exit_code == ExitCode.INTEGRITY
    assert "database-unreadable" in codes(report)
    assert "the segments' own indexes" in rebuilt(copy)
    assert names_in(copy, LOST) == {b"%d" % number for number in numbers.values()}
    for path, number in numbers.items():
        assert data_of(copy, LOST + b"/%d" % number) == copy.contents[path]
    assert_sound(copy)
    with copy.open(read_only=True) as vault:
        assert vault.filesystem.chunk_size == CHUNK


def test_numbers_are_not_used_again(copy: Copy) -> None:
    with copy.open(read_only=True) as vault:
        inode = vault.filesystem.inodes.next_inode
        chunk = vault.filesystem.chunks.next_chunk
        generation = vault.filesystem.database.setting("generation")
    lose_database(copy)
    rebuilt(copy)
    with copy.open(read_only=True) as vault:
        # A FIFO and a directory made last have left no trace in a segment.
        assert vault.filesystem.inodes.next_inode >= inode - 1
        assert vault.filesystem.chunks.next_chunk >= chunk
        assert vault.filesystem.database.setting("generation") > generation


def test_the_newest_version_of_each_chunk_counts(copy: Copy) -> None:
    """A chunk that was written in three sessions lies in three segments."""
    path = b"/folder/file7"
    data = bytearray(copy.contents[path])
    for round_number in range(3):
        with copy.open() as vault, vault.open(path, "r+b") as file:
            for index in (1, 3 + round_number):
                data[index * CHUNK : index * CHUNK + 5] = b"new%02d" % round_number
                file.pwrite(b"new%02d" % round_number, index * CHUNK)
    number = copy.inode(path)
    lose_database(copy)
    rebuilt(copy)
    assert data_of(copy, LOST + b"/%d" % number) == bytes(data)


def test_data_that_was_cut_off_does_not_come_back_where_it_was_punched(copy: Copy) -> None:
    path = b"/folder/file7"
    with copy.open() as vault:
        vault.truncate(path, 2 * CHUNK)
        vault.remove(b"/sparse")
    number = copy.inode(path)
    lose_database(copy)
    rebuilt(copy)
    # Blocks that hold other chunks too are not punched, so that a chunk at the edge may come back; none in between.
    got = data_of(copy, LOST + b"/%d" % number)
    assert got[: 2 * CHUNK] == copy.contents[path][: 2 * CHUNK]
    assert all(
        got[start : start + CHUNK] in {bytes(CHUNK), copy.contents[path][start : start + CHUNK]}
        for start in range(2 * CHUNK, len(got) - CHUNK, CHUNK)
    )
    assert copy.check().is_clean


def test_a_damaged_chunk_is_damage_then_too(copy: Copy) -> None:
    path = b"/folder/file7"
    number = copy.inode(path)
    segment, place = copy.segment_of(path, 3)
    segment.chmod(0o600)
    with segment.open("r+b") as file:
        file.seek(place.offset + 50)
        file.write(b"damage")
    lose_database(copy)
    report = copy.check(repair=True)
    assert {"rebuilt", "damaged-data"} <= codes(report)
    with copy.open(read_only=True) as vault, vault.open(LOST + b"/%d" % number) as file:
        assert file.pread(3 * CHUNK, 0) == copy.contents[path][: 3 * CHUNK]
        with pytest.raises(IntegrityError):
            file.pread(1, 3 * CHUNK)
        assert file.pread(1 << 20, 4 * CHUNK) == copy.contents[path][4 * CHUNK :]
    assert copy.check().is_clean


def test_a_segment_that_a_crash_left_open_has_no_index_and_is_named(copy: Copy) -> None:
    vault = copy.open()
    with vault.open(b"/unlucky", "wb") as file:
        file.write(b"u" * 20_000)
    vault.commit()
    vault.filesystem.abandon()
    with copy.open():
        pass
    lose_database(copy)
    report = copy.check(repair=True)
    with copy.open(read_only=True) as found:
        contents = {found.open(path).read() for path in walk(found)}
    assert all(data in contents for data in copy.contents.values() if data)
    assert b"u" * 20_000 in contents or "no-index" in {each.code for each in report.findings}
    assert copy.check().is_clean


def test_from_a_snapshot_with_newer_data_beside(copy: Copy) -> None:
    changed, kept = b"/folder/file7", b"/folder/file6"
    with copy.open() as vault:
        vault.create_snapshot("before")
        with vault.open(changed, "r+b") as file:
            file.pwrite(b"newer", CHUNK)
        with vault.open(b"/after", "wb") as file:
            file.write(b"a" * 10_000)
    after, number = copy.inode(b"/after"), copy.inode(changed)
    lose_database(copy)
    assert "snapshot 1" in rebuilt(copy)
    assert damaged_files(copy) == set()  # the snapshot's state, names and all
    data = copy.contents[changed]
    newer = data[:CHUNK] + b"newer" + data[CHUNK + 5 :]
    assert data_of(copy, LOST + b"/%d.newer" % number) == newer
    assert data_of(copy, LOST + b"/%d" % after) == b"a" * 10_000
    with copy.open(read_only=True) as vault:
        assert vault.getxattr(b"/folder/file1", b"user.colour") == b"blue"
        assert vault.stat(kept).st_nlink == 2
        assert [info.label for info in vault.snapshots()] == ["before"]
    assert_sound(copy)
    # The snapshot lives on, and can be deleted.
    with copy.open() as vault:
        vault.delete_snapshot(1)
    assert copy.check().is_clean


def test_what_can_be_read_of_a_damaged_database(template: Copy, tmp_path: Path, long_run: bool) -> None:
    """Whatever single page is destroyed: no wrong bytes, all data is somewhere, and most often all names too."""
    pages = template.layout.database.stat().st_size // 4096
    source = random.Random(9)
    chosen = range(pages) if long_run else sorted(source.sample(range(pages), 8))
    named = 0
    for page in chosen:
        copy = template.copy(tmp_path / f"vault{page}")
        with copy.layout.database.open("r+b") as file:
            file.seek(page * 4096)
            file.write(source.randbytes(4096))
        copy.check(repair=True)
        with copy.open(read_only=True) as vault:
            found = {path: vault.open(path).read() for path in walk(vault)}
        assert all(found[path] == data for path, data in copy.contents.items() if path in found)
        assert {data for data in copy.contents.values() if data} <= set(found.values())
        named += copy.contents.keys() <= found.keys()
        assert copy.check().is_clean
    assert named >= len(chosen) // 2


def test_many_destroyed_pages(copy: Copy) -> None:
    """Enough files for inner pages; every tenth page is gone."""
    source = random.Random(13)
    contents = {b"/many/%d" % number: source.randbytes(200) for number in range(600)}
    with copy.open() as vault:
        vault.mkdir(b"/many")
        for path, data in contents.items():
            with vault.open(path, "wb") as file:
                file.write(data)
    size = copy.layout.database.stat().st_size
    with copy.layout.database.open("r+b") as file:
        for page in range(15, size // 4096, 10):
            file.seek(page * 4096 + 100)
            file.write(source.randbytes(100))
    with pytest.raises(IntegrityError):
        copy.open()
    copy.check(repair=True)
    with copy.open(read_only=True) as vault:
        found = {path: vault.open(path).read() for path in walk(vault)}
    assert all(found[path] == data for path, data in contents.items() if path in found)
    assert set(contents.values()) <= set(found.values())
    assert len(contents.keys() & found.keys()) > 200
    assert copy.check().is_clean


def test_the_old_database_is_kept(copy: Copy) -> None:
    with copy.layout.database.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    damaged = copy.layout.database.read_bytes()
    copy.check(repair=True)
    assert (copy.path / "damaged" / "metadata.db").read_bytes() == damaged


def test_a_chunk_that_was_moved_counts_where_it_is_whole(copy: Copy) -> None:
    """Its old segment may still be there, with zeros in the place of what was moved, or damaged."""
    old = {path: path.read_bytes() for path in copy.segments()}
    with copy.open() as vault:
        compact(vault.filesystem, policy=Policy(0, 101, 0, 1 << 30, 0))
    assert not set(old) & set(copy.segments())
    for number, (path, data) in enumerate(old.items()):
        first = 64 + number
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[:first] + bytes(len(data) // 2 - first) + data[len(data) // 2 :])
    numbers = {path: copy.inode(path) for path, data in copy.contents.items() if data}
    lose_database(copy)
    rebuilt(copy)
    for name, inode in numbers.items():
        assert data_of(copy, LOST + b"/%d" % inode) == copy.contents[name]
    assert copy.check().is_clean


def test_it_can_be_interrupted_and_begun_again(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_database(copy)

    def stop(self: MetadataDatabase, *, truncate: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetadataDatabase, "checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            copy.check(repair=True)
    assert not copy.layout.database.exists()
    rebuilt(copy)
    assert_sound(copy)


def test_a_wrong_key_is_no_reason_to_rebuild(copy: Copy, tmp_path: Path) -> None:
    """The database of another vault in the place of this one's: moved aside, not read."""
    MetadataDatabase.create(tmp_path / "other.db", bytes(32), {"chunk_size": CHUNK})
    (tmp_path / "other.db").rename(copy.layout.database)
    rebuilt(copy)
    assert (copy.path / "damaged" / "metadata.db").exists()
    database = open_database(copy.layout, copy.keyring)
    database.close()
    assert_sound(copy)
