from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.mesh import share_format
from vaultfs.mesh.share_format import BLOCK_BYTES, HEADER_BYTES, CodedSegment, Coding, ShareHeader

from .shares import decoded, make_shares, name_of
from .specified import coded_segment

SEGMENT = b"vaultfs"
START = "564653534852000156ff665676887ef295f155ad875303ed4d85e68bb256a3ecd666b194adaa3e4807000000000000000203"
REST = "00" * 13
VECTORS = [
    (START + "00" + REST + "7661756c", "5fb4320f6aece6e8e2befa3e0c3ca3765f8b8ea799c141d836b4a1a9b829b36a"),
    (START + "01" + REST + "74667300", "82f63a2452b0b86a2ef3c3f1ecd07de5bed85dd95b96db006f2008be5f6d06ac"),
    (START + "02" + REST + "726f79b4", "7acdccec3df6909e25d45c98e0b55c0b38a62d90510a22135f65e1a02f1690d8"),
]
NAME = SegmentName("ab" * 32)
HEADER = ShareHeader(CodedSegment(NAME, 1000, Coding(4, 7)), 6)
FIELDS = struct.Struct("<7sB32sQBBB13s")


def test_vectors() -> None:
    coded = coded_segment(SEGMENT, "2/3")
    shares = make_shares(SEGMENT, coded)
    assert [(share.hex(), name_of(share)) for share in shares] == VECTORS
    assert decoded(coded, [bytes.fromhex(VECTORS[2][0]), bytes.fromhex(VECTORS[0][0])]) == SEGMENT


def test_the_text_has_the_vectors() -> None:
    text = (share_format.__doc__ or "").split()
    for index, (share, name) in enumerate(VECTORS):
        at = text.index(name)
        assert text[at - 2] == f"{index:02x}"
        header = "".join(text[text.index("56465353485200") : text.index("dddddddd")]).replace("ii", text[at - 2])
        assert header + text[at - 1] == share


def test_header_vector() -> None:
    encoded = b"VFSSHR\0\x01" + b"\xab" * 32 + b"\xe8\x03" + bytes(6) + b"\x04\x07\x06" + bytes(13)
    assert HEADER.encode() == encoded
    assert len(encoded) == HEADER_BYTES == 64
    assert ShareHeader.decode(encoded) == HEADER


@st.composite
def headers(draw: st.DrawFn) -> ShareHeader:
    total = draw(st.integers(1, 64))
    coding = Coding(draw(st.integers(1, total)), total)
    name = SegmentName(draw(st.binary(min_size=32, max_size=32)).hex())
    return ShareHeader(CodedSegment(name, draw(st.integers(1, 128 << 20)), coding), draw(st.integers(0, total - 1)))


@given(headers())
def test_headers_come_back(header: ShareHeader) -> None:
    assert ShareHeader.decode(header.encode()) == header


@given(st.binary(max_size=80) | st.builds(lambda rest: b"VFSSHR\0\x01" + rest, st.binary(min_size=56, max_size=56)))
def test_any_bytes_are_refused_or_the_only_encoding(data: bytes) -> None:
    try:
        header = ShareHeader.decode(data)
    except VaultError:
        return
    assert header.encode() == data


@given(headers(), st.integers(0, HEADER_BYTES * 8 - 1))
def test_a_flipped_bit_is_refused_or_another_header(header: ShareHeader, bit: int) -> None:
    data = bytearray(header.encode())
    data[bit // 8] ^= 1 << bit % 8
    try:
        other = ShareHeader.decode(bytes(data))
    except VaultError:
        return
    assert other != header
    assert other.encode() == data


def fields(**changed: object) -> bytes:
    values: dict[str, object] = {
        "magic": b"VFSSHR\0",
        "version": 1,
        "segment": b"\xab" * 32,
        "size": 1000,
        "needed": 4,
        "total": 7,
        "index": 6,
        "zeros": bytes(13),
    }
    return FIELDS.pack(*(values | changed).values())


def test_fields_are_those_of_the_header() -> None:
    assert fields() == HEADER.encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"magic": b"VFSSEG\0"},
        {"version": 0},
        {"size": 0},
        {"size": (128 << 20) + 1},
        {"size": 2**64 - 1},
        {"needed": 0},
        {"needed": 8},
        {"total": 3, "index": 0},
        {"total": 65},
        {"needed": 0, "total": 0, "index": 0},
        {"index": 7},
        {"zeros": bytes(12) + b"\x01"},
        {"zeros": b"\x01" + bytes(12)},
    ],
)
def test_impossible_headers(changed: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="take another share"):
        ShareHeader.decode(fields(**changed))


@pytest.mark.parametrize("changed", [{"size": 1}, {"size": 128 << 20}, {"total": 64, "index": 63}, {"needed": 7}])
def test_headers_at_their_bounds(changed: dict[str, object]) -> None:
    assert ShareHeader.decode(fields(**changed)).encode() == fields(**changed)


def test_a_newer_format() -> None:
    with pytest.raises(FormatTooNewError, match="format 2"):
        ShareHeader.decode(fields(version=2, zeros=b"new" * 4 + b"!"))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_headers_of_another_length(length: int) -> None:
    with pytest.raises(IntegrityError, match="64 bytes"):
        ShareHeader.decode((HEADER.encode() + b"\0")[:length])


@pytest.mark.parametrize("text", ["1/1", "4/7", "64/64", "10/20"])
def test_codings_come_back(text: str) -> None:
    assert str(Coding.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "4/",
        "/7",
        "0/7",
        "4/0",
        "7/4",
        "04/7",
        "4/65",
        "1/64 ",
        " 1/2",
        "4/7\n",
        "4-7",
        "-1/2",
        "1/100",
        "4/07",
        "\u0664/\u0667",
    ],
)
def test_what_is_no_coding(text: str) -> None:
    with pytest.raises(UsageError, match="no coding"):
        Coding.parse(text)


@pytest.mark.parametrize("name", ["", "ab" * 31, "AB" * 32, "ab" * 31 + "/a", "ab" * 32 + "\n"])
def test_no_name_of_a_segment(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        CodedSegment(SegmentName(name), 1, Coding(1, 1))


@pytest.mark.parametrize("index", [-1, 7])
def test_no_such_share(index: int) -> None:
    with pytest.raises(UsageError, match="no share"):
        ShareHeader(HEADER.coded, index)


@pytest.mark.parametrize(
    ("size_bytes", "data_bytes"),
    [
        (1, 1),
        (4, 1),
        (5, 2),
        (4 * BLOCK_BYTES - 4, BLOCK_BYTES - 1),
        (4 * BLOCK_BYTES - 3, BLOCK_BYTES),
        (4 * BLOCK_BYTES, BLOCK_BYTES),
        (4 * BLOCK_BYTES + 1, BLOCK_BYTES + 1),
        (64 << 20, 16 << 20),
        (128 << 20, 32 << 20),
    ],
)
def test_lengths_of_shares(size_bytes: int, data_bytes: int) -> None:
    coded = CodedSegment(NAME, size_bytes, Coding(4, 7))
    assert coded.share_bytes == HEADER_BYTES + data_bytes
    assert sum(block for _, block in coded.stripes()) == data_bytes
    assert sum(data for data, _ in coded.stripes()) == size_bytes
