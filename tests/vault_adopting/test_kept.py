"""Kept snapshots: they stay readable whatever happens to the present, and are given up as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import vaultfs
from vault_adopting.copies import (
    KEY,
    Contents,
    Copies,
    adopt,
    contents,
    read_all,
    remove,
    require_sound,
    segment_names,
    snapshots,
    write,
)
from vaultfs.errors import ExitCode, IntegrityError, UsageError, VaultLockedError
from vaultfs.ids import SegmentName
from vaultfs.metadata.compaction_rows import Policy
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.vault import kept_snapshots
from vaultfs.vault.compaction import compact
from vaultfs.vault.fsck import check
from vaultfs.vault.opening import load_header
from vaultfs.vault.rotation import rotate
from vaultfs.vault.scrub import scrub

EAGER = Policy(least_gain=4096, live_percent=95, waste_percent=1, small=1 << 30, most_small=0)


class Kept:
    """An adopted vault, and what its kept snapshots show."""

    def __init__(self, copies: Copies) -> None:
        with vaultfs.open_vault(copies.ours, KEY) as vault:
            past = {info.id: contents(copies.ours, info.id) for info in vault.snapshots()}
            now = read_all(vault)
        kept = adopt(copies.ours, copies.theirs)
        self.path = copies.ours
        self.layout = VaultLayout(copies.ours)
        self.ids = [info.id for info in kept]
        self.shows: dict[str, Contents] = {**past, self.ids[-1]: now}
        self.present = contents(copies.ours)
        self.extra = copies.ours.parent

    def require_readable(self, *but: str) -> None:
        for snapshot in self.ids:
            if snapshot not in but:
                assert contents(self.path, snapshot) == self.shows[snapshot]

    def manifest(self, index: int) -> Path:
        """Of a kept snapshot."""
        return next(self.layout.kept.glob(f"*-{self.ids[index]}.manifest"))

    def segments(self, index: int) -> set[SegmentName]:
        """What a kept snapshot needs."""
        return {name for name, _ in Manifest.decode(self.manifest(index).read_bytes())[0].segments}

    def only_of(self, index: int) -> set[SegmentName]:
        """What nothing else needs."""
        with vaultfs.open_vault(self.path, KEY, read_only=True) as vault:
            known = {row.name for row in vault.filesystem.chunk_rows.segments()}
        others = set().union(*(self.segments(other) for other in range(len(self.ids)) if other != index))
        return {name for name in self.segments(index) if name not in known} - others


@pytest.fixture
def kept(copies: Copies) -> Kept:
    return Kept(copies)


def end_the_present(path: Path) -> None:
    """Delete everything, and give back all that nothing needs."""
    with vaultfs.open_vault(path, KEY) as vault:
        for info in vault.snapshots():
            if not info.is_kept:
                vault.delete_snapshot(info.id)
        for name in vault.listdir("/"):
            vault.remove(b"/" + name)
        for _ in range(3):
            vault.commit()


def test_the_present_is_deleted(kept: Kept) -> None:
    """Segments lose what the present had in them, by rows only: nothing is punched, no file is deleted."""
    end_the_present(kept.path)
    kept.require_readable()
    names = set().union(*(kept.segments(index) for index in range(len(kept.ids))))
    assert segment_names(kept.path) >= names
    require_sound(kept.path)


def test_the_present_is_overwritten_and_compacted(kept: Kept) -> None:
    with vaultfs.open_vault(kept.path, KEY) as vault:
        for info in vault.snapshots():
            if not info.is_kept:
                vault.delete_snapshot(info.id)
        write(vault, "/common", os.urandom(50_000), 40_000)
        write(vault, "/theirs 3", os.urandom(16 << 10), 16 << 10)
        vault.commit()
        before = {row.name for row in vault.filesystem.chunk_rows.segments() if row.name}
        compact(vault.filesystem, policy=EAGER)
        vault.commit()
        now = read_all(vault)
        after = {row.name for row in vault.filesystem.chunk_rows.segments() if row.name}
        # Whatever shares a segment with a kept snapshot stays there, as moving it would free nothing.
        assert before & vault.filesystem.kept.names() <= after
        assert before - after
    assert contents(kept.path) == now
    kept.require_readable()
    require_sound(kept.path)


def test_deleting_one_gives_back_what_it_alone_needed(kept: Kept) -> None:
    alone = kept.only_of(2)
    assert alone
    before = segment_names(kept.path)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        assert vault.delete_snapshot(kept.ids[2]).id == kept.ids[2]
        assert [info.id for info in vault.snapshots() if info.is_kept] == [kept.ids[0], kept.ids[1], kept.ids[3]]
    assert before - segment_names(kept.path) == alone
    kept.require_readable(kept.ids[2])
    with pytest.raises(UsageError, match="no snapshot"):
        contents(kept.path, kept.ids[2])
    assert contents(kept.path) == kept.present
    require_sound(kept.path)


def test_deleting_all_leaves_nothing(kept: Kept) -> None:
    with vaultfs.open_vault(kept.path, KEY) as vault:
        for snapshot in kept.ids:
            vault.delete_snapshot(snapshot)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        known = {row.name for row in vault.filesystem.chunk_rows.segments()}
        assert vault.filesystem.status()["kept_snapshots"] == 0
    assert segment_names(kept.path) == known
    assert list(kept.layout.kept.iterdir()) == []
    assert contents(kept.path) == kept.present
    assert [each.code for each in check(kept.path, KEY).findings] == []


def test_what_the_present_gave_up_before_goes_with_the_snapshot(kept: Kept) -> None:
    end_the_present(kept.path)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        for snapshot in kept.ids:
            vault.delete_snapshot(snapshot)
    assert [each.code for each in check(kept.path, KEY).findings] == []
    with vaultfs.open_vault(kept.path, KEY) as vault:
        known = {row.name for row in vault.filesystem.chunk_rows.segments() if row.name}
    assert segment_names(kept.path) == known


@pytest.mark.parametrize("place", ["_end", "_give_back", "delete_segments"])
def test_a_deletion_that_is_interrupted(kept: Kept, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = kept.only_of(2)
    vault = vaultfs.open_vault(kept.path, KEY)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept_snapshots, place, stop)
        with pytest.raises(KeyboardInterrupt):
            vault.delete_snapshot(kept.ids[2])
    vault.filesystem.abandon()
    if place == "_end":
        kept.require_readable()
        return
    assert kept.ids[2] not in snapshots(kept.path)
    assert alone <= segment_names(kept.path)
    vaultfs.open_vault(kept.path, KEY).close()
    assert not alone & segment_names(kept.path)
    kept.require_readable(kept.ids[2])
    assert [each.code for each in check(kept.path, KEY).findings] == []


def test_numbers_that_two_snapshots_have(kept: Kept, copies: Copies) -> None:
    with vaultfs.open_vault(kept.path, KEY) as vault, pytest.raises(UsageError, match="2 snapshots have the number 4"):
        vault.delete_snapshot(4)
    with pytest.raises(UsageError, match="2 snapshots have the number 4"):
        contents(kept.path, "4")
    assert contents(kept.path, "3") == kept.shows[kept.ids[2]]


def test_one_that_is_read_is_not_deleted(kept: Kept) -> None:
    with (
        vaultfs.open_vault(kept.path, KEY, read_only=True, snapshot=kept.ids[1]) as reading,
        vaultfs.open_vault(kept.path, KEY) as vault,
    ):
        with pytest.raises(VaultLockedError):
            vault.delete_snapshot(kept.ids[1])
        assert read_all(reading) == kept.shows[kept.ids[1]]
    kept.require_readable()


def damage(path: Path, at: int = -1) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:  # in place, so that holes stay
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    path.chmod(mode)


def test_a_damaged_manifest_gives_nothing_back(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows what it needs, so everything stays until it is mended or deleted."""
    manifest = kept.manifest(2)
    whole = manifest.read_bytes()
    damage(manifest)
    before = segment_names(kept.path)
    end_the_present(kept.path)
    assert segment_names(kept.path) >= before
    assert caplog.text.count("no space is given back") == 1, "although there were several commits"
    assert snapshots(kept.path)[kept.ids[2]].label == kept_snapshots.DAMAGED
    with pytest.raises(IntegrityError):
        contents(kept.path, kept.ids[2])
    report = check(kept.path, KEY)
    assert [each.code for each in report.findings if each.severity == "error"] == ["kept-manifest"]
    manifest.write_bytes(whole)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        for _ in range(3):
            write(vault, "/x", os.urandom(1000))
            vault.commit()
    kept.require_readable()
    assert [each.code for each in check(kept.path, KEY).findings] == []


