"""Something else in the place of a vault's file: symlinks, FIFOs, directories, hard links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fsck.vault_copies import Copy, codes, damaged_files, named, repair

from vaultfs.errors import ExitCode, IntegrityError, VaultError

LATE = b"/folder/deep/er/late"


def symlink_to_itself(path: Path, saved: Path) -> None:
    """The bytes are right, but the file behind the link could be changed by whoever owns it."""
    path.symlink_to(saved)


def dangling_symlink(path: Path, saved: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def fifo(path: Path, saved: Path) -> None:
    os.mkfifo(path)


def directory(path: Path, saved: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x")


def device(path: Path, saved: Path) -> None:
    path.symlink_to("/dev/zero")


PLACES = [symlink_to_itself, dangling_symlink, fifo, directory, device]


def replace(path: Path, how: Callable[[Path, Path], None], away: Path) -> Path:
    """Put something in a file's place; return where the file is now."""
    saved = away / path.name
    shutil.move(path, saved)
    how(path, saved)
    return saved


@pytest.mark.parametrize("how", PLACES, ids=lambda how: how.__name__)
def test_in_a_segments_place(copy: Copy, tmp_path: Path, how: Callable[[Path, Path], None]) -> None:
    segment = copy.segments()[1]
    saved = replace(segment, how, tmp_path)
    assert damaged_files(copy) == {LATE}
    report = copy.check()
    assert report.exit_code == ExitCode.INTEGRITY
    assert codes(report) == {"segment-replaced", "damaged-data"}
    assert named(report, LATE)
    repair(copy, lost={LATE})
    # What was there is moved aside, so that the segment can be put back.
    assert not os.path.lexists(segment)
    assert os.path.lexists(copy.path / "damaged" / segment.name)
    shutil.move(saved, segment)
    assert copy.check(repair=True).exit_code == ExitCode.OK
    assert damaged_files(copy) == set()
    assert copy.check().findings == []


def test_a_hard_link_to_another_segment(copy: Copy) -> None:
    first, second = copy.segments()
    second.unlink()
    os.link(first, second)
    assert damaged_files(copy) == {LATE}
    assert named(copy.check(), LATE)
    repair(copy, lost={LATE})


def test_a_hard_link_to_the_same_bytes_is_a_backup(copy: Copy, tmp_path: Path) -> None:
    for segment in copy.segments():
        os.link(segment, tmp_path / segment.name)
    assert damaged_files(copy) == set()
    assert copy.check().findings == []


@pytest.mark.parametrize("how", PLACES, ids=lambda how: how.__name__)
def test_in_heads_place(copy: Copy, tmp_path: Path, how: Callable[[Path, Path], None]) -> None:
    replace(copy.layout.head, how, tmp_path)
    with pytest.raises(IntegrityError):
        copy.open()
    assert codes(copy.check()) == {"head-damaged"}
    assert repair(copy).exit_code == ExitCode.OK


@pytest.mark.parametrize("how", PLACES, ids=lambda how: how.__name__)
def test_in_the_databases_place(copy: Copy, tmp_path: Path, how: Callable[[Path, Path], None]) -> None:
    replace(copy.layout.database, how, tmp_path)
    with pytest.raises(VaultError):
        copy.open()
    assert copy.check().exit_code == ExitCode.INTEGRITY
    report = copy.check(repair=True)
    assert "rebuilt" in codes(report)
    assert copy.check().is_clean
    assert os.path.lexists(copy.path / "damaged" / "metadata.db")
    with copy.open(read_only=True) as vault:
        found = {vault.open(b"/lost+found/" + name).read() for name in vault.listdir(b"/lost+found")}
    assert all(data in found for path, data in copy.contents.items() if data)


@pytest.mark.parametrize("how", PLACES, ids=lambda how: how.__name__)
def test_in_the_headers_place(copy: Copy, tmp_path: Path, how: Callable[[Path, Path], None]) -> None:
    saved = replace(copy.layout.header, how, tmp_path)
    with pytest.raises(VaultError):
        copy.open()
    with pytest.raises(VaultError):
        copy.check(repair=True)
    if copy.layout.header.is_dir() and not copy.layout.header.is_symlink():
        shutil.rmtree(copy.layout.header)
    else:
        copy.layout.header.unlink()
    shutil.move(saved, copy.layout.header)
    assert copy.check().is_clean


def test_strange_files_are_no_reason_to_refuse(copy: Copy) -> None:
    (copy.layout.segments / "zz").mkdir()
    (copy.layout.segments / "zz" / "file.seg").write_bytes(b"x")
    (copy.segments()[0].parent / "notes.txt").write_bytes(b"x")
    (copy.layout.segments / "ab").mkdir(exist_ok=True)
    stranger = copy.layout.segments / "ab" / ("ab" * 32 + ".seg")
    stranger.write_bytes(b"no segment")
    assert damaged_files(copy) == set()
    report = copy.check()
    assert report.is_clean
    assert {each.code for each in report.findings} == {"unreferenced-segment"}
    assert copy.check(repair=True).is_clean
    assert stranger.read_bytes() == b"no segment"
