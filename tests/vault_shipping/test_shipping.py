"""Snapshots for remotes: in whole segments, and new only if something has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vault_compaction.vaults import KEY, read, require_exact_counts, settle, thinned, write

import vaultfs
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.fuse.compacting import BackgroundCompaction
from vaultfs.fuse.durability import Durability
from vaultfs.storage.manifest_format import Manifest
from vaultfs.storage.segment_reader import hash_file
from vaultfs.vault.api import Vault
from vaultfs.vault.compaction import NOTHING_MORE
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.shipping import KEPT, LABEL, has_holes, prepare, preparing
from vaultfs.vault.snapshot_manifest import SnapshotInfo
from vaultfs.vault.steps import Step


class NoRequests:
    requests = 0


def add_remote(fs: FileSystem) -> None:
    fs.layout.remotes.write_text("[]")


def require_whole(fs: FileSystem, info: SnapshotInfo) -> None:
    """All segments that a snapshot names have the bytes that their names say."""
    manifest, _ = Manifest.decode(fs.layout.manifest_path(info.seq, info.id).read_bytes())
    assert manifest.segments
    for name, size in manifest.segments:
        path = fs.layout.sealed_path(name)
        assert path.stat().st_size == size
        assert hash_file(path) == name


def holes(fs: FileSystem) -> int:
    return sum(row.holes for row in fs.chunk_rows.segments())


def test_without_remotes_room_is_given_back_by_holes(vault: Vault, data: bytes) -> None:
    thinned(vault, data)
    assert holes(vault.filesystem) > len(data) // 2
    assert not has_holes(vault.filesystem)  # nobody minds


def test_with_remotes_segments_stay_whole(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    add_remote(fs)
    content = thinned(vault, data)
    assert holes(fs) == 0
    assert not list(fs.chunk_rows.reclaimable(10))  # not looked at again and again
    info, is_new = prepare(fs)
    assert is_new
    require_whole(fs, info)
    assert read(vault, "/file") == content
    require_exact_counts(fs)


def test_segments_with_holes_are_written_again_first(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    content = thinned(vault, data)
    add_remote(fs)
    assert has_holes(fs)
    info, _ = prepare(fs)
    assert not has_holes(fs)
    require_whole(fs, info)
    assert read(vault, "/file") == content
    require_exact_counts(fs)


async def test_a_mounted_vault_does_the_same_beside_requests(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    durability = Durability(fs)
    content = bytearray(thinned(vault, data))
    add_remote(fs)
    compaction = BackgroundCompaction(fs, durability, NoRequests(), NOTHING_MORE)
    while await compaction.step():
        content[100:104] = b"more"
        write(vault, "/file", b"more", 100)
    assert not has_holes(fs)
    info, is_new = await durability.run(preparing(fs))
    assert is_new
    require_whole(fs, info)
    assert read(vault, "/file") == bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda vault: write(vault, "/file", b"changed"),
        lambda vault: vault.rename("/file", "/other"),
        lambda vault: vault.setxattr("/file", b"user.colour", b"blue"),
        lambda vault: vault.chmod("/file", 0o600),
        lambda vault: vault.mkdir("/folder"),
    ],
    ids=["data", "name", "attribute", "mode", "folder"],
)
def test_a_snapshot_is_new_only_if_something_changed(vault: Vault, change: object) -> None:
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", os.urandom(100_000))
    first, is_new = prepare(fs)
    assert is_new
    settle(fs)
    read(vault, "/file")
    assert prepare(fs) == (first, False)
    assert callable(change)
    change(vault)
    second, is_new = prepare(fs)
    assert is_new
    assert second.seq == first.seq + 1
    assert prepare(fs) == (second, False)


def test_what_changes_while_a_snapshot_is_made_is_in_the_next(vault: Vault) -> None:
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", b"before")
    steps = preparing(fs)
    is_changed = False
    try:
        want = next(steps)
        while True:
            if want is Step.COMMIT:
                fs.committer.commit()
            elif want is Step.LET_GO and not is_changed:
                is_changed = True
                write(vault, "/file", b"during")
            elif not isinstance(want, Step):
                want()
            want = next(steps)
    except StopIteration as done:
        first, _ = done.value
    assert is_changed
    second, is_new = prepare(fs)
    assert is_new
    assert second.seq > first.seq


def test_older_snapshots_of_syncs_go_and_those_of_people_stay(vault: Vault) -> None:
    fs = vault.filesystem
    add_remote(fs)
    mine = vault.create_snapshot("mine")
    for number in range(5):
        write(vault, "/file", bytes([number]) * 1000)
        newest, _ = prepare(fs)
    found = vault.snapshots()
    assert found[0] == mine
    assert [each.label for each in found[1:]] == [LABEL] * (KEPT + 1)
    assert found[-1] == newest


def test_older_snapshots_with_holes_do_not_keep_the_present_from_being_sent(vault: Vault, data: bytes) -> None:
    """They keep their segments, holes and all; the present is copied out of these."""
    fs = vault.filesystem
    content = thinned(vault, data)
    write(vault, "/twin", content)  # the same chunks
    write(vault, "/short", b"end" * 9000)
    assert holes(fs) > 0
    older = [vault.create_snapshot("mine"), vault.create_snapshot("mine too")]
    add_remote(fs)
    info, _ = prepare(fs)
    require_whole(fs, info)
    assert vault.snapshots()[:2] == older
    for _ in range(2):
        assert prepare(fs) == (info, False)
    for name in ("/file", "/twin"):
        assert read(vault, name) == content
    assert read(vault, "/short") == b"end" * 9000
    require_exact_counts(fs)
    for each in older:
        vault.delete_snapshot(each.seq)
    write(vault, "/short", b"changed")
    info, is_new = prepare(fs)
    assert is_new
    require_whole(fs, info)
    require_exact_counts(fs)


def test_a_remote_that_goes_and_comes_back(vault: Vault, data: bytes) -> None:
    fs = vault.filesystem
    add_remote(fs)
    write(vault, "/file", data)
    prepare(fs)
    fs.layout.remotes.unlink()
    content = thinned(vault, data)
    prepare(fs)
    add_remote(fs)
    info, _ = prepare(fs)
    require_whole(fs, info)
    assert read(vault, "/file") == content
    require_exact_counts(fs)


def test_chunks_that_are_copied_out_are_not_found_again_by_deduplication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """Only chunks of 32 KiB and more are deduplicated."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("vaultfs.vault.pipeline.SEGMENT_TARGET_BYTES", 1 << 20)
    path = tmp_path / "large-chunks"
    vaultfs.create_vault(path, KEY, kdf=KdfParameters.weakest(), chunk_size_bytes=64 << 10)
    with vaultfs.open_vault(path, KEY) as vault:
        fs = vault.filesystem
        content = thinned(vault, data)
        assert holes(fs) > 0
        vault.create_snapshot("mine")
        add_remote(fs)
        info, _ = prepare(fs)
        require_whole(fs, info)
        assert read(vault, "/file") == content
        require_exact_counts(fs)


def test_pieces_of_an_image_beside_holes_are_not_shared(vault: Vault) -> None:
    fs = vault.filesystem
    for number in range(1500):
        write(vault, f"/{number:0200}", b"")
    first = vault.create_snapshot("first")
    write(vault, "/one", b"more")
    vault.create_snapshot("second")
    vault.delete_snapshot(first.seq)
    settle(fs)
    assert holes(fs) > 0  # pieces of the first are gone, and the second has the others
    add_remote(fs)
    info, _ = prepare(fs)
    require_whole(fs, info)
    require_exact_counts(fs)
