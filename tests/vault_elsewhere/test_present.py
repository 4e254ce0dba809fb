"""Segments that arrive while a vault is open, snapshots of a clone, and new keys for it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from vault_compaction.vaults import EAGER, KEY, next_step, read, write

import vaultfs
from vault_elsewhere.sources import Elsewhere
from vaultfs.errors import IntegrityError, RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.compaction import AWAY_PAUSE_S, Compactor, compact
from vaultfs.vault.rotation import rotate, rotation_state
from vaultfs.vault.segment_index import read_index
from vaultfs.vault.shipping import prepare


def bring(path: Path, source: Elsewhere) -> None:
    layout = VaultLayout(path)
    for name, content in source.segments.items():
        layout.sealed_path(SegmentName(name)).parent.mkdir(exist_ok=True)
        layout.sealed_path(SegmentName(name)).write_bytes(content)


def cached(path: Path) -> set[str | None]:
    return {file.stem for file in (path / "cache").glob("*.part")}


# --- segments that arrive


def test_what_arrives_is_used_at_once(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    """Whoever brought it; and nothing of it stays in the cache."""
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        fs = vault.filesystem
        used = {row.name for row in fs.chunk_rows.segments_of_files()}
        for row in fs.chunk_rows.segments():
            fs.segments.get(row.id).reader.read(0, 10)
        assert used <= cached(path)
        bring(path, source)
        source.is_down = True
        assert read(vault, "/file") == data
        assert read(vault, "/7") == b"small 7"
        assert not used & cached(path)


def test_what_somebody_brought_between_two_mounts(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert read(vault, "/file") == data
    assert cached(path)
    bring(path, source)
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert read(vault, "/file") == data
        large = {row.name for row in vault.filesystem.chunk_rows.segments_of_files() if row.size > 1 << 20}
        assert not cached(path) & large


def test_what_was_brought_by_us(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        segments = vault.filesystem.segments
        assert read(vault, "/file") == data
        sealed = segments.sealed()
        assert sorted(each.name for each in sealed) == sorted(source.segments)
        assert [each.size for each in sealed] == [len(source.segments[each.name]) for each in sealed]
        bring(path, source)
        for each in sealed:
            segments.arrived(each.name)
            assert segments.is_needed(each)
        assert list((path / "cache").glob("*.part")) == []
        source.is_down = True
        assert read(vault, "/file") == data
        vault.remove("/file")
        for number in range(300):
            vault.remove(f"/{number}")
        for info in vault.snapshots():
            vault.delete_snapshot(info.seq)
        while vault.filesystem.files.sweep():
            pass
        vault.commit()
        vault.commit()
        assert not any(segments.is_needed(each) for each in sealed)


def test_damage_in_its_place_is_told_once(
    clone: tuple[Path, Elsewhere], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path, source = clone
    bring(path, source)
    for file in path.glob("segments/??/*.seg"):
        file.write_bytes(b"no segment")
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        for _ in range(3):
            assert read(vault, "/file") == data
        count = len(vault.filesystem.chunk_rows.segments_of_files())
    assert caplog.text.count("it is read from elsewhere") <= count


# --- snapshots


def test_a_snapshot_of_a_clone(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    """Its metadata and its data are fetched."""
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        write(vault, "/file", b"changed", 50_000)
    for part in (path / "cache").iterdir():
        part.unlink()
    with vaultfs.open_vault(path, KEY, snapshot=1, source=source) as vault:
        assert read(vault, "/file") == data
        assert len(vault.listdir("/")) == 301
    source.is_down = True
    with vaultfs.open_vault(path, KEY, snapshot=1, source=source) as vault:
        assert read(vault, "/file") == data  # all of it is in the cache
    with pytest.raises(IntegrityError):
        vaultfs.open_vault(path, KEY, snapshot=1)
    for part in (path / "cache").iterdir():
        part.unlink()
    with pytest.raises(RemoteUnreachableError):
        vaultfs.open_vault(path, KEY, snapshot=1, source=source)


@pytest.mark.parametrize("is_here", [False, True])
def test_a_torn_image_is_fetched_anew(clone: tuple[Path, Elsewhere], is_here: bool) -> None:
    """A power cut may have left anything in the cache, and a disk may have forgotten what was its own."""
    path, source = clone
    if is_here:
        bring(path, source)
    else:
        vaultfs.open_vault(path, KEY, snapshot=1, source=source).close()
    for file in [*path.glob("segments/??/*.seg"), *path.glob("cache/*.part")]:
        content = bytearray(file.read_bytes())
        for at in range(5000, len(content), 20_000):
            content[at] ^= 4
        file.write_bytes(content)
    with vaultfs.open_vault(path, KEY, snapshot=1, source=source) as vault:
        assert len(vault.listdir("/")) == 301
    source.flipped = True
    for part in (path / "cache").glob("*"):
        part.unlink()
    with pytest.raises(IntegrityError):
        vaultfs.open_vault(path, KEY, snapshot=1, source=source)


def test_a_sync_copies_nothing_that_is_elsewhere(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    """Although the present needs little of it by now; and the source may be away."""
    path, source = clone
    VaultLayout(path).remotes.write_text("[]")
    for number in range(3):
        with vaultfs.open_vault(path, KEY, source=source) as vault:
            for offset in range(0, len(data), 64 << 10):
                write(vault, "/file", bytes([number]) * (48 << 10), offset)
            vault.commit()
            source.is_down = True
            before = len(source.requests)
            prepare(vault.filesystem)
            assert len(source.requests) == before
            source.is_down = False
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        found = read(vault, "/file")
    assert found[: 48 << 10] == bytes([2]) * (48 << 10)
    assert found[48 << 10 : 64 << 10] == data[48 << 10 : 64 << 10]


# --- new keys


@pytest.fixture
def rotated(clone: tuple[Path, Elsewhere]) -> tuple[Path, Elsewhere]:
    """A clone whose only snapshot is gone, and with a new key."""
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        vault.delete_snapshot(1)
    done = rotate(path, KEY, source=source)
    assert (done.state.is_over, done.state.old_segments > 0) == (False, True)
    return path, source


def test_a_rotation_fetches_what_it_has_to_seal_again(rotated: tuple[Path, Elsewhere], data: bytes) -> None:
    path, source = rotated
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        told: list[tuple[int, int]] = []
        compact(vault.filesystem, old_keys_only=True, progress=lambda *state: told.append(state))
        state = rotation_state(vault.filesystem)
        assert (state.is_over, state.old_segments) == (True, 0)
        assert told[-1][0] > len(data)
    new = [SegmentName(file.stem) for file in path.glob("segments/??/*.seg")]
    assert new
    assert not set(new) & set(source.segments)
    source.is_down = True
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert read(vault, "/file") == data
        assert read(vault, "/7") == b"small 7"
        keyring = vault.filesystem.keyring
        number = vault.stat("/file").st_ino
    owners = {entry.inode for name in new for entry in read_index(VaultLayout(path), name, keyring).entries}
    assert number in owners, "the new segments say whose their chunks are, as the old ones did"


def test_a_rotation_waits_while_nothing_can_be_had(
    rotated: tuple[Path, Elsewhere], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path, source = rotated
    source.is_down = True
    now_s = 0.0
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        fs = vault.filesystem
        compactor = Compactor(fs, clock=lambda: now_s)
        (path / "cache").exists()
        for part in (path / "cache").glob("*"):
            part.unlink()
        before = len(source.requests)

        def work() -> None:
            for _ in range(100):
                step = compactor.plan()
                if step is not None:
                    step.read()
                    compactor.submit(step)
                    vault.commit()
                elif not compactor.has_more:
                    return
            pytest.fail("it goes on and on")

        with caplog.at_level(logging.WARNING):
            for _ in range(50):
                work()
        assert len(source.requests) == before + 1, "one attempt, and then a pause"
        assert caplog.text.count("written again when it can be had") == 1
        write(vault, "/new", b"new")
        vault.commit()
        work()
        assert len(source.requests) == before + 1
        now_s = AWAY_PAUSE_S
        work()
        assert len(source.requests) == before + 2
        assert read(vault, "/new") == b"new"
        source.is_down = False
        now_s = 2 * AWAY_PAUSE_S
        work()
        vault.commit()
        assert rotation_state(fs).old_segments == 0
        assert read(vault, "/file") == data
    assert "stays where it is" not in caplog.text


def test_a_rotation_tells_what_is_damaged_elsewhere(
    rotated: tuple[Path, Elsewhere], caplog: pytest.LogCaptureFixture
) -> None:
    path, source = rotated
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        place = vault.filesystem.chunk_rows.places(vault.stat("/file").st_ino, 3, 3)[0]  # type: ignore[arg-type]
        row = vault.filesystem.chunk_rows.segment(place.segment)
        assert row is not None
        assert row.name is not None
        content = bytearray(source.segments[row.name])
        content[place.offset + 10] ^= 1
        source.segments[row.name] = bytes(content)
        compact(vault.filesystem, old_keys_only=True)
        state = rotation_state(vault.filesystem)
        assert (state.is_over, state.old_segments) == (False, 1)
        assert caplog.text.count("stays where it is") == 1
        assert read(vault, "/7") == b"small 7"
        with pytest.raises(IntegrityError):
            read(vault, "/file")


def test_a_step_survives_torn_blocks(rotated: tuple[Path, Elsewhere], data: bytes) -> None:
    """What the cache has does not open; what the remote has does."""
    path, source = rotated
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert read(vault, "/file") == data
    for part in (path / "cache").glob("*.part"):
        content = bytearray(part.read_bytes())
        content[5000::20_000] = bytes(byte ^ 4 for byte in content[5000::20_000])
        part.write_bytes(content)
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        compactor = Compactor(vault.filesystem)
        before, bytes_read = len(source.requests), 0
        while bytes_read < len(data):
            step = next_step(compactor)
            step.read()
            assert (step.is_damaged, step.away, len(step.opened)) == (False, None, len(step.rows))
            bytes_read += sum(len(content) for _, content in step.opened)
        assert len(source.requests) > before


def test_a_remote_that_goes_away_in_the_middle(
    rotated: tuple[Path, Elsewhere], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What was fetched is sealed again; the rest is not taken for damaged."""
    path, source = rotated
    for part in (path / "cache").glob("*"):
        part.unlink()
    real = source.fetch
    left = 2

    def fetch(name: SegmentName, offset: int, length: int) -> bytes:
        nonlocal left
        source.is_down = not left
        left -= bool(left)
        return real(name, offset, length)

    source.fetch = fetch  # type: ignore[method-assign]
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        before = rotation_state(vault.filesystem).old_bytes
        compact(vault.filesystem, old_keys_only=True)
        assert 0 < rotation_state(vault.filesystem).old_bytes <= before
        assert "stays where it is" not in caplog.text
        left = 1000
        compact(vault.filesystem, old_keys_only=True)
        assert rotation_state(vault.filesystem).is_over
        assert read(vault, "/file") == data


def test_nobody_fetches_a_segment_to_tidy_it_up(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    """Not even if no snapshot needs it."""
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        vault.delete_snapshot(1)
        for offset in range(0, len(data), 32 << 10):
            write(vault, "/file", bytes(16 << 10), offset)
        vault.commit()
        before = len(source.requests)
        compact(vault.filesystem, policy=EAGER)
        assert len(source.requests) == before
        assert read(vault, "/file")[16 << 10 : 32 << 10] == data[16 << 10 : 32 << 10]
