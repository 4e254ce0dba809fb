"""Bits flipped anywhere in a vault that is not mounted: never wrong bytes, always found, and repaired."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from fsck.vault_copies import CHUNK, Copy, codes, damaged_files, data_of, flip, named, names_in, repair, walk

from vaultfs.errors import ExitCode, IntegrityError, VaultError
from vaultfs.storage.segment_format import HEADER_BYTES, TRAILER_BYTES


def regions(path: Path) -> dict[str, tuple[int, int]]:
    """First and last offset of each part of a sealed segment."""
    size = path.stat().st_size
    return {
        "magic": (0, 7),
        "vault id": (8, 23),
        "epoch and padding": (24, 31),
        "salt": (32, HEADER_BYTES - 1),
        "chunks": (HEADER_BYTES, size - TRAILER_BYTES - 400),
        "index": (size - TRAILER_BYTES - 100, size - TRAILER_BYTES - 1),
        "trailer": (size - TRAILER_BYTES, size - 1),
    }


@pytest.mark.parametrize("region", ["magic", "vault id", "epoch and padding", "salt"])
def test_the_header_of_a_segment(copy: Copy, region: str) -> None:
    """It is public, but the metadata holds the same: programs get errors, and a repair loses nothing."""
    segment = copy.segments()[0]
    first, last = regions(segment)[region]
    flip(segment, random.Random(region).randint(first, last))
    assert damaged_files(copy) >= {b"/folder/file6", b"/sparse"}
    report = copy.check()
    assert report.exit_code == ExitCode.INTEGRITY
    assert codes(report) == {"segment-header"}
    assert segment.stem in report.findings[0].message
    assert repair(copy).exit_code == ExitCode.OK
    assert not copy.check(repair=True).findings


@pytest.mark.parametrize("region", ["index", "trailer"])
def test_what_only_a_rebuild_needs(copy: Copy, region: str) -> None:
    segment = copy.segments()[-1]
    first, last = regions(segment)[region]
    flip(segment, random.Random(region).randint(first, last), bit=7)
    assert damaged_files(copy) == set()
    report = copy.check()
    assert codes(report) == {"segment-altered"}
    assert repair(copy).exit_code == ExitCode.OK


def test_each_part_of_a_sealed_chunk(template: Copy, tmp_path: Path) -> None:
    """Nonce, ciphertext and tag; the file is named, with the bytes that are lost, and nothing else is hurt."""
    path, data = b"/folder/file6", template.contents[b"/folder/file6"]
    for number, where in enumerate(("nonce", "ciphertext", "tag")):
        copy = template.copy(tmp_path / f"vault{number}")
        segment, place = copy.segment_of(path, 2)
        offset = {"nonce": 3, "ciphertext": 1000, "tag": place.stored - 5}[where]
        flip(segment, place.offset + offset, bit=number)
        assert damaged_files(copy) == {path}
        report = copy.check()
        assert report.exit_code == ExitCode.INTEGRITY
        (found,) = [each for each in report.findings if each.code == "damaged-data"]
        assert set(found.paths) == {"/folder/file6", "/folder/deep/link"}
        assert [(part.offset, part.length) for part in found.ranges] == [(2 * CHUNK, CHUNK)]
        assert "/folder/file6" in found.message
        assert "8192 to 12287" in found.message
        repaired = repair(copy, lost={path})
        assert repaired.exit_code == ExitCode.PARTIAL
        inode = copy.inode(path)
        hole = data[: 2 * CHUNK] + bytes(CHUNK) + data[3 * CHUNK :]
        assert data_of(copy, b"/lost+found/%d.readable" % inode) == hole
        # What is whole can still be read in its place, and writing the lost part anew heals the file.
        with copy.open() as vault:
            with vault.open(path, "r+b") as file:
                assert file.pread(2 * CHUNK, 0) == data[: 2 * CHUNK]
                with pytest.raises(IntegrityError, match="lost"):
                    file.pread(10, 2 * CHUNK + 5)
                file.pwrite(data[2 * CHUNK : 3 * CHUNK], 2 * CHUNK)
            assert vault.open(path).read() == data
        assert copy.check().findings == []


def test_flips_anywhere_in_segments(template: Copy, tmp_path: Path, long_run: bool) -> None:
    source = random.Random(20261124)
    for _ in range(200 if long_run else 14):
        copy = template.copy(tmp_path / "vault")
        segment = source.choice(copy.segments())
        offset = source.randrange(segment.stat().st_size)
        flip(segment, offset, bit=source.randrange(8))
        failing = damaged_files(copy)
        report = copy.check()
        if report.is_clean:
            # In a hole, or in bytes that nothing needs, of a segment that has holes: there is nothing to protect.
            assert not failing
        else:
            assert report.exit_code == ExitCode.INTEGRITY
            for path in failing if "segment-header" not in codes(report) else ():
                assert named(report, path)
            repair(copy, lost=set() if "segment-header" in codes(report) else failing)
        shutil.rmtree(copy.path)


def test_flips_anywhere_in_the_database(template: Copy, tmp_path: Path, long_run: bool) -> None:
    """HEAD does not vouch for it any more.  A repair brings back all data, and mostly in its place."""
    source = random.Random(7)
    size = template.layout.database.stat().st_size
    in_place = 0
    offsets = [source.randrange(size) for _ in range(60 if long_run else 10)]
    for number, offset in enumerate(offsets):
        copy = template.copy(tmp_path / f"vault{number}")
        flip(copy.layout.database, offset, bit=source.randrange(8))
        with pytest.raises(IntegrityError):
            copy.open()
        with pytest.raises(IntegrityError):
            copy.open(read_only=True)
        report = copy.check()
        assert report.exit_code == ExitCode.INTEGRITY
        assert codes(report) >= {"database-replaced"}
        repaired = copy.check(repair=True)
        assert repaired.exit_code in {ExitCode.OK, ExitCode.PARTIAL}, repaired.findings
        with copy.open(read_only=True) as vault:
            found = {path: vault.open(path).read() for path in walk(vault)}
        values = set(found.values())
        assert all(data in values or not data for data in copy.contents.values())
        wrong = [path for path, data in copy.contents.items() if path in found and found[path] != data]
        assert not wrong
        in_place += all(found.get(path) == data for path, data in copy.contents.items())
        assert copy.check().is_clean
    assert in_place >= len(offsets) // 2


def test_flips_in_head(template: Copy, tmp_path: Path) -> None:
    size = template.layout.head.stat().st_size
    for number, offset in enumerate((0, 11, 12, size // 2, size - 16, size - 1)):
        copy = template.copy(tmp_path / f"vault{number}")
        flip(copy.layout.head, offset)
        with pytest.raises(IntegrityError):
            copy.open()
        report = copy.check()
        assert report.exit_code == ExitCode.INTEGRITY
        assert codes(report) == {"head-damaged"}
        assert repair(copy).exit_code == ExitCode.OK


def test_flips_in_the_public_header(template: Copy, tmp_path: Path, long_run: bool) -> None:
    """Whatever is flipped: an error, or the right bytes.  A header cannot be repaired: it holds the key."""
    size = template.layout.header.stat().st_size
    source = random.Random(3)
    copy = template.copy(tmp_path / "vault")
    for _ in range(400 if long_run else 40):
        offset, bit = source.randrange(size), source.randrange(8)
        flip(copy.layout.header, offset, bit)
        try:
            assert damaged_files(copy) == set()
        except VaultError:
            with pytest.raises(VaultError):
                copy.check(repair=True)
        flip(copy.layout.header, offset, bit)
    assert damaged_files(copy) == set()
    assert copy.check().is_clean


def test_flips_in_the_log_after_a_crash(template: Copy, tmp_path: Path, long_run: bool) -> None:
    """Every file has the number of one commit: what is found is one state of the past, or an error, never a mix."""
    crashed = template.copy(tmp_path / "crashed")
    vault = crashed.open()
    names = [b"/version%d" % number for number in range(4)]
    for version in range(5):
        for name in names:
            with vault.open(name, "wb") as file:
                file.write(b"%d" % version * 3000)
        vault.commit()
    log = Path(f"{crashed.layout.database}-wal")
    saved = tmp_path / "saved"
    shutil.copytree(crashed.path, saved)
    vault.filesystem.abandon()
    size = (saved / log.name).stat().st_size
    assert size
    source = random.Random(11)
    versions = set()
    for number in range(60 if long_run else 10):
        copy = Copy(saved, crashed.keyring, crashed.contents).copy(tmp_path / f"vault{number}")
        flip(copy.path / log.name, source.randrange(size), source.randrange(8))
        try:
            with copy.open() as found:
                listed = [name for name in names if found.exists(name)]
                states = {found.open(name).read() for name in listed}
            assert len(states) <= 1, "a mix of commits"
            assert len(listed) in {0, len(names)}
            versions |= states
            assert damaged_files(copy) == set()
            assert copy.check().is_clean
        except IntegrityError:
            copy.check(repair=True)
            assert copy.check().is_clean
    assert versions <= {b"%d" % version * 3000 for version in range(5)}


def test_a_repaired_vault_can_be_repaired_again(copy: Copy) -> None:
    """Two damages one after the other: the second copy gets a name of its own."""
    path = b"/folder/file7"
    for index in (1, 4):
        segment, place = copy.segment_of(path, index)
        flip(segment, place.offset + 100)
        repair(copy, lost={path})
        with copy.open() as vault:
            vault.remove(b"/made after the repair/file")
            vault.rmdir(b"/made after the repair")
    inode = copy.inode(path)
    assert names_in(copy, b"/lost+found") == {b"%d.readable" % inode, b"%d.readable.2" % inode}
