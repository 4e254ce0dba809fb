"""Adopting another history: what is the present then, what is kept, and what it costs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vault_compaction.vaults import require_exact_counts

import vaultfs
from vault_adopting.copies import (
    KEY,
    Copies,
    adopt,
    contents,
    fetch,
    of_all_snapshots,
    offered,
    read_all,
    remove,
    require_sound,
    segment_names,
    snapshots,
    write,
)
from vaultfs.errors import IntegrityError, StorageError, UsageError, VaultLockedError
from vaultfs.metadata.chunk_rows import ChunkRows, SegmentRow
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.storage.snapshot_history import add_to_history
from vaultfs.vault.adopting import Adopting, Theirs
from vaultfs.vault.fsck import check
from vaultfs.vault.head import Head
from vaultfs.vault.metadata_image import open_image
from vaultfs.vault.opening import load_header
from vaultfs.vault.snapshot_manifest import manifest_files


def test_theirs_is_the_present_and_ours_is_kept(copies: Copies) -> None:
    ours, theirs = contents(copies.ours), contents(copies.theirs)
    past = of_all_snapshots(copies.ours)
    kept = adopt(copies.ours, copies.theirs, highest_seq=7)
    assert contents(copies.ours) == theirs
    assert [(info.seq, info.label, info.is_kept) for info in kept] == [
        (1, "common", True),
        (2, "by hand", True),
        (3, "by hand", True),
        (4, "before adopt", True),
    ]
    for snapshot, then in past.items():
        assert contents(copies.ours, snapshot) == then
    assert contents(copies.ours, kept[-1].id) == ours
    report = check(copies.ours, KEY)
    assert [each.code for each in report.findings] == [], "no segment is left over"
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        assert [info.label for info in vault.snapshots() if not info.is_kept] == ["newest"]
        assert vault.filesystem.status()["kept_snapshots"] == 4
        require_exact_counts(vault.filesystem)


def test_the_history_goes_on_from_theirs(copies: Copies) -> None:
    adopt(copies.ours, copies.theirs, highest_seq=7)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        write(vault, "/new", os.urandom(100_000))
        remove(vault, "/common")
        info = vault.create_snapshot("after")
        now = read_all(vault)
    assert info.seq == 8, "higher than all on the remote"
    data = VaultLayout(copies.ours).manifest_path(info.seq, info.id).read_bytes()
    assert Manifest.decode(data)[0].previous == bytes.fromhex(offered(copies.theirs).snapshot_id)
    require_sound(copies.ours)
    # And the other way round: for them this is a step forward.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(copies.theirs / "state"))
        before = contents(copies.theirs)
        kept = adopt(copies.theirs, copies.ours, highest_seq=8)
        assert contents(copies.theirs) == now
        assert "before adopt" not in {each.label for each in kept}
        assert contents(copies.theirs, kept[-1].id) == before
        require_sound(copies.theirs)


def test_numbers_are_higher_than_those_of_kept_snapshots(copies: Copies) -> None:
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        for _ in range(5):
            vault.create_snapshot()
    adopt(copies.ours, copies.theirs)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        assert vault.create_snapshot().seq == 9


def test_what_a_snapshot_shows_gets_no_second_one(copies: Copies) -> None:
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        vault.create_snapshot("all of it")
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        read_all(vault)
    with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
        assert adopting.keep_present() is None
    assert [info.label for info in snapshots(copies.ours).values()][-1] == "all of it"


@pytest.mark.parametrize("change", ["rename", "mode", "xattr", "link", "data", "directory", "truncate"])
def test_a_change_of_any_kind_is_kept(copies: Copies, change: str) -> None:
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        vault.create_snapshot("before the change")
        match change:
            case "rename":
                vault.rename("/common", "/elsewhere")
            case "mode":
                vault.chmod("/common", 0o640)
            case "xattr":
                vault.setxattr("/common", b"user.a", b"b")
            case "link":
                vault.link("/common", "/twin")
            case "data":
                write(vault, "/common", b"x", 5)
            case "directory":
                vault.mkdir("/folder")
            case "truncate":
                with vault.open("/common", "r+b") as file:
                    file.truncate(10)
    with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
        made = adopting.keep_present()
        assert made is not None
        assert made.label == "before adopt"


def test_only_what_is_missing_is_fetched(copies: Copies) -> None:
    layout = VaultLayout(copies.theirs)
    names = {name for name, _ in Manifest.decode(offered(copies.theirs).manifest)[0].segments}
    with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
        adopting.keep_present()
        assert {name for name, _ in adopting.missing()} == names - segment_names(copies.ours)
        assert fetch(adopting, copies.theirs) < len(names)
        for name, size in adopting.missing():
            assert layout.sealed_path(name).stat().st_size == size
        adopting.complete((), 0)
    require_sound(copies.ours)


def test_a_segment_with_holes_or_of_no_row_is_not_believed(copies: Copies) -> None:
    """In ours some of a shared segment was given back, which theirs still needs."""
    theirs = contents(copies.theirs)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        for info in vault.snapshots():
            vault.delete_snapshot(info.id)
        remove(vault, "/common")
        for _ in range(3):
            vault.commit()
        fs = vault.filesystem
        holed = {row.name for row in fs.chunk_rows.segments() if row.holes}
    needed = {name for name, _ in Manifest.decode(offered(copies.theirs).manifest)[0].segments}
    assert holed & needed
    layout = VaultLayout(copies.ours)
    stranger = min(needed - segment_names(copies.ours))
    layout.sealed_path(stranger).parent.mkdir(exist_ok=True)
    layout.sealed_path(stranger).write_bytes(bytes(VaultLayout(copies.theirs).sealed_path(stranger).stat().st_size))
    with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
        adopting.keep_present()
        assert {name for name, _ in adopting.missing()} >= (holed & needed) | {stranger}
        fetch(adopting, copies.theirs)
        adopting.complete((), 0)
    assert contents(copies.ours) == theirs
    require_sound(copies.ours)


def test_what_was_not_fetched(copies: Copies) -> None:
    with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
        adopting.keep_present()
        with pytest.raises(IntegrityError, match="is missing"):
            adopting.complete((), 0)
    assert contents(copies.ours)["unsaved"] == b"ours"
    require_sound(copies.ours)


def test_snapshots_of_syncs_do_not_pile_up(copies: Copies) -> None:
    """Of those that the other history goes on from, the newest is kept; of others, all."""
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        made = [vault.create_snapshot(label) for label in ("sync", "by hand too", "sync", "sync", "sync")]
    ancestors = [info.id for info in made[:4]]
    adopt(copies.ours, copies.theirs, ancestors=ancestors)
    kept = {snapshot for snapshot, info in snapshots(copies.ours).items() if info.is_kept}
    assert [info.id in kept for info in made] == [False, True, False, True, True]
    require_sound(copies.ours)
    assert [each.code for each in check(copies.ours, KEY).findings] == []


def test_a_mounted_snapshot_stays(copies: Copies) -> None:
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        made = [vault.create_snapshot("sync") for _ in range(2)]
        now = read_all(vault)
    with vaultfs.open_vault(copies.ours, KEY, read_only=True, snapshot=made[0].id) as mounted:
        adopt(copies.ours, copies.theirs, ancestors=[info.id for info in made])
        assert read_all(mounted) == now
        with vaultfs.open_vault(copies.ours, KEY) as vault, pytest.raises(VaultLockedError):
            vault.delete_snapshot(made[0].id)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        vault.delete_snapshot(made[0].id)
    require_sound(copies.ours)


def test_the_witness_and_a_copy_from_before(copies: Copies, tmp_path: Path) -> None:
    """The state is newer than all that this machine has seen."""
    layout = VaultLayout(copies.ours)
    keyring = load_header(layout).unlock(KEY)
    with vaultfs.open_vault(copies.ours, KEY):
        pass
    seen = Head(layout, keyring).seen_generation()
    database = layout.database.read_bytes()
    adopt(copies.ours, copies.theirs)
    assert Head(layout, keyring).seen_generation() > seen
    layout.database.write_bytes(database)
    with pytest.raises(IntegrityError):
        vaultfs.open_vault(copies.ours, KEY)


def test_back_to_what_was_kept(copies: Copies, tmp_path: Path) -> None:
    """A kept snapshot that is adopted, as the remote has it too, is an ordinary one again."""
    shutil.copytree(copies.ours, tmp_path / "before")
    before = contents(copies.ours)
    kept = adopt(copies.ours, copies.theirs)
    layout = VaultLayout(copies.ours)
    (manifest,) = layout.kept.glob(f"*-{kept[2].id}.manifest")
    then = contents(copies.ours, kept[2].id)
    back = replace(offered(copies.theirs), seq=kept[2].seq, snapshot_id=kept[2].id, manifest=manifest.read_bytes())
    with Adopting.begin(copies.ours, KEY, back) as adopting:
        assert adopting.keep_present() is None
        assert adopting.missing() == []
        adopting.complete((), 0)
    assert contents(copies.ours) == then
    listed = snapshots(copies.ours)
    assert [info.label for info in listed.values() if not info.is_kept] == ["by hand"]
    assert sorted(info.label for info in listed.values() if info.is_kept) == [
        "before adopt",
        "by hand",
        "common",
        "newest",
    ]
    assert contents(copies.ours, kept[-1].id) == before
    assert kept[2].id not in {snapshot for _, snapshot in kept_files(layout)}
    assert [each.code for each in check(copies.ours, KEY).findings] == []


def test_nobody_else_works_on_it_meanwhile(copies: Copies) -> None:
    with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
        for step in (adopting.keep_present, lambda: fetch(adopting, copies.theirs), lambda: adopting.complete((), 0)):
            step()
            with pytest.raises(VaultLockedError):
                vaultfs.open_vault(copies.ours, KEY)
    require_sound(copies.ours)


def test_a_sync_never_sees_both_histories(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no lock, and would take all manifests in ``heads`` for snapshots of one history."""
    layout = VaultLayout(copies.ours)
    seen = []

    def look(*arguments: Any) -> None:
        seen.append(manifest_files(layout))
        add_to_history(*arguments)

    monkeypatch.setattr("vaultfs.vault.adoption_record.add_to_history", look)
    adopt(copies.ours, copies.theirs)
    assert seen == [[]]
    assert [snapshot for _, snapshot in manifest_files(layout)] == [offered(copies.theirs).snapshot_id]


