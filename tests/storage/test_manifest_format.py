from __future__ import annotations

import dataclasses
from typing import Any

import blake3
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import FormatTooNewError, IntegrityError, VaultError
from vaultfs.ids import SegmentName, SnapshotSeq, VaultId
from vaultfs.storage import manifest_format
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, Manifest, manifest_hash

A = SegmentName("aa" * 32)
B = SegmentName("bb" * 32)
SIGNATURE = b"S" * 64
MANIFEST = Manifest(
    VaultId(b"v" * 16), b"d" * 32, SnapshotSeq(2), 1_700_000_000_000_000_000, b"p" * 32, ((A, 5), (B, 7)), b"x"
)
BODY = [b"v" * 16, b"d" * 32, 2, 1_700_000_000_000_000_000, b"p" * 32, b"\xaa" * 32 + b"\xbb" * 32, [5, 7], b"x"]


def file_of(body: Any) -> bytes:
    return b"VFSMAN\0\x01" + SIGNATURE + msgspec.msgpack.encode(body)


def test_vector() -> None:
    assert MANIFEST.signed_bytes() == b"VFSMAN\0\x01" + msgspec.msgpack.encode(BODY)
    assert MANIFEST.encode(SIGNATURE) == file_of(BODY)
    assert Manifest.decode(file_of(BODY)) == (MANIFEST, SIGNATURE)


def test_the_first_manifest_has_none_before_it() -> None:
    first = dataclasses.replace(MANIFEST, previous=None, segments=())
    assert Manifest.decode(first.encode(SIGNATURE)) == (first, SIGNATURE)


def test_the_order_of_segments_does_not_matter() -> None:
    other = dataclasses.replace(MANIFEST, segments=((B, 7), (A, 5)))
    assert other == MANIFEST
    assert other.encode(SIGNATURE) == MANIFEST.encode(SIGNATURE)


def test_hash() -> None:
    assert manifest_hash(b"data") == blake3.blake3(b"data").hexdigest()
    assert len(manifest_hash(b"")) == 64


names = st.binary(min_size=32, max_size=32).map(lambda name: SegmentName(name.hex()))
manifests = st.builds(
    Manifest,
    vault_id=st.binary(min_size=16, max_size=16).map(VaultId),
    device=st.binary(min_size=32, max_size=32),
    seq=st.integers(1, 2**63 - 1).map(SnapshotSeq),
    created_ns=st.integers(-(2**63), 2**63 - 1),
    previous=st.none() | st.binary(min_size=32, max_size=32),
    segments=st.dictionaries(names, st.integers(1, 2**63 - 1), max_size=20).map(lambda sizes: tuple(sizes.items())),
    private=st.binary(max_size=300),
)
signatures = st.binary(min_size=64, max_size=64)


@given(manifests, signatures)
def test_manifests_come_back(manifest: Manifest, signature: bytes) -> None:
    assert Manifest.decode(manifest.encode(signature)) == (manifest, signature)


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "short vault id": {"vault_id": b"v" * 15},
    "long vault id": {"vault_id": b"v" * 17},
    "short device": {"device": b"d" * 31},
    "seq 0": {"seq": 0},
    "seq 2**63": {"seq": 2**63},
    "created 2**63": {"created_ns": 2**63},
    "created -2**63-1": {"created_ns": -(2**63) - 1},
    "short previous": {"previous": b"p" * 31},
    "empty previous": {"previous": b""},
    "size 0": {"segments": ((A, 0),)},
    "size -1": {"segments": ((A, -1),)},
    "size 2**63": {"segments": ((A, 2**63),)},
    "twice": {"segments": ((A, 5), (A, 5))},
    "twice with two sizes": {"segments": ((A, 5), (A, 6))},
    "short name": {"segments": ((SegmentName("aa" * 31), 5),)},
    "upper case": {"segments": ((SegmentName("AA" * 32), 5),)},
    "not hexadecimal": {"segments": ((SegmentName("zz" * 32), 5),)},
    "spaces in a name": {"segments": ((SegmentName("aa " * 21 + "a"), 5),)},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_manifests(case: str) -> None:
    with pytest.raises(ValueError, match="out of its bounds"):
        dataclasses.replace(MANIFEST, **IMPOSSIBLE[case])


