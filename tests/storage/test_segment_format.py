from __future__ import annotations

import random
import struct
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import FormatTooNewError, IntegrityError, VaultError
from vaultfs.ids import ChunkId, InodeId, KeyEpoch, VaultId
from vaultfs.storage.segment_format import (
    HEADER_BYTES,
    MAX_ENTRIES,
    MAX_INDEX_BYTES,
    TRAILER_BYTES,
    IndexEntry,
    SegmentHeader,
    Trailer,
    decode_index,
    decode_trailer,
    encode_index,
    encode_trailer,
)

HEADER = SegmentHeader(VaultId(b"v" * 16), KeyEpoch(0x01020304), b"s" * 32)
TOP = 2**63 - 1


def test_header_vector() -> None:
    encoded = b"VFSSEG\0\x01" + b"v" * 16 + b"\x04\x03\x02\x01" + bytes(4) + b"s" * 32
    assert HEADER.encode() == encoded
    assert len(encoded) == HEADER_BYTES == 64
    assert SegmentHeader.decode(encoded) == HEADER


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32))
def test_headers_come_back(vault_id: bytes, epoch: int, salt: bytes) -> None:
    header = SegmentHeader(VaultId(vault_id), KeyEpoch(epoch), salt)
    assert SegmentHeader.decode(header.encode()) == header


@pytest.mark.parametrize(
    ("vault_id", "epoch", "salt"),
    [
        (b"v" * 15, 1, b"s" * 32),
        (b"v" * 17, 1, b"s" * 32),
        (b"v" * 16, -1, b"s" * 32),
        (b"v" * 16, 2**32, b"s" * 32),
        (b"v" * 16, 1, b"s" * 31),
        (b"v" * 16, 1, b"s" * 33),
    ],
)
def test_impossible_headers(vault_id: bytes, epoch: int, salt: bytes) -> None:
    with pytest.raises(ValueError, match="segment header"):
        SegmentHeader(VaultId(vault_id), KeyEpoch(epoch), salt)