def test_refusals(copies: Copies, tmp_path: Path) -> None:
    theirs = offered(copies.theirs)
    with vaultfs.open_vault(copies.ours, KEY), pytest.raises(VaultLockedError):
        Adopting.begin(copies.ours, KEY, theirs)
    with pytest.raises(IntegrityError, match="not the one that was written"):
        Adopting.begin(copies.ours, KEY, replace(theirs, manifest=theirs.manifest + b"x"))
    other, _ = vaultfs.Secret.generate_recovery()
    vaultfs.create_vault(tmp_path / "other", other, kdf=vaultfs.KdfParameters.weakest())
    with pytest.raises(UsageError, match="another vault"):
        Adopting.begin(copies.ours, KEY, replace(theirs, header=load_header(VaultLayout(tmp_path / "other"))))
    vaultfs.open_vault(copies.ours, KEY).close()
    with Adopting.begin(copies.ours, KEY, theirs) as adopting, pytest.raises(UsageError, match="in order"):
        adopting.complete((), 0)
    with Adopting.begin(copies.ours, KEY, theirs) as adopting:
        adopting.keep_present()
        with pytest.raises(UsageError, match="in order"):
            adopting.keep_present()
    assert kept_files(VaultLayout(copies.ours)) == []


def test_a_snapshot_without_a_manifest(copies: Copies) -> None:
    """It could be put back, so it is not given up on the way."""
    layout = VaultLayout(copies.ours)
    seq, snapshot = manifest_files(layout)[1]
    data = layout.manifest_path(seq, snapshot).read_bytes()
    layout.manifest_path(seq, snapshot).unlink()
    with pytest.raises(IntegrityError, match="snapshot 2 has no manifest any more"):
        adopt(copies.ours, copies.theirs)
    assert contents(copies.ours)["unsaved"] == b"ours"
    layout.manifest_path(seq, snapshot).write_bytes(data)
    then = contents(copies.ours, snapshot)
    adopt(copies.ours, copies.theirs)
    assert contents(copies.ours, snapshot) == then