def test_impossible_signatures_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for signature in (b"", b"S" * 63, b"S" * 65):
        with pytest.raises(ValueError, match="64 bytes of signature"):
            MANIFEST.encode(signature)
    size = len(MANIFEST.encode(SIGNATURE))
    monkeypatch.setattr(manifest_format, "MAX_MANIFEST_BYTES", size)
    assert len(MANIFEST.encode(SIGNATURE)) == size
    monkeypatch.setattr(manifest_format, "MAX_MANIFEST_BYTES", size - 1)
    with pytest.raises(ValueError, match="in all"):
        MANIFEST.encode(SIGNATURE)
    with pytest.raises(IntegrityError, match="at most"):
        Manifest.decode(file_of(BODY))


def changed(position: int, value: Any) -> list[Any]:
    return [*BODY[:position], value, *BODY[position + 1 :]]


@pytest.mark.parametrize(
    "body",
    [
        changed(0, b"v" * 15),
        changed(0, "v" * 16),
        changed(1, b"d" * 33),
        changed(2, 0),
        changed(2, -1),
        changed(2, 2**64 - 1),
        changed(2, 2.0),
        changed(2, True),
        changed(3, 2**64 - 1),
        changed(4, b"p" * 31),
        changed(4, 7),
        changed(5, b"\xaa" * 32),
        changed(5, b"\xaa" * 63),
        changed(5, b"\xbb" * 32 + b"\xaa" * 32),
        changed(5, b"\xaa" * 64),
        changed(6, [5]),
        changed(6, [5, 0]),
        changed(6, [5, 2**63]),
        changed(6, [5, None]),
        changed(7, None),
        BODY[:-1],
        [*BODY, 0],
        dict(enumerate(BODY)),
        None,
    ],
)
def test_what_is_no_manifest(body: Any) -> None:
    with pytest.raises(IntegrityError):
        Manifest.decode(file_of(body))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"VFSMAN\0",
        b"VFSMAN\0\x01",
        b"VFSMAN\0\x01" + SIGNATURE[:-1],
        b"VFSMAN\0\x01" + SIGNATURE,
        b"VFSMAN\0\x00" + file_of(BODY)[8:],
        b"VFSSEG\0\x01" + file_of(BODY)[8:],
        file_of(BODY) + b"\0",
        file_of(BODY)[:-1],
        b"<html>" * 100,
        b"VFSMAN\0\x01" + SIGNATURE + b"\x91" * 100_000,
        b"VFSMAN\0\x01" + SIGNATURE + b"\x98" + b"\x91" * 100_000,
        b"VFSMAN\0\x01" + SIGNATURE + b"\x98\xc6\xff\xff\xff\xff",
        # Sizes that claim four thousand million entries.
        file_of(BODY).replace(b"\x92\x05\x07", b"\xdd\xff\xff\xff\xff\x05\x07"),
        # The number 2 in nine bytes: the same values, but another file with another hash.
        file_of(BODY).replace(b"d" * 32 + b"\x02", b"d" * 32 + b"\xcf" + bytes(7) + b"\x02"),
    ],
)
def test_what_is_no_manifest_file(data: bytes) -> None:
    assert data != file_of(BODY)
    with pytest.raises(IntegrityError):
        Manifest.decode(data)


def test_more_than_the_limit_is_not_even_looked_at() -> None:
    with pytest.raises(IntegrityError, match="at most"):
        Manifest.decode(bytes(MAX_MANIFEST_BYTES + 1))


def test_a_newer_version() -> None:
    with pytest.raises(FormatTooNewError, match="update vaultfs"):
        Manifest.decode(b"VFSMAN\0\x02anything" + bytes(100))


def test_every_flipped_bit_is_noticed_or_changes_what_is_signed_or_the_signature() -> None:
    encoded = MANIFEST.encode(SIGNATURE)
    for bit in range(8 * len(encoded)):
        flipped = bytearray(encoded)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            manifest, signature = Manifest.decode(bytes(flipped))
        except VaultError:
            continue
        assert (manifest.signed_bytes(), signature) != (MANIFEST.signed_bytes(), SIGNATURE)


def check_manifest(data: bytes) -> None:
    try:
        manifest, signature = Manifest.decode(data)
    except VaultError:
        return
    assert manifest.encode(signature) == data


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=300).map(lambda rest: b"VFSMAN\0\x01" + SIGNATURE + rest)))
def test_any_bytes(data: bytes) -> None:
    check_manifest(data)


@given(manifests, st.data())
def test_a_damaged_manifest(manifest: Manifest, data: st.DataObject) -> None:
    encoded = bytearray(manifest.encode(SIGNATURE))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(72, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    check_manifest(bytes(encoded))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=64) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=5,
)


@given(st.integers(0, 7), values)
def test_any_value_in_any_field(position: int, value: Any) -> None:
    check_manifest(file_of(changed(position, value)))
