"""Rows that vaultfs never writes, in a database for which HEAD vouches: what a bug, or somebody with the key, leaves.

Programs get errors or the right bytes; fsck finds each, and puts it right without losing a file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from fsck.vault_copies import (
    CHUNK,
    Copy,
    assert_sound,
    codes,
    damaged_files,
    data_of,
    named,
    names_in,
    read_everything,
    repair,
)

from vaultfs.errors import ExitCode, FileSystemError, IntegrityError, VaultError

FILE = b"/folder/file6"


def found_once(copy: Copy, code: str) -> list[str]:
    """Check; return the messages of a code, which is the only one found."""
    report = copy.check()
    assert report.exit_code == ExitCode.INTEGRITY
    assert codes(report) == {code}
    return [each.message for each in report.findings if each.code == code]


@pytest.mark.parametrize(
    "name",
    [b"..", b".", b"", b"a/b", b"../../escape", b"/", b"nul\0", b"\0", b"x" * 256, b"y" * 70_000],
    ids=lambda name: repr(name[:8]),
)
def test_names_that_no_file_may_have(copy: Copy, tmp_path: Path, name: bytes) -> None:
    number = copy.inode(FILE)
    copy.edit("UPDATE entry SET name=? WHERE inode=? AND name=?", name, number, b"file6")
    (message,) = found_once(copy, "bad-name")
    assert str(number) in message
    with copy.open(read_only=True) as vault:
        wanted = (copy.contents[FILE], None)
        # Nothing leads out of the directory, and no other file is taken for this one.
        for path in (b"/folder/" + name, b"/folder/" + name + b"/x"):
            try:
                status = vault.stat(path)
            except (FileSystemError, ValueError):
                continue
            assert status.st_ino != number or wanted
            assert status.st_ino in {1, number, vault.stat(b"/folder").st_ino}
    report = copy.check(repair=True)
    assert report.exit_code == ExitCode.OK
    with copy.open(read_only=True) as vault:
        (new,) = set(vault.listdir(b"/folder")) - {b"deep", *(b"file%d" % each for each in range(8))}
        assert vault.open(b"/folder/" + new).read() == copy.contents[FILE]
    assert os.fsdecode(new) in report.findings[0].saved or repr(new) in report.findings[0].saved
    assert_sound(copy)


def test_a_name_that_is_text(copy: Copy) -> None:
    """SQLite compares text and bytes as different, so nobody would ever find it."""
    copy.edit("UPDATE entry SET name=CAST(name AS TEXT) WHERE name=?", b"file6")
    found_once(copy, "bad-name")
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert_sound(copy)


def test_a_directory_that_contains_itself(copy: Copy) -> None:
    deep, er = copy.inode(b"/folder/deep"), copy.inode(b"/folder/deep/er")
    copy.edit("UPDATE entry SET parent=? WHERE inode=?", er, deep)
    report = copy.check()
    assert "directory-loop" in codes(report)
    report = copy.check(repair=True)
    assert report.exit_code == ExitCode.OK
    assert names_in(copy, b"/lost+found") == {b"%d" % deep}
    assert data_of(copy, b"/lost+found/%d/er/late" % deep) == copy.contents[b"/folder/deep/er/late"]
    assert_sound(copy)


def test_a_directory_that_is_its_own_parent(copy: Copy) -> None:
    er = copy.inode(b"/folder/deep/er")
    copy.edit("UPDATE entry SET parent=? WHERE inode=?", er, er)
    assert "directory-loop" in codes(copy.check())
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert data_of(copy, b"/lost+found/%d/late" % er) == copy.contents[b"/folder/deep/er/late"]
    assert_sound(copy)


def test_a_directory_with_two_names(copy: Copy) -> None:
    er, folder = copy.inode(b"/folder/deep/er"), copy.inode(b"/folder")
    copy.edit("INSERT INTO entry VALUES (?, ?, ?, 5000)", folder, b"again", er)
    assert "directory-with-names" in codes(copy.check())
    repair(copy)
    assert b"again" not in names_in(copy, b"/folder")


def test_a_name_of_the_root(copy: Copy) -> None:
    folder = copy.inode(b"/folder")
    copy.edit("INSERT INTO entry VALUES (?, ?, 1, 5000)", folder, b"root")
    assert "root-has-name" in codes(copy.check())
    repair(copy)


@pytest.mark.parametrize("wrong", [0, 1, 7, -3, 1 << 40])
@pytest.mark.parametrize("path", [FILE, b"/folder", b"/"])
def test_wrong_link_counts(copy: Copy, wrong: int, path: bytes) -> None:
    number = copy.inode(path)
    copy.edit("UPDATE inode SET nlink=? WHERE id=?", wrong, number)
    (message,) = found_once(copy, "link-count")
    assert os.fsdecode(path) in message
    assert str(wrong) in message
    repair(copy)
    with copy.open(read_only=True) as vault:
        assert vault.stat(path).st_nlink == {FILE: 2, b"/folder": 3, b"/": 3 + 1}[path]  # one made by the check


@pytest.mark.parametrize("size", [-1, -(1 << 62)])
def test_sizes_that_cannot_be(copy: Copy, size: int) -> None:
    copy.edit("UPDATE inode SET size=? WHERE id=?", size, copy.inode(FILE))
    report = copy.check()
    assert "size" in codes(report)
    assert named(report, FILE)
    repair(copy)


def test_a_size_beyond_the_chunks_reads_as_zeros(copy: Copy) -> None:
    """It is a sparse file like any other; what must not happen is that other bytes appear."""
    data = copy.contents[FILE]
    copy.edit("UPDATE inode SET size=? WHERE id=?", len(data) + 10 * CHUNK, copy.inode(FILE))
    assert data_of(copy, FILE) == data + bytes(10 * CHUNK)
    assert copy.check().is_clean


@pytest.mark.parametrize("size", [0, 10, CHUNK, 2 * CHUNK + 5])
def test_a_size_within_the_chunks(copy: Copy, size: int) -> None:
    """Nothing is cut off before all of it is kept."""
    data, number = copy.contents[FILE], copy.inode(FILE)
    copy.edit("UPDATE inode SET size=? WHERE id=?", size, number)
    report = copy.check()
    assert codes(report) <= {"data-past-end", "chunk-past-end"}
    assert named(report, FILE)
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert data_of(copy, FILE) == data[:size]
    copies = {data_of(copy, b"/lost+found/" + name) for name in names_in(copy, b"/lost+found")}
    assert any(kept == data for kept in copies)
    assert_sound(copy)
    with copy.open() as vault:
        vault.truncate(FILE, size + CHUNK)
        assert vault.open(FILE).read() == data[:size] + bytes(CHUNK)


def test_an_extent_without_chunk(copy: Copy) -> None:
    number = copy.inode(FILE)
    copy.edit("UPDATE extent SET chunk=999999 WHERE inode=? AND idx=1", number)
    assert damaged_files(copy) == {FILE}
    report = copy.check()
    assert named(report, FILE)
    assert any(part.offset == CHUNK for each in report.findings for part in each.ranges)
    repair(copy, lost={FILE})


def test_an_extent_that_names_another_files_chunk(copy: Copy) -> None:
    """This is what deduplication does, so it cannot be told from it; but the counts tell."""
    first, second = copy.inode(b"/folder/file5"), copy.inode(FILE)
    copy.edit(
        "UPDATE extent SET chunk=(SELECT chunk FROM extent WHERE inode=? AND idx=0) WHERE inode=? AND idx=0",
        first,
        second,
    )
    report = copy.check()
    assert "reference-count" in codes(report)
    assert named(report, b"/folder/file5")


@pytest.mark.parametrize(
    "change",
    [
        "offset=offset+1",
        "offset=0",
        "offset=-4096",
        "offset=1<<50",
        "stored=stored-1",
        "stored=0",
        "stored=1<<40",
        "length=length+1",
        "length=0",
        "length=1<<40",
        "segment=77",
    ],
)
def test_a_chunk_in_a_wrong_place(copy: Copy, change: str) -> None:
    number = copy.inode(FILE)
    copy.edit(f"UPDATE chunk SET {change} WHERE id=(SELECT chunk FROM extent WHERE inode=? AND idx=2)", number)
    with copy.open(read_only=True) as vault:
        got = read_everything(vault)[FILE]
    assert isinstance(got, VaultError)
    report = copy.check()
    assert report.exit_code == ExitCode.INTEGRITY
    assert named(report, FILE)
    # The index of the segment says where the chunk is in truth: the repair loses nothing.
    repair(copy)


def test_swapped_places_of_two_chunks(copy: Copy) -> None:
    number = copy.inode(FILE)
    with copy.database() as database:
        (one, two) = database.rows(
            "SELECT c.id, c.offset FROM extent e JOIN chunk c ON c.id=e.chunk WHERE e.inode=? AND e.idx IN (1, 2)",
            (number,),
        )
        database.execute("UPDATE chunk SET offset=? WHERE id=?", (two[1], one[0]))
        database.execute("UPDATE chunk SET offset=? WHERE id=?", (one[1], two[0]))
    assert damaged_files(copy) == {FILE}
    repair(copy)


def test_a_symlink_without_target(copy: Copy) -> None:
    copy.edit("UPDATE inode SET target=NULL WHERE id=?", copy.inode(b"/symlink"))
    assert "symlink" in codes(copy.check())
    repair(copy)


def test_a_symlink_of_another_size(copy: Copy) -> None:
    copy.edit("UPDATE inode SET size=1 WHERE id=?", copy.inode(b"/symlink"))
    assert named(copy.check(), b"/symlink")
    repair(copy)
    with copy.open(read_only=True) as vault:
        assert vault.readlink(b"/symlink") == b"folder/file5"


@pytest.mark.parametrize("mode", [0, 0o777, 0o30000, 0o170000 | 0o644, 1 << 33])
def test_a_mode_of_no_type(copy: Copy, mode: int) -> None:
    copy.edit("UPDATE inode SET mode=? WHERE id=?", mode, copy.inode(FILE))
    assert named(copy.check(), FILE)
    repair(copy)
    with copy.open(read_only=True) as vault:
        assert stat.S_ISREG(vault.stat(FILE).st_mode)


def test_a_directory_that_became_a_file(copy: Copy) -> None:
    copy.edit("UPDATE inode SET mode=33188, nlink=1 WHERE id=?", copy.inode(b"/folder/deep/er"))
    assert "lost-directory" in codes(copy.check())
    assert copy.check(repair=True).exit_code == ExitCode.OK
    (name,) = names_in(copy, b"/lost+found")
    assert data_of(copy, b"/lost+found/" + name + b"/late") == copy.contents[b"/folder/deep/er/late"]
    assert_sound(copy)


def test_a_file_that_became_a_directory(copy: Copy) -> None:
    number = copy.inode(FILE)
    copy.edit("UPDATE inode SET mode=16877 WHERE id=?", number)
    assert "data-of-no-file" in codes(copy.check())
    assert copy.check(repair=True).exit_code == ExitCode.OK
    (name,) = names_in(copy, b"/lost+found")
    assert data_of(copy, b"/lost+found/" + name)[: len(copy.contents[FILE])] == copy.contents[FILE]
    assert_sound(copy)


def test_a_reclaimed_range_that_is_in_use(copy: Copy) -> None:
    """A mount would punch a hole into living data; fsck must be able to prevent that."""
    (place, *_), _ = copy.places(FILE)
    copy.edit("INSERT INTO reclaim VALUES (?, ?, ?)", place.segment, place.offset + 8, 5 * CHUNK)
    assert "reclaim" in codes(copy.check())
    repair(copy)


def test_counters_that_were_set_back(copy: Copy) -> None:
    """Numbers would be used twice: the kernel's caches and the chunks' ciphertext rest on it that they are not."""
    copy.edit("UPDATE setting SET value=2 WHERE name IN ('next_inode', 'next_chunk', 'next_cookie')")
    report = copy.check()
    assert codes(report) == {"setting"}
    assert len(report.findings) == 3
    repair(copy)


def test_an_integer_that_is_text(copy: Copy) -> None:
    copy.edit("UPDATE inode SET size='x' WHERE id=?", copy.inode(FILE))
    assert "inode-damaged" in codes(copy.check())
    report = copy.check(repair=True)
    assert not report.unrepaired
    assert copy.check().is_clean


def test_a_segment_of_an_unknown_key(copy: Copy) -> None:
    late = b"/folder/deep/er/late"
    _, (segment, *_) = copy.places(late)
    copy.edit("UPDATE segment SET epoch=9 WHERE id=?", segment.id)
    assert damaged_files(copy) == {late}
    assert named(copy.check(), late)
    repair(copy)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "x", "A" * 64, ""])
def test_a_segment_with_a_name_that_leads_elsewhere(copy: Copy, name: str) -> None:
    late = b"/folder/deep/er/late"
    _, (segment, *_) = copy.places(late)
    copy.edit("UPDATE segment SET name=? WHERE id=?", name, segment.id)
    with copy.open(read_only=True) as vault, pytest.raises(IntegrityError):
        vault.open(late).read()
    assert named(copy.check(), late)
    repair(copy)
