"""HEAD, and the hash of the database."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from descriptors import open_files
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto.aead import seal_record
from vaultfs.crypto.head import HeadRecord, hash_database
from vaultfs.crypto.keys import Keyring, MasterKey
from vaultfs.errors import IntegrityError, StorageError, UsageError
from vaultfs.ids import Generation, KeyEpoch, VaultId

from . import longhand

VAULT = VaultId(bytes(range(16)))
OLD, NEW = MasterKey(b"o" * 32, KeyEpoch(1)), MasterKey(b"n" * 32, KeyEpoch(2))
RING = Keyring(VAULT, [OLD, NEW])
RECORD = HeadRecord(Generation(7), "clean", b"d" * 32, b"m" * 32)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        HeadRecord(Generation(0), "open", bytes(32), None),
        HeadRecord(Generation(2**64 - 1), "clean", b"\xff" * 32, bytes(32)),
    ],
)
def test_head_opens_as_it_was_sealed(record: HeadRecord) -> None:
    assert HeadRecord.open(RING, record.seal(RING.current, VAULT)) == record


def test_head_is_sealed_as_documented(dead_random: None) -> None:
    plain = struct.pack("<BBQ", 0, 1, 7) + b"d" * 32 + b"m" * 32
    expected = longhand.seal_record(RING.current.record, b"head" + VAULT, plain, b"\x5a" * 16)
    assert RECORD.seal(RING.current, VAULT) == expected


def test_head_of_an_older_epoch_opens_and_says_so() -> None:
    assert HeadRecord.open(RING, RECORD.seal(RING.subkeys(KeyEpoch(1)), VAULT)).epoch == 1
    assert HeadRecord.open(RING, RECORD.seal(RING.current, VAULT)).epoch == 2


def test_head_of_a_retired_epoch_does_not_open() -> None:
    made = RECORD.seal(RING.subkeys(KeyEpoch(1)), VAULT)
    with pytest.raises(IntegrityError, match="HEAD"):
        HeadRecord.open(Keyring(VAULT, [NEW]), made)


def test_head_of_another_vault_does_not_open() -> None:
    other = VaultId(bytes(16))
    for made in (RECORD.seal(RING.current, other), RECORD.seal(Keyring(other, [NEW]).current, other)):
        with pytest.raises(IntegrityError):
            HeadRecord.open(RING, made)


def test_any_flipped_bit_is_noticed() -> None:
    made = RECORD.seal(RING.current, VAULT)
    for bit in range(8 * len(made)):
        changed = bytearray(made)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            HeadRecord.open(RING, bytes(changed))


@given(st.binary(max_size=200))
def test_garbage_is_no_head(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        HeadRecord.open(RING, data)
    with pytest.raises(IntegrityError):
        HeadRecord.open(RING, seal_record(RING.current.record, b"head" + VAULT, b"\x02\x00" + data))


@pytest.mark.parametrize("start", [b"\x02\x00", b"\x00\x02", b"\xff\xff"])
def test_states_that_are_never_written_are_refused(start: bytes) -> None:
    made = seal_record(RING.current.record, b"head" + VAULT, start + bytes(72))
    with pytest.raises(IntegrityError, match="state"):
        HeadRecord.open(RING, made)


@pytest.mark.parametrize(
    "record",
    [
        HeadRecord(Generation(-1), "clean", bytes(32), None),
        HeadRecord(Generation(2**64), "clean", bytes(32), None),
        HeadRecord(Generation(1), "clean", bytes(31), None),
        HeadRecord(Generation(1), "clean", bytes(32), bytes(33)),
    ],
)
def test_a_record_out_of_range_is_not_sealed(record: HeadRecord) -> None:
    with pytest.raises(UsageError):
        record.seal(RING.current, VAULT)


# ------------------------------------------------------------------------------------------------ the database's hash


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_the_hash_is_of_the_whole_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(os.urandom(size))
    key = longhand.hkdf(RING.current.record, b"", b"vaultfs 1 database hash")
    assert hash_database(RING.current, path) == longhand.keyed_blake3(key, path.read_bytes())


def test_the_hash_needs_the_key(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"pages")
    assert hash_database(RING.current, path) != hash_database(RING.subkeys(KeyEpoch(1)), path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IntegrityError, match="no regular file"):
        hash_database(RING.current, tmp_path / "fifo")
    with pytest.raises(IntegrityError, match="no regular file"):
        hash_database(RING.current, tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    for name in ("link", "missing"):
        with pytest.raises(StorageError):
            hash_database(RING.current, tmp_path / name)


def test_a_disk_that_fails_is_an_error_and_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"pages")

    def readv(descriptor: int, buffers: object) -> int:
        raise OSError(5, "Input/output error")

    before = open_files()
    monkeypatch.setattr(os, "readv", readv)
    with pytest.raises(StorageError, match="Input/output error"):
        hash_database(RING.current, path)
    assert open_files() == before