def test_every_flipped_bit_of_a_header_is_noticed_or_changes_what_keys_depend_on() -> None:
    encoded = HEADER.encode()
    for bit in range(8 * len(encoded)):
        flipped = bytearray(encoded)
        flipped[bit // 8] ^= 1 << bit % 8
        if bit // 8 < 8 or 28 <= bit // 8 < 32:
            with pytest.raises(VaultError):
                SegmentHeader.decode(bytes(flipped))
        else:
            assert SegmentHeader.decode(bytes(flipped)) != HEADER


def test_newer_and_impossible_versions() -> None:
    encoded = bytearray(HEADER.encode())
    encoded[7] = 2
    with pytest.raises(FormatTooNewError, match="update vaultfs"):
        SegmentHeader.decode(bytes(encoded))
    encoded[7] = 0
    with pytest.raises(IntegrityError):
        SegmentHeader.decode(bytes(encoded))


@given(st.one_of(st.binary(max_size=100), st.binary(min_size=57, max_size=57).map(lambda rest: b"VFSSEG\0" + rest)))
def test_any_bytes_as_a_header(data: bytes) -> None:
    try:
        header = SegmentHeader.decode(data)
    except VaultError:
        return
    assert header.encode() == data


def test_trailer_vector() -> None:
    encoded = encode_trailer(1000, 200, 3)
    assert encoded == struct.pack("<QQQQ", 1000, 200, 3, 0)
    assert decode_trailer(encoded, 1260) == Trailer(1000, 200, 3)
    assert 12 + len(encoded) + 16 == TRAILER_BYTES


@pytest.mark.parametrize(
    ("fields", "file_size"),
    [
        ((1000, 200, 3, 0), 1259),
        ((1000, 200, 3, 0), 1261),
        ((1000, 200, 3, 1), 1260),
        ((1000, 200, MAX_ENTRIES + 1, 0), 1260),
        ((63, 200, 3, 0), 323),
        ((0, 200, 3, 0), 260),
        ((1000, 27, 3, 0), 1087),
        ((2**64 - 1, 1261, 3, 0), 1260),
        ((2**64 - 1, 2**64 - 1, 0, 0), 1260),
        ((0, 0, 0, 0), 0),
        ((64, 28, 0, 0), 28),
    ],
)
def test_trailers_that_do_not_fit(fields: tuple[int, int, int, int], file_size: int) -> None:
    with pytest.raises(IntegrityError):
        decode_trailer(struct.pack("<4Q", *fields), file_size)


def test_the_smallest_trailer() -> None:
    assert decode_trailer(encode_trailer(64, 28, 0), 152) == Trailer(64, 28, 0)


@given(st.binary(max_size=64), st.integers(0, 2**64))
def test_any_bytes_as_a_trailer(data: bytes, file_size: int) -> None:
    try:
        trailer = decode_trailer(data, file_size)
    except VaultError:
        return
    assert trailer.index_offset + trailer.index_length + TRAILER_BYTES == file_size
    assert encode_trailer(*trailer) == data


@given(st.integers(64, 2**40), st.integers(28, 2**40), st.integers(0, MAX_ENTRIES))
def test_trailers_come_back(offset: int, length: int, count: int) -> None:
    assert decode_trailer(encode_trailer(offset, length, count), offset + length + 60) == (offset, length, count)


def entry(chunk_id: int = 1, offset: int = 64, stored: int = 128, length: int = 100, **more: int) -> IndexEntry:
    return IndexEntry(ChunkId(chunk_id), offset, stored, length, InodeId(more.get("inode", 2)), more.get("index", 0))


def test_index_vector() -> None:
    entries = [
        entry(5, 64, 128, 100, inode=7),
        entry(6, 192, 40, 4096, inode=7, index=1),
        entry(3, 300, 29, 1, inode=0),
    ]
    columns = ([5, 1, -3], [0, 0, 68], [128, 40, 29], [100, 4096, 1], [7, 0, -7], [0, 1, -1])
    assert encode_index(reversed(entries)) == msgspec.msgpack.encode(columns)
    assert decode_index(encode_index(entries)) == entries


def test_an_empty_index() -> None:
    assert decode_index(encode_index([])) == []


@st.composite
def index_entries(draw: st.DrawFn) -> list[IndexEntry]:
    end = HEADER_BYTES
    entries = []
    for _ in range(draw(st.integers(0, 20))):
        length = draw(st.integers(1, 2**32 - 1))
        stored = draw(st.integers(29, length + 28))
        offset = end + draw(st.integers(0, 2**40))
        number = st.integers(0, TOP)
        entries.append(
            IndexEntry(ChunkId(draw(st.integers(1, TOP))), offset, stored, length, InodeId(draw(number)), draw(number))
        )
        end = offset + stored
    return entries


@given(index_entries(), st.randoms())
def test_indexes_come_back_in_order_of_offset(entries: list[IndexEntry], order: random.Random) -> None:
    shuffled = entries.copy()
    order.shuffle(shuffled)
    assert decode_index(encode_index(shuffled)) == entries


def test_a_full_index_fits() -> None:
    step = (TOP - 64) // MAX_ENTRIES
    big = [
        entry(TOP - i % 2 * (TOP - 1), 64 + i * step, 2**32, 2**32 - 1, inode=TOP - i % 2 * TOP, index=TOP * (i % 2))
        for i in range(MAX_ENTRIES)
    ]
    encoded = encode_index(big)
    assert len(encoded) <= MAX_INDEX_BYTES
    assert decode_index(encoded) == big
    with pytest.raises(ValueError, match="at most 65536"):
        encode_index([*big, entry(1, TOP - 200)])


def test_an_ordinary_index_is_compact() -> None:
    entries = [entry(1000 + i, 64 + i * 131100, 131100, 131072, inode=9, index=i) for i in range(512)]
    assert len(encode_index(entries)) < 15 * 512


IMPOSSIBLE: dict[str, Callable[[], list[IndexEntry]]] = {
    "chunk 0": lambda: [entry(0)],
    "chunk -1": lambda: [entry(-1)],
    "chunk 2**63": lambda: [entry(2**63)],
    "inside the header": lambda: [entry(1, 63)],
    "overlap": lambda: [entry(1, 64, 128), entry(2, 191)],
    "no plaintext": lambda: [entry(1, 64, 28, 0)],
    "plaintext too long": lambda: [entry(1, 64, 100, 2**32)],
    "only a nonce and a tag": lambda: [entry(1, 64, 28, 100)],
    "larger than uncompressed": lambda: [entry(1, 64, 129, 100)],
    "end out of range": lambda: [entry(1, TOP - 100, 128)],
    "inode -1": lambda: [entry(inode=-1)],
    "inode 2**63": lambda: [entry(inode=2**63)],
    "index -1": lambda: [entry(index=-1)],
    "index 2**63": lambda: [entry(index=2**63)],
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_entries(case: str) -> None:
    entries = IMPOSSIBLE[case]()
    with pytest.raises(ValueError, match="entry"):
        encode_index(entries)
    end, last = HEADER_BYTES, IndexEntry(ChunkId(0), 0, 0, 0, InodeId(0), 0)
    columns: list[list[int]] = [[], [], [], [], [], []]
    for one in entries:
        steps = one.chunk_id - last.chunk_id, one.offset - end, one.stored, one.length
        for column, value in zip(columns, (*steps, one.inode - last.inode, one.index - last.index), strict=True):
            column.append(value)
        end, last = one.offset + one.stored, one
    with pytest.raises(IntegrityError, match="out of bounds"):
        decode_index(msgspec.msgpack.encode(columns))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        msgspec.msgpack.encode([[], [], [], [], []]),
        msgspec.msgpack.encode([[], [], [], [], [], [], []]),
        msgspec.msgpack.encode([[1], [0], [100], [100], [0], []]),
        msgspec.msgpack.encode([[1.0], [0], [100], [100], [0], [0]]),
        msgspec.msgpack.encode([[True], [0], [100], [100], [0], [0]]),
        msgspec.msgpack.encode([["1"], [0], [100], [100], [0], [0]]),
        encode_index([entry()]) + b"\0",
        encode_index([entry()])[:-1],
        b"\x96\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x96" + b"\x91" * 100_000,
        b"\xc0" * (MAX_INDEX_BYTES + 1),
    ],
)
def test_what_is_no_index(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_index(data)


def check_index(data: bytes) -> None:
    try:
        entries = decode_index(data)
    except VaultError:
        return
    end = HEADER_BYTES
    for one in entries:
        assert one.offset >= end
        end = one.offset + one.stored
    assert decode_index(encode_index(entries)) == entries


@given(st.binary(max_size=200))
def test_any_bytes_as_an_index(data: bytes) -> None:
    check_index(data)


@given(st.lists(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3), min_size=6, max_size=6))
def test_any_columns_as_an_index(columns: list[list[int]]) -> None:
    check_index(msgspec.msgpack.encode(columns))


@given(index_entries(), st.data())
def test_a_damaged_index(entries: list[IndexEntry], data: st.DataObject) -> None:
    encoded = bytearray(encode_index(entries))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    check_index(bytes(encoded))