def test_one_of_our_own_without_a_manifest(copies: Copies) -> None:
    """Its row could not tell the new database from the old one after a crash."""
    layout = VaultLayout(copies.ours)
    seq, snapshot = manifest_files(layout)[1]
    theirs = Theirs(load_header(layout), seq, snapshot, layout.manifest_path(seq, snapshot).read_bytes())
    layout.manifest_path(seq, snapshot).unlink()
    before, files = contents(copies.ours), sorted(layout.heads.glob("*.manifest"))
    with (
        Adopting.begin(copies.ours, KEY, theirs) as adopting,
        pytest.raises(UsageError, match="snapshot 2 is this vault's own"),
    ):
        adopting.keep_present()
    vaultfs.open_vault(copies.ours, KEY).close()
    assert contents(copies.ours) == before
    assert sorted(layout.heads.glob("*.manifest")) == files
    assert not layout.kept.exists()
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        vault.delete_snapshot(seq)
    adopt(copies.ours, copies.theirs)
    require_sound(copies.ours)


def test_room_that_was_not_given_back_yet(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new database does not know of it."""
    with monkeypatch.context() as patch:
        patch.setattr("vaultfs.vault.reclaim.RANGES_AT_ONCE", 1)
        patch.setattr("vaultfs.vault.pipeline.SEGMENT_TARGET_BYTES", 128 << 10)
        with vaultfs.open_vault(copies.ours, KEY) as vault:
            write(vault, "/large", os.urandom(4 << 20))
            vault.commit()
            vault.filesystem.pipeline.seal()
            vault.commit()
            remove(vault, "/large")
        with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
            adopting.keep_present()
            fetch(adopting, copies.theirs)
            with vault_rows(copies.ours) as rows:
                waiting = {row.name for row in rows if row.name and not row.live}
            adopting.complete((), 0)
    assert len(waiting) > 2
    assert not waiting & segment_names(copies.ours)
    assert [each.code for each in check(copies.ours, KEY).findings] == []


@contextmanager
def vault_rows(path: Path) -> Iterator[list[SegmentRow]]:
    """The rows of all segments, of a vault that is in use by this very process."""
    layout = VaultLayout(path)
    database = open_image(layout.database, load_header(layout).unlock(KEY))
    try:
        yield ChunkRows(database).segments()
    finally:
        database.close()


def test_a_log_of_the_old_database(copies: Copies) -> None:
    """It would be applied to the new one."""
    with Adopting.begin(copies.ours, KEY, offered(copies.theirs)) as adopting:
        adopting.keep_present()
        fetch(adopting, copies.theirs)
        wal = copies.ours / "metadata.db-wal"
        wal.write_bytes(b"x")
        with pytest.raises(StorageError, match="was not moved into the database"):
            adopting.complete((), 0)
        wal.unlink()
    assert contents(copies.ours)["unsaved"] == b"ours"
    require_sound(copies.ours)
