"""What is there: by name, in lists, in parts, and proved."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import blake3
import pytest

from mesh_replicas.peer_objects import (
    NOTE,
    VAULT,
    data_of,
    digest_of,
    head_key,
    header,
    manifest,
    put,
    put_head,
    put_segment,
    read,
    segment_key,
)
from vaultfs.errors import ObjectMissingError, RemoteError, RemoteRefusedError
from vaultfs.ids import SegmentName
from vaultfs.mesh.erasure import encode
from vaultfs.mesh.messages import Range
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey

KEY = data_of(77, 32)


def test_which_segments_are_there(store: ReplicaStore) -> None:
    there = [data_of(number, 100 + number) for number in range(0, 60, 2)]
    for data in there:
        put_segment(store, data)
    asked = [data_of(number, 100 + number) for number in range(60)]
    sizes = store.have(VAULT, b"".join(map(digest_of, asked)))
    assert sizes == [0 if number % 2 else 100 + number for number in range(60)]
    assert store.have(VAULT, b"") == []
    with pytest.raises(RemoteRefusedError):
        store.have(VAULT, bytes(33))


def test_lists_in_the_order_of_bytes(store: ReplicaStore) -> None:
    segments = [put_segment(store, data_of(number, 10)) for number in range(40)]
    odd = ["probe/a", "probe/a-b", "probe/a.b/c", "probe/a0", "probe/b/c", "probe/b-", "probe/b0"]
    for key in odd:
        put(store, key, b"x")
    put(store, "vault.json", header(), revision=1)
    put_head(store)
    put(store, NOTE, b"")
    everything = sorted([*segments, *odd, "vault.json", head_key(manifest()), NOTE])
    for most in (1, 2, 3, 7, 1000):
        found: list[str] = []
        while True:
            entries, has_more = store.listing(VAULT, "", found[-1] if found else "", most)
            found += [key for key, _ in entries]
            assert has_more == (len(found) < len(everything))
            if not has_more:
                break
        assert found == everything
    assert [key for key, _ in store.listing(VAULT, "probe/", "", 100)[0]] == sorted(odd)
    assert [key for key, _ in store.listing(VAULT, "probe/a.b/", "", 100)[0]] == ["probe/a.b/c"]
    assert [key for key, _ in store.listing(VAULT, "probe/", "probe/a/", 100)[0]] == sorted(odd)[3:]
    assert store.listing(VAULT, "nothing/", "", 100) == ([], False)
    assert store.listing(VAULT, "segments/", "zz", 100) == ([], False)
    for prefix in ("..", "seg", "../", "/", ".mesh/"):
        with pytest.raises(RemoteRefusedError):
            store.listing(VAULT, prefix, "", 100)


def test_parts_of_objects(store: ReplicaStore) -> None:
    data = data_of(1, 3000)
    key = put_segment(store, data)
    for offset, length in [(0, None), (0, 3000), (2999, 1), (3000, 0), (3000, None), (10, 20), (0, 0)]:
        with store.reader(VAULT, key, offset, length) as reader:
            expected = data[offset:] if length is None else data[offset : offset + length]
            assert (reader.size_bytes, reader.body_bytes) == (3000, len(expected))
            assert b"".join(iter(partial(reader.read, 7), b"")) == expected
    for offset, length in [(3001, None), (3001, 0), (0, 3001), (2999, 2), (-1, None), (0, -1), (1 << 62, 1 << 62)]:
        with pytest.raises(RemoteError):
            store.reader(VAULT, key, offset, length)
    with pytest.raises(ObjectMissingError):
        store.reader(VAULT, segment_key(b"x"))


def test_what_is_deleted_or_cut_while_it_is_read(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 3000)
    key = put_segment(store, data)
    with store.reader(VAULT, key) as reader:
        first = reader.read(1000)
        store.delete(VAULT, [key])
        assert first + reader.read(5000) == data
    put_segment(store, data)
    with store.reader(VAULT, key) as reader:
        (root / VAULT.hex() / key).write_bytes(data[:1000])
        assert reader.read(5000) == data[:1000]
        with pytest.raises(RemoteError, match="cut"):
            reader.read(5000)
        reader.close()


def proof(data: bytes, offset: int, length: int) -> bytes:
    body = digest_of(data) + offset.to_bytes(8, "big") + data[offset : offset + length]
    return blake3.blake3(body, key=KEY).digest()


def test_audits(store: ReplicaStore, root: Path) -> None:
    data, other, missing = data_of(1, 700_000), data_of(2, 10), data_of(3, 10)
    put_segment(store, data)
    put_segment(store, other)
    ranges = [(data, 0, 700_000), (data, 300_000, 5), (other, 10, 0), (other, 0, 10), (data, 699_999, 1)]
    asked = [Range(digest_of(which), offset, length) for which, offset, length in ranges]
    assert store.audit(VAULT, KEY, asked) == b"".join(proof(*each) for each in ranges)
    for which, offset, length in [(missing, 0, 1), (other, 0, 11), (other, 11, 0), (other, 1 << 40, 1)]:
        wanted = Range(digest_of(which), offset, length)
        answer = store.audit(VAULT, KEY, [asked[0], wanted, asked[1]])
        assert answer == proof(*ranges[0]) + bytes(32) + proof(*ranges[1])
    (root / VAULT.hex() / segment_key(other)).write_bytes(b"0123456789")
    assert store.audit(VAULT, KEY, [asked[3]]) not in {proof(*ranges[3]), bytes(32)}
    with pytest.raises(RemoteRefusedError):
        store.audit(VAULT, KEY, [Range(digest_of(data), 0, 32 << 20), Range(digest_of(data), 0, (32 << 20) + 1)])
    assert store.audit(VAULT, KEY, [Range(digest_of(data), 0, 64 << 20)]) == bytes(32)


def test_audits_of_shares(store: ReplicaStore) -> None:
    segment = b"vaultfs"
    coded = CodedSegment(SegmentName(digest_of(segment).hex()), len(segment), Coding(2, 3))
    made = bytearray()
    names = encode(io.BytesIO(segment), coded, {2: made.extend})
    share = str(ShareKey(coded, 2, names[2]))
    data = bytes(made)
    put(store, share, data)
    put_segment(store, segment)
    tail = share.rpartition("/")[2]
    asked = Range(digest_of(segment), 64, 4, tail)
    assert store.audit(VAULT, KEY, [asked]) == proof(data, 64, 4)
    whole = Range(digest_of(segment), 0, 7)
    assert store.audit(VAULT, KEY, [whole, asked]) == proof(segment, 0, 7) + proof(data, 64, 4)
    other = tail[:-1] + ("0" if tail[-1] != "0" else "1")
    for wrong in (other, f"../{tail}", "x", tail[2:], "/", "."):
        assert store.audit(VAULT, KEY, [Range(digest_of(segment), 64, 4, wrong)]) == bytes(32)
    assert store.audit(VAULT, KEY, [Range(digest_of(segment), 65, 4, tail)]) == bytes(32)
    store.delete(VAULT, [share])
    assert store.audit(VAULT, KEY, [asked]) == bytes(32)


def test_a_disk_that_cannot_read(store: ReplicaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(1, 1000)
    key = put_segment(store, data)
    reader = store.reader(VAULT, key)

    def fail(*args: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.pread", fail)
        with reader, pytest.raises(RemoteError):
            reader.read(10)
        assert store.audit(VAULT, KEY, [Range(digest_of(data), 0, 10)]) == bytes(32)
        with pytest.raises(RemoteError):  # it counts as missing, and a new one cannot be checked
            put(store, key, data)
    assert read(store, key) == data