def test_a_damaged_manifest_can_be_deleted_or_repaired(kept: Kept) -> None:
    damage(kept.manifest(2))
    damage(kept.manifest(1))
    with vaultfs.open_vault(kept.path, KEY) as vault:
        vault.delete_snapshot(kept.ids[2])
    report = check(kept.path, KEY, repair=True)
    assert report.exit_code == ExitCode.INTEGRITY or report.findings
    assert [each.code for each in report.findings if each.severity == "error"] == ["kept-manifest"]
    assert (kept.path / "damaged").is_dir()
    require_sound(kept.path)
    assert set(snapshots(kept.path)) >= {kept.ids[0], kept.ids[3]}
    assert len(kept_files(kept.layout)) == 2


@pytest.mark.parametrize("how", ["missing", "cut", "altered"])
def test_a_segment_of_a_kept_one_is_damaged(kept: Kept, how: str) -> None:
    name = min(kept.only_of(2))
    path = kept.layout.sealed_path(name)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        damage(path, path.stat().st_size // 2)
    report = check(kept.path, KEY)
    (found,) = (each for each in report.findings if each.severity == "error")
    assert (found.code, kept.ids[2][:12] in found.message, name in found.message) == ("kept-data", True, True)
    assert not report.is_clean
    quick = check(kept.path, KEY, reads_data=False)
    assert quick.is_clean == (how == "altered")
    scrubbed = scrub(kept.path, KEY)
    assert scrubbed.damaged_chunks == 1
    assert name in scrubbed.others[0]
    repaired = check(kept.path, KEY, repair=True)
    assert not repaired.is_clean, "nobody can mend it"
    assert kept.ids[2] in snapshots(kept.path)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        vault.delete_snapshot(kept.ids[2])
    require_sound(kept.path)


def test_one_that_had_holes_before_is_checked_chunk_by_chunk(copies: Copies) -> None:
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        write(vault, "/filler", os.urandom(16 << 10))
        write(vault, "/half", os.urandom(64 << 10))
        vault.commit()
        vault.filesystem.pipeline.seal()
        vault.commit()
        remove(vault, "/filler")
    with vaultfs.open_vault(copies.ours, KEY, read_only=True) as vault:
        holed = {row.name for row in vault.filesystem.chunk_rows.segments() if row.name and row.holes}
    kept = Kept(copies)
    (name,) = holed & kept.segments(3)
    require_sound(kept.path)
    path = kept.layout.sealed_path(SegmentName(name))
    with vaultfs.open_vault(kept.path, KEY, read_only=True, snapshot=kept.ids[3]) as vault:
        number = vault.stat("/half").st_ino
        fs = vault.filesystem
        place = fs.chunk_rows.places(number, 0, 0)[0]  # type: ignore[arg-type]
        row = fs.chunk_rows.segment(place.segment)
        assert row is not None
        assert row.name == name
    damage(path, place.offset + 100)
    report = check(kept.path, KEY)
    assert ["1 chunks in it do not open" in each.message for each in report.findings] == [True]


# --- the metadata is lost or damaged


def test_rebuilt_metadata_takes_nothing_from_the_other_history(copies: Copies) -> None:
    """Chunks and files of the same numbers mean other things there, and later numbers are of no file at all."""
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        for number in range(5):
            write(vault, "/changed", os.urandom(100_000))
            write(vault, f"/more {number}", os.urandom(100_000))
    kept = Kept(copies)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        write(vault, "/later", b"after the adoption")
    for name in ("metadata.db", "heads/HEAD"):
        (kept.path / name).unlink()
    check(kept.path, KEY, repair=True)
    now = contents_below(kept.path)
    assert {name: now[name] for name in kept.present} == kept.present
    others = {data for name, data in now.items() if name not in kept.present}
    assert others == {b"after the adoption"}
    kept.require_readable()
    require_sound(kept.path)


def contents_below(path: Path) -> Contents:
    """As `contents`, with what is in ``lost+found``."""
    with vaultfs.open_vault(path, KEY) as vault:
        found = {}
        for directory in ("/", "/lost+found/"):
            for name in vault.listdir(directory):
                if name != b"lost+found":
                    with vault.open(directory.encode() + name) as file:
                        found[name.decode()] = file.read()
        return found


def test_a_lost_chunk_is_not_found_in_the_other_history(kept: Kept) -> None:
    with vaultfs.open_vault(kept.path, KEY) as vault:
        fs = vault.filesystem
        number = vault.stat("/changed").st_ino
        places = fs.chunk_rows.places(number, 0, 0)  # type: ignore[arg-type]
        row = fs.chunk_rows.segment(places[0].segment)
        assert row is not None
        for info in vault.snapshots():
            if not info.is_kept:
                vault.delete_snapshot(info.id)
    assert row.name is not None
    assert row.name not in fs.kept.names()
    kept.layout.sealed_path(SegmentName(row.name)).unlink()
    check(kept.path, KEY, repair=True)
    with (
        vaultfs.open_vault(kept.path, KEY, read_only=True) as vault,
        vault.open("/changed") as file,
        pytest.raises(IntegrityError, match="its bytes are lost"),
    ):
        file.pread(100, 0)
    kept.require_readable()


# --- keys


def test_the_keys_of_kept_snapshots_are_not_thrown_away(kept: Kept) -> None:
    outcome = rotate(kept.path, KEY, rewrite=lambda *_: None)
    assert not outcome.state.is_over
    assert outcome.state.snapshots == 5
    with vaultfs.open_vault(kept.path, KEY) as vault:
        for info in vault.snapshots():
            if not info.is_kept:
                vault.delete_snapshot(info.id)
        compact(vault.filesystem)
    kept.require_readable()
    assert contents(kept.path) == kept.present
    assert len(load_header(kept.layout).unlock(KEY).epochs) == 2
    require_sound(kept.path)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        for snapshot in kept.ids:
            vault.delete_snapshot(snapshot)
        compact(vault.filesystem)
    assert load_header(kept.layout).unlock(KEY).epochs == (2,)
    assert contents(kept.path) == kept.present
    require_sound(kept.path)


def test_a_damaged_manifest_keeps_all_keys(kept: Kept) -> None:
    damage(kept.manifest(0))
    rotate(kept.path, KEY, rewrite=lambda *_: None)
    with vaultfs.open_vault(kept.path, KEY) as vault:
        for info in vault.snapshots():
            if info.id != kept.ids[0]:
                vault.delete_snapshot(info.id)
        compact(vault.filesystem)
    assert len(load_header(kept.layout).unlock(KEY).epochs) == 2
