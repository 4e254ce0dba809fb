"""Whatever stands on the disk: parsing it gives something, or an error of ours."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vaultfs.crypto.aead import SegmentCipher, seal_record
from vaultfs.crypto.device import DeviceKey
from vaultfs.crypto.head import HeadRecord
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.keys import Keyring, MasterKey
from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import ChunkId, Generation, InodeId, KeyEpoch, SegmentName, SnapshotSeq, VaultId
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock, read_holder
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.storage.segment_format import (
    HEADER_BYTES,
    IndexEntry,
    SegmentHeader,
    decode_index,
    decode_trailer,
    encode_index,
    encode_trailer,
)
from vaultfs.vault.head import LARGEST_HEAD_BYTES, Head, witness_path
from vaultfs.vault.opening import load_header
from vaultfs.vault.segment_index import read_index
from vaultfs.vault.snapshot_manifest import Piece, SegmentFacts, SnapshotContent, _decode_private, open_manifest

from .corrupting import BOMBS, any_or_damaged, untimed

VAULT_ID = VaultId(bytes(range(16)))
KEYRING = Keyring(VAULT_ID, [MasterKey(bytes(range(32)), KeyEpoch(1)), MasterKey(bytes(32), KeyEpoch(2))])
NAME = SegmentName("ab" * 32)
GOLDEN_HEADER = (Path(__file__).parents[1] / "golden" / "format-1" / "vault.json").read_bytes()
ENTRIES = [
    IndexEntry(ChunkId(number), HEADER_BYTES + 100 * number, 100, 72, InodeId(3), number - 1) for number in range(1, 30)
]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> VaultLayout:
    made = VaultLayout(tmp_path_factory.mktemp("vault"))
    made.create_directories()
    return made


# --- the header


@untimed
@given(any_or_damaged(GOLDEN_HEADER))
@example(GOLDEN_HEADER)
def test_a_header(layout: VaultLayout, data: bytes) -> None:
    layout.header.write_bytes(data)
    with contextlib.suppress(VaultError):
        header = load_header(layout)
        assert VaultHeader.decode(header.encode()) == header


# --- segments


@untimed
@given(any_or_damaged(SegmentHeader(VAULT_ID, KeyEpoch(1), bytes(32)).encode()))
def test_a_segment_header(data: bytes) -> None:
    with contextlib.suppress(VaultError):
        assert SegmentHeader.decode(data).encode() == data


@untimed
@given(any_or_damaged(encode_trailer(1000, 200, 29)), st.integers(-(2**70), 2**70))
def test_a_trailer(data: bytes, file_size: int) -> None:
    with contextlib.suppress(VaultError):
        trailer = decode_trailer(data, file_size)
        assert HEADER_BYTES <= trailer.index_offset < file_size
        assert trailer.index_offset + trailer.index_length < file_size


@untimed
@given(any_or_damaged(encode_index(ENTRIES)))
def test_an_index(data: bytes) -> None:
    with contextlib.suppress(VaultError):
        entries = decode_index(data)
        assert decode_index(encode_index(entries)) == entries


@cache
def segment() -> bytes:
    """A small sealed segment, as a whole file."""
    header = SegmentHeader(VAULT_ID, KeyEpoch(1), bytes(32))
    cipher = SegmentCipher(KEYRING.subkeys(KeyEpoch(1)).chunk, VAULT_ID, bytes(32))
    body = header.encode() + bytes(100 * len(ENTRIES) + 100)
    index = cipher.seal_record(b"index", encode_index(ENTRIES))
    trailer = cipher.seal_record(b"trailer", encode_trailer(len(body), len(index), len(ENTRIES)))
    return body + index + trailer


@untimed
@given(any_or_damaged(segment()))
@example(segment())
def test_a_segment_file(layout: VaultLayout, data: bytes) -> None:
    path = layout.sealed_path(NAME)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with contextlib.suppress(VaultError):
        assert read_index(layout, NAME, KEYRING).entries == ENTRIES


def sealed_records(plain_trailer: bytes, plain_index: bytes) -> bytes:
    """A segment whose records open, and hold what is given."""
    header = SegmentHeader(VAULT_ID, KeyEpoch(1), bytes(32))
    cipher = SegmentCipher(KEYRING.subkeys(KeyEpoch(1)).chunk, VAULT_ID, bytes(32))
    return header.encode() + cipher.seal_record(b"index", plain_index) + cipher.seal_record(b"trailer", plain_trailer)


@untimed
@given(any_or_damaged(encode_index(ENTRIES)), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_records_of_somebody_with_the_key(layout: VaultLayout, index: bytes, count: int, wrong_length: int) -> None:
    path = layout.sealed_path(NAME)
    path.parent.mkdir(exist_ok=True)
    for length in (len(index) + 28, wrong_length):
        path.write_bytes(sealed_records(encode_trailer(HEADER_BYTES, length, count), index))
        with contextlib.suppress(VaultError):
            found = read_index(layout, NAME, KEYRING)
            assert len(found.entries) == count


# --- HEAD and its witness

HEAD_PLAIN = HeadRecord(Generation(7), "clean", bytes(32), bytes(32))
SEALED_HEAD = HEAD_PLAIN.seal(KEYRING.current, VAULT_ID)


@untimed
@given(any_or_damaged(SEALED_HEAD))
@example(SEALED_HEAD)
@example(bytes(LARGEST_HEAD_BYTES + 1))
def test_head(layout: VaultLayout, data: bytes) -> None:
    layout.head.write_bytes(data)
    try:
        assert Head(layout, KEYRING).load(accept_any=True) == HEAD_PLAIN
    except VaultError:
        assert data != SEALED_HEAD


@untimed
@given(any_or_damaged(bytes(74)))
def test_head_of_somebody_with_the_key(plain: bytes) -> None:
    with contextlib.suppress(VaultError):
        record = HeadRecord.open(KEYRING, seal_record(KEYRING.current.record, b"head" + VAULT_ID, plain))
        again = HeadRecord.open(KEYRING, record.seal(KEYRING.current, VAULT_ID))
        assert again == record


WITNESS = b'{"generation":7,"epoch":2,"head":"' + b"0" * 64 + b'"}'


@untimed
@given(any_or_damaged(WITNESS))
@example(WITNESS.replace(b"0" * 64, b"\xff"))
@example(b'{"generation":7,"epoch":2,"head":"","more":' + b"[" * 3000)
def test_a_witness(layout: VaultLayout, data: bytes) -> None:
    layout.head.write_bytes(SEALED_HEAD)
    path = witness_path(KEYRING)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        with contextlib.suppress(VaultError):
            Head(layout, KEYRING).load()
    finally:
        path.unlink()


def test_a_huge_witness_is_not_read(layout: VaultLayout) -> None:
    layout.head.write_bytes(SEALED_HEAD)
    path = witness_path(KEYRING)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    try:
        with pytest.raises(IntegrityError, match="damaged"):
            Head(layout, KEYRING).load()
    finally:
        path.unlink()


# --- manifests

FACTS = SegmentFacts(NAME, KeyEpoch(2), bytes(32), 5000)
CONTENT = SnapshotContent(
    SnapshotSeq(1), 5, "label", 3, 100, 4096, 4096, (FACTS,), (Piece(0, 64, 4096 + 28, 4096, ChunkId(9)),)
)
PRIVATE = (
    *(1, 1, 5, "label", 3, 100, 4096, 4096, [(bytes.fromhex(NAME), 2, bytes(32), 5000)]),
    *([0], [64], [4096 + 28], [4096], [9]),
)


def signed(private: bytes) -> tuple[Manifest, bytes]:
    """A manifest that is right in every respect, but for its private part."""
    device = DeviceKey(KEYRING.current.device)
    sealed = seal_record(KEYRING.current.manifest, b"manifest" + VAULT_ID + (1).to_bytes(8, "little"), private)
    manifest = Manifest(VAULT_ID, device.public, SnapshotSeq(1), 5, None, ((NAME, 5000),), sealed)
    return manifest, manifest.encode(device.sign(manifest.signed_bytes()))


WHOLE = signed(msgspec.msgpack.encode(PRIVATE))[1]


@untimed
@given(any_or_damaged(WHOLE))
@example(WHOLE)
def test_a_manifest(data: bytes) -> None:
    with contextlib.suppress(VaultError):
        manifest, signature = Manifest.decode(data)
        assert manifest.encode(signature) == data
    try:
        assert open_manifest(KEYRING, data, 1, manifest_hash(data))[1] == CONTENT
    except VaultError:
        assert data != WHOLE


@untimed
@given(any_or_damaged(msgspec.msgpack.encode(PRIVATE)))
@example(msgspec.msgpack.encode((*PRIVATE[:3], "label", *PRIVATE[4:])).replace(b"label", b"\xff\xff\xff\xff\xff"))
@example(b"\xdc\x00\x0f" + msgspec.msgpack.encode(PRIVATE)[1:] + b"\x91" * 100_000)
def test_the_private_part_of_somebody_with_the_key(private: bytes) -> None:
    manifest, _ = signed(private)
    with contextlib.suppress(VaultError):
        content = _decode_private(private, manifest, "the manifest")
        assert sum(piece.length for piece in content.pieces) == content.database_bytes
        assert {each.name for each in content.segments} == {NAME}


# --- the lock


@untimed
@given(any_or_damaged(b"1234\nmount\n"))
@example(b"9" * 5000 + b"\n")
@example("٣\n\u202e\x1b[2J\n".encode())
def test_a_lock_file(layout: VaultLayout, data: bytes) -> None:
    with VaultLock.acquire(layout, purpose="fuzz"):
        layout.lock.write_bytes(data)
        holder = read_holder(layout)
    assert holder is not None
    assert 0 <= holder.pid < 10**20
    assert holder.purpose.isprintable()


@untimed
@given(st.text(max_size=2000))
def test_any_purpose(layout: VaultLayout, purpose: str) -> None:
    with VaultLock.acquire(layout, purpose=purpose):
        holder = read_holder(layout)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert holder.purpose.isprintable()


# --- names


@untimed
@given(st.text(max_size=80) | st.binary(max_size=80).map(os.fsdecode))
@example("../" * 20)
@example("AB" * 32)
@example("ab" * 32 + "\n")
def test_a_name_from_the_database_never_leaves_the_vault(name: str) -> None:
    layout = VaultLayout(Path("/vault"))
    paths = []
    with contextlib.suppress(VaultError):
        paths.append(layout.sealed_path(SegmentName(name)))
    with contextlib.suppress(VaultError):
        paths.append(layout.open_path(name))
    with contextlib.suppress(VaultError):
        paths.append(layout.manifest_path(1, name))
    for path in paths:
        assert os.path.normpath(path) == str(path)
        assert path.parent in {layout.heads, layout.open_segments, layout.segments / name[:2]}
        assert "\n" not in path.name


def test_bombs_are_what_they_are_called() -> None:
    """Or the tests above would test nothing."""
    with pytest.raises(RecursionError):
        msgspec.json.decode(BOMBS[0])
    with pytest.raises(RecursionError):
        msgspec.msgpack.decode(BOMBS[2])
