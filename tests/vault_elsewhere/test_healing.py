"""A vault with damaged or missing segments that somebody else has whole."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from vault_compaction.vaults import EAGER, KEY, read, write

import vaultfs
from vault_elsewhere.sources import Elsewhere
from vaultfs.errors import ChunkIntegrityError, IntegrityError, RemoteUnreachableError, UsageError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_reader import hash_file
from vaultfs.vault.api import Vault
from vaultfs.vault.compaction import compact
from vaultfs.vault.fsck import check


@pytest.fixture
def closed(path: Path, data: bytes) -> Path:
    with vaultfs.open_vault(path, KEY) as vault:
        write(vault, "/file", data)
    return path


@pytest.fixture
def source(closed: Path) -> Elsewhere:
    return Elsewhere.of(closed)


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("segments/??/*.seg"), key=lambda each: -each.stat().st_size)


def damage(path: Path) -> None:
    """Flip a bit of every 20,000th byte."""
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    for at in range(5000, len(content), 20_000):
        content[at] ^= 4
    path.write_bytes(content)
    path.chmod(0o400)


def opened(path: Path, source: Elsewhere | None) -> Vault:
    return vaultfs.open_vault(path, KEY, source=source)


def test_without_another_copy_damage_is_an_error(closed: Path) -> None:
    damage(segments(closed)[0])
    with opened(closed, None) as vault, pytest.raises(ChunkIntegrityError):
        read(vault, "/file")


def test_damaged_chunks_are_fetched_and_mended(
    closed: Path, source: Elsewhere, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for path in segments(closed):
        damage(path)
    with opened(closed, source) as vault, caplog.at_level(logging.WARNING):
        assert read(vault, "/file") == data
    assert "is mended" in caplog.text
    assert source.fetched_bytes < 2 * len(data)
    for path in segments(closed):
        assert path.stat().st_mode & 0o777 == 0o400
    # All that the file needs is whole again, without anybody's help.
    with opened(closed, None) as vault:
        assert read(vault, "/file") == data


def test_what_was_mended_is_the_segment_again(closed: Path, source: Elsewhere, data: bytes) -> None:
    (path, *_) = segments(closed)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(70_000)
        byte = file.read(1)
        file.seek(70_000)
        file.write(bytes([byte[0] ^ 1]))
    assert hash_file(path) != path.stem
    with opened(closed, source) as vault:
        assert read(vault, "/file") == data
    assert len(source.requests) == 1
    assert hash_file(path) == path.stem


def test_a_write_into_a_damaged_chunk(closed: Path, source: Elsewhere, data: bytes) -> None:
    for path in segments(closed):
        damage(path)
    with opened(closed, source) as vault:
        for offset in range(100, len(data), 16 << 10):
            write(vault, "/file", b"new", offset)
    wanted = bytearray(data)
    for offset in range(100, len(data), 16 << 10):
        wanted[offset : offset + 3] = b"new"
    with opened(closed, None) as vault:
        assert read(vault, "/file") == wanted


@pytest.mark.parametrize("how", ["missing", "cut", "header", "symlink"])
def test_a_whole_segment_is_read_from_elsewhere(closed: Path, source: Elsewhere, data: bytes, how: str) -> None:
    for path in segments(closed):
        path.chmod(0o600)
        if how == "cut":
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
        elif how == "header":
            path.write_bytes(b"x" * 100 + path.read_bytes()[100:])
        else:
            path.unlink()
            if how == "symlink":
                path.symlink_to("/dev/zero")
    with opened(closed, source) as vault:
        assert read(vault, "/file") == data
    with opened(closed, None) as vault:
        if how == "cut":
            assert read(vault, "/file") == data  # mended, and longer than it was
        else:
            with pytest.raises(IntegrityError):
                read(vault, "/file")


@pytest.mark.parametrize("trouble", ["is_down", "flipped"])
@pytest.mark.parametrize("is_missing", [False, True])
def test_no_wrong_byte_from_elsewhere(closed: Path, source: Elsewhere, trouble: str, is_missing: bool) -> None:
    for path in segments(closed):
        if is_missing:
            path.unlink()
        else:
            damage(path)
    before = [path.read_bytes() for path in segments(closed)]
    setattr(source, trouble, True)
    # Damage is damage whoever is away; but what is not here at all is only not to be had now.
    error = RemoteUnreachableError if is_missing and trouble == "is_down" else IntegrityError
    with opened(closed, source) as vault, pytest.raises(error):
        read(vault, "/file")
    assert [path.read_bytes() for path in segments(closed)] == before


# --- a clone: nothing but metadata is here


def test_a_clone_fetches_the_metadata_only(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    path, source = clone
    assert len(source.requests) <= 4
    assert source.fetched_bytes < len(data) // 2
    before = len(source.requests)
    with opened(path, source) as vault:
        assert len(vault.listdir("/")) == 301
    assert len(source.requests) == before
    with opened(path, source) as vault:
        assert read(vault, "/file") == data
        assert read(vault, "/7") == b"small 7"
        before = len(source.requests)
        assert read(vault, "/file") == data
        assert len(source.requests) == before
    assert before < 12


def test_a_clone_is_written_to(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    path, source = clone
    with opened(path, source) as vault:
        write(vault, "/file", b"changed", 50_000)
        write(vault, "/new", data[:100_000])
        vault.remove("/5")
        vault.create_snapshot("mine")
        before = len(source.requests)
        compact(vault.filesystem, policy=EAGER)
        assert len(source.requests) == before  # nobody fetches a segment to tidy it up
    with opened(path, source) as vault:
        assert read(vault, "/file") == data[:50_000] + b"changed" + data[50_007:]
        assert read(vault, "/new") == data[:100_000]
        assert not vault.exists("/5")


def test_a_clone_whose_source_is_away(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    path, source = clone
    source.is_down = True
    with opened(path, source) as vault:
        with pytest.raises(RemoteUnreachableError):
            read(vault, "/file")
        write(vault, "/new", b"works")
        source.is_down = False
        assert read(vault, "/file") == data
        assert read(vault, "/new") == b"works"


def test_a_crash_while_the_source_is_away(clone: tuple[Path, Elsewhere], data: bytes) -> None:
    """What was durable stays so: the vault waits until it can be put into its file."""
    path, source = clone
    vault = opened(path, source)
    write(vault, "/file", b"durable", 50_000)
    assert vault.filesystem.committer.try_log()
    vault.filesystem.committer.sync_wal()
    vault.filesystem.abandon()
    for part in (path / "cache").iterdir():
        part.unlink()
    source.is_down = True
    for _ in range(2):
        with pytest.raises(RemoteUnreachableError):
            opened(path, source)
    source.is_down = False
    with opened(path, source) as vault:
        assert read(vault, "/file") == data[:50_000] + b"durable" + data[50_007:]


@pytest.mark.parametrize("has_database", [True, False])
def test_a_repair_does_not_give_up_what_is_elsewhere(
    clone: tuple[Path, Elsewhere], data: bytes, has_database: bool
) -> None:
    path, source = clone
    layout = VaultLayout(path)
    layout.remotes.write_text("[]")
    if not has_database:
        layout.database.rename(path / "away")
    with pytest.raises(UsageError, match="clone --fill"):
        check(path, KEY, repair=True)
    if not has_database:
        (path / "away").rename(layout.database)
    with opened(path, source) as vault:
        assert read(vault, "/file") == data
    for name, content in source.segments.items():
        layout.sealed_path(SegmentName(name)).parent.mkdir(exist_ok=True)
        layout.sealed_path(SegmentName(name)).write_bytes(content)
    assert check(path, KEY, repair=True).is_clean
    with opened(path, None) as vault:
        assert read(vault, "/file") == data


def test_only_what_is_damaged_is_fetched(closed: Path, source: Elsewhere, data: bytes) -> None:
    path = segments(closed)[0]
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[200_000] ^= 1
    path.write_bytes(content)
    with opened(closed, source) as vault:
        assert read(vault, "/file") == data  # in runs of many chunks
    assert len(source.requests) == 1
