"""What may be wrong with metadata of which every byte is authentic: each is found, named, and repaired."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from fsck.vault_copies import (
    CHUNK,
    Copy,
    assert_sound,
    codes,
    damaged_files,
    data_of,
    flip,
    named,
    names_in,
    repair,
)
from vaultfs.errors import ExitCode, StorageError
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.fsck_report import MOST_FINDINGS_OF_A_KIND, Finding, FsckReport
from vaultfs.vault.head import Head

FILE = b"/folder/file6"
LOST = b"/lost+found"


def test_a_file_that_lost_its_name(copy: Copy) -> None:
    path = b"/folder/file7"
    number = copy.inode(path)
    copy.edit("DELETE FROM entry WHERE inode=?", number)
    assert codes(copy.check()) == {"lost-file"}
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert names_in(copy, LOST) == {b"%d" % number}
    assert data_of(copy, LOST + b"/%d" % number) == copy.contents[path]
    assert_sound(copy)


def test_a_directory_that_lost_its_name(copy: Copy) -> None:
    number = copy.inode(b"/folder/deep")
    copy.edit("DELETE FROM entry WHERE inode=?", number)
    assert "lost-directory" in codes(copy.check())
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert data_of(copy, LOST + b"/%d/er/late" % number) == copy.contents[b"/folder/deep/er/late"]
    assert data_of(copy, LOST + b"/%d/link" % number) == copy.contents[FILE]
    assert_sound(copy)


def test_a_file_that_lost_its_inode(copy: Copy) -> None:
    copy.edit("DELETE FROM inode WHERE id=?", copy.inode(b"/folder/file7"))
    assert "lost-file" in codes(copy.check())
    copy.check(repair=True)
    assert damaged_files(copy) == set()  # under its name, as the name was still there
    assert_sound(copy)


def test_a_directory_that_lost_its_inode(copy: Copy) -> None:
    copy.edit("DELETE FROM inode WHERE id=?", copy.inode(b"/folder/deep"))
    assert "lost-directory" in codes(copy.check())
    repair(copy)


def test_a_name_that_leads_nowhere(copy: Copy) -> None:
    copy.edit("DELETE FROM inode WHERE id=?", copy.inode(b"/symlink"))
    report = copy.check()
    assert codes(report) == {"name-without-file"}
    assert named(report, b"/symlink")
    assert copy.check(repair=True).exit_code == ExitCode.PARTIAL
    assert b"symlink" not in names_in(copy, b"/")
    assert_sound(copy)


def test_no_root(copy: Copy) -> None:
    copy.edit("DELETE FROM inode WHERE id=1")
    assert "no-root" in codes(copy.check())
    repair(copy)


def test_lost_and_found_is_used_again_and_names_are_never_taken_twice(copy: Copy) -> None:
    path = b"/folder/file7"
    number = copy.inode(path)
    with copy.open() as vault:
        vault.mkdir(LOST)
        with vault.open(LOST + b"/%d" % number, "wb") as file:
            file.write(b"mine")
    copy.edit("DELETE FROM entry WHERE inode=?", number)
    copy.check(repair=True)
    assert names_in(copy, LOST) == {b"%d" % number, b"%d.2" % number}
    assert data_of(copy, LOST + b"/%d" % number) == b"mine"


def test_a_file_in_the_place_of_lost_and_found(copy: Copy) -> None:
    with copy.open() as vault, vault.open(LOST, "wb") as file:
        file.write(b"mine")
    copy.edit("DELETE FROM entry WHERE inode=?", copy.inode(b"/folder/file7"))
    copy.check(repair=True)
    assert data_of(copy, LOST) == b"mine"
    assert b"lost+found.2" in names_in(copy, b"/")
    assert copy.check().is_clean


@pytest.mark.parametrize(
    ("code", "sql"),
    [
        (
            "reference-count",
            "UPDATE chunk SET refs=refs+1 WHERE id=(SELECT chunk FROM extent WHERE inode=:file AND idx=1)",
        ),
        ("reference-count", "UPDATE chunk SET refs=0 WHERE id=(SELECT chunk FROM extent WHERE inode=:file AND idx=1)"),
        ("reference-count", "UPDATE chunk SET died=1 WHERE id=(SELECT chunk FROM extent WHERE inode=:file AND idx=1)"),
        ("live-count", "UPDATE segment SET live=live-1"),
        ("live-count", "UPDATE segment SET live=0"),
        ("birth", "UPDATE chunk SET born=77 WHERE id=(SELECT chunk FROM extent WHERE inode=:file AND idx=1)"),
        ("birth", "UPDATE chunk SET born=0 WHERE id=(SELECT chunk FROM extent WHERE inode=:file AND idx=1)"),
        ("chunk-count", "UPDATE inode SET chunks=chunks+1 WHERE id=:file"),
        ("chunk-count", "UPDATE inode SET chunks=0 WHERE id=:file"),
        ("attribute-without-file", "INSERT INTO xattr VALUES (4000, CAST('user.x' AS BLOB), CAST('y' AS BLOB))"),
        ("orphan-with-name", "INSERT INTO orphan VALUES (:file)"),
        ("setting", "DELETE FROM setting WHERE name='next_chunk'"),
        ("setting", "UPDATE setting SET value=x'00' WHERE name='next_inode'"),
        ("reclaim", "INSERT INTO reclaim VALUES (99, 64, 5000)"),
        ("unneeded-chunk", "INSERT INTO chunk SELECT 5000, id, 64, 100, 72, 0, 1, NULL, NULL FROM segment LIMIT 1"),
        ("parent", "UPDATE inode SET parent=1 WHERE id=(SELECT inode FROM entry WHERE name=CAST('er' AS BLOB))"),
        ("parent", "UPDATE inode SET parent=3 WHERE id=:file"),
        ("parent", "UPDATE inode SET parent=3 WHERE id=1"),
        ("extent", "INSERT INTO extent SELECT :file, -5, min(id) FROM chunk"),
    ],
)
def test_counts_and_tables(copy: Copy, code: str, sql: str) -> None:
    number = copy.inode(FILE)
    with copy.database() as database:
        before = database.changes()
        database.execute(sql.replace(":file", str(number)))
        assert database.changes() > before
    report = copy.check()
    assert code in codes(report), report.findings
    assert report.exit_code == ExitCode.INTEGRITY
    repaired = copy.check(repair=True)
    assert not repaired.unrepaired
    assert damaged_files(copy) == set()
    assert_sound(copy)


def test_two_chunks_in_one_place(copy: Copy) -> None:
    """The number of a chunk is bound into its bytes, so one of the two fails; the other one is not hurt."""
    with copy.database() as database:
        database.execute(
            "UPDATE chunk SET (segment, offset, stored, length) = (SELECT segment, offset, stored, length FROM chunk c "
            "WHERE c.id=(SELECT chunk FROM extent WHERE inode=? AND idx=0)) "
            "WHERE id=(SELECT chunk FROM extent WHERE inode=? AND idx=0)",
            (copy_inode(copy, b"/folder/file5"), copy_inode(copy, FILE)),
        )
    assert damaged_files(copy) == {FILE}
    assert {"overlap", "damaged-data"} <= codes(copy.check())
    assert {"overlap", "damaged-data"} <= codes(copy.check(reads_data=False))
    repair(copy)  # the segment's index says where the other one is


def copy_inode(copy: Copy, path: bytes) -> int:
    database = MetadataDatabase.open(copy.layout.database, copy.keyring.current.metadata, immutable=True)
    try:
        return int(database.scalar("SELECT inode FROM entry WHERE name=?", (path.rsplit(b"/", 1)[1],)))
    finally:
        database.close()


def test_a_file_deleted_while_open_is_no_finding(copy: Copy) -> None:
    vault = copy.open()
    file = vault.open(FILE)
    vault.remove(FILE)
    vault.remove(b"/folder/deep/link")
    vault.commit()
    assert file.read() == copy.contents[FILE]
    vault.filesystem.abandon()
    report = copy.check()
    assert report.is_clean, report.findings
    assert "deleted-files" in {each.code for each in report.findings}
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert copy.check().findings == []
    assert not named(copy.check(), FILE)


def test_a_snapshot_whose_manifest_is_gone(copy: Copy) -> None:
    with copy.open() as vault:
        vault.create_snapshot("first")
        vault.create_snapshot("second")
    assert copy.check().findings == []
    (path,) = copy.layout.heads.glob("0000000001-*.manifest")
    path.write_bytes(path.read_bytes()[:-1])
    report = copy.check()
    assert codes(report) == {"snapshot-manifest"}
    assert "snapshot 1 (first)" in report.findings[0].message
    assert copy.check(repair=True).exit_code == ExitCode.PARTIAL
    assert_sound(copy)
    assert damaged_files(copy) == set()
    with copy.open(read_only=True) as vault:
        assert [info.label for info in vault.snapshots()] == ["second"]
    assert (copy.path / "damaged" / path.name).exists()


def test_the_newest_snapshot_is_not_the_one_that_head_names(copy: Copy) -> None:
    with copy.open() as vault:
        vault.create_snapshot("only")
    record = Head(copy.layout, copy.keyring).load()
    Head(copy.layout, copy.keyring).write_clean(record.generation + 1, manifest_hash=bytes(32))
    assert codes(copy.check()) == {"head-snapshot"}
    repair(copy)


# --- a repair that is interrupted


class Stopped(BaseException):
    """Takes the place of a kill."""


def steps_of_a_repair(count: list[int], stop_at: int) -> dict[tuple[type, str], Callable[..., Any]]:
    """Functions that a repair passes, wrapped so that one call of them stops everything before it is made."""

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == stop_at:
                raise Stopped
            return real(*args, **kwargs)

        return call

    return {
        (owner, name): wrapped(getattr(owner, name))
        for owner, name in (
            (Head, "_write"),
            (MetadataDatabase, "commit"),
            (MetadataDatabase, "sync_wal"),
            (MetadataDatabase, "checkpoint"),
            (FileSystem, "close"),
        )
    }


def test_it_can_be_stopped_between_any_two_steps(
    template: Copy, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at = 0
    while True:
        stop_at += 1
        copy = template.copy(tmp_path / f"vault{stop_at}")
        segment, place = copy.segment_of(FILE, 2)
        flip(segment, place.offset + 30)
        copy.edit("DELETE FROM entry WHERE inode=?", copy.inode(b"/folder/file7"))
        count = [0]
        with monkeypatch.context() as patch:
            for (owner, name), step in steps_of_a_repair(count, stop_at).items():
                patch.setattr(owner, name, step)
            with contextlib.suppress(Stopped):
                copy.check(repair=True)
        report = copy.check(repair=True)
        assert not report.unrepaired
        assert copy.check().is_clean
        with copy.open(read_only=True) as vault:
            found = {vault.open(LOST + b"/" + name).read() for name in vault.listdir(LOST)}
        data = copy.contents[FILE]
        assert found == {copy.contents[b"/folder/file7"], data[: 2 * CHUNK] + bytes(CHUNK) + data[3 * CHUNK :]}
        if count[0] < stop_at:
            break
    assert stop_at > 6


def test_a_disk_that_fails_during_a_repair(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.edit("DELETE FROM entry WHERE inode=?", copy.inode(b"/folder/file7"))
    with monkeypatch.context() as patch:

        def fail(self: MetadataDatabase) -> None:
            raise StorageError("cannot sync metadata.db-wal: Input/output error")

        patch.setattr(MetadataDatabase, "sync_wal", fail)
        with pytest.raises(StorageError):
            copy.check(repair=True)
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert copy.check().is_clean


# --- the report


def test_a_report_does_not_grow_without_bound() -> None:
    report = FsckReport("vault", is_repair=True)
    for number in range(MOST_FINDINGS_OF_A_KIND + 500):
        report.add(Finding("lost-file", "error", str(number), is_repaired=number != 1400))
    report.add(Finding("known-loss", "note", "a note"))
    assert len(report.findings) == MOST_FINDINGS_OF_A_KIND + 1
    assert report.omitted == {"lost-file": 500}
    assert report.problems == MOST_FINDINGS_OF_A_KIND + 500
    assert report.unrepaired == 1
    assert report.exit_code == ExitCode.PARTIAL


def test_exit_codes_of_reports() -> None:
    def code(*, is_repair: bool, **settings: bool) -> int:
        report = FsckReport("vault", is_repair=is_repair)
        report.add(Finding("code", "error", "message", **settings))  # type: ignore[arg-type]
        return report.exit_code

    assert code(is_repair=False) == 15
    assert code(is_repair=True) == 15
    assert code(is_repair=True, is_repaired=True) == 0
    assert code(is_repair=True, is_repaired=True, is_lost=True) == 3
    assert FsckReport("vault").exit_code == 0
