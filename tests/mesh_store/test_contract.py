"""What every store promises (`vaultfs.remotes.store`), of peers, which take only what belongs to a vault.

The suite for other stores uses keys and contents that no vault has, so it cannot be used here.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import BinaryIO

import blake3
import pytest
from mesh_repair.signed_vault import SignedVault

from vaultfs.errors import (
    IntegrityError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    StorageError,
    UsageError,
    VaultError,
)
from vaultfs.ids import SegmentName
from vaultfs.mesh.store import MeshStore
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.counting import CountingStore
from vaultfs.remotes.limiting import LimitedStore, TokenBucket
from vaultfs.remotes.probing import probe
from vaultfs.remotes.store import BytesSource, Features, ObjectInfo
from vaultfs.sync.remote_layout import segment_key

from .peers import RunningPeer

NOTE = "heads/swept/" + "5" * 64
OTHER_NOTE = "heads/swept/" + "6" * 64
SIZES = [1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7]


def segment(size: int, seed: int = 1) -> tuple[str, bytes]:
    data = blake3.blake3(seed.to_bytes(8, "big")).digest(size)
    return segment_key(SegmentName(blake3.blake3(data).hexdigest())), data


def read(store: MeshStore, key: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join(store.get(key, offset=offset, length=length))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_can_be_got(store: MeshStore, size: int) -> None:
    key, data = segment(size)
    store.put(key, BytesSource(data))
    pieces = list(store.get(key))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    assert store.size_bytes(key) == size
    assert list(store.list("")) == [ObjectInfo(key, size)]
    middle = size // 3
    assert read(store, key, offset=middle) == data[middle:]
    assert read(store, key, offset=middle, length=size // 2) == data[middle : middle + size // 2]


def test_all_objects_of_a_vault(store: MeshStore, vault: SignedVault) -> None:
    objects = vault.objects()
    for key, data in objects.items():
        store.put(key, BytesSource(data))
    assert {info.key: info.size_bytes for info in store.list("")} == {key: len(data) for key, data in objects.items()}
    assert [info.key for info in store.list("heads/")] == sorted(key for key in objects if key.startswith("heads/"))
    for key, data in objects.items():
        assert read(store, key) == data


@pytest.mark.parametrize("key", ["", "/", "a/", "..", "a/../b", "a b", "a\0", "ä", "a" * 513])
def test_invalid_keys_are_refused(store: MeshStore, key: str) -> None:
    requests: list[Callable[[], object]] = [
        lambda: store.put(key, BytesSource(b"x")),
        lambda: read(store, key),
        lambda: store.size_bytes(key),
        lambda: store.delete(key),
    ]
    for request in requests:
        with pytest.raises(UsageError):
            request()


def test_keys_that_no_vault_has_are_refused(store: MeshStore) -> None:
    with pytest.raises(RemoteRefusedError):
        store.put("dir/object", BytesSource(b"data"))
    assert list(store.list("")) == []


@pytest.mark.parametrize("key", [segment(10)[0], NOTE, "vault.json", "heads/" + "a" * 64 + "/0000000001-" + "b" * 64])
def test_what_is_missing(store: MeshStore, key: str) -> None:
    with pytest.raises(ObjectMissingError):
        read(store, key)
    with pytest.raises(ObjectMissingError):
        read(store, key, offset=1, length=1)
    assert store.size_bytes(key) is None
    if key == NOTE:
        store.delete(key)


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (11, None), (5, 6), (10, 1)])
def test_parts_that_are_not_there(store: MeshStore, offset: int, length: int | None) -> None:
    key, data = segment(10)
    store.put(key, BytesSource(data))
    with pytest.raises(RemoteError):
        read(store, key, offset=offset, length=length)


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
def test_parts_that_make_no_sense(store: MeshStore, offset: int, length: int | None) -> None:
    with pytest.raises(UsageError):
        read(store, segment(10)[0], offset=offset, length=length)


def test_nothing_of_an_object(store: MeshStore) -> None:
    key, data = segment(10)
    store.put(key, BytesSource(data))
    assert read(store, key, offset=3, length=0) == b""
    assert read(store, key, offset=10) == b""


def test_notes_are_replaced_and_deleted(store: MeshStore) -> None:
    store.put(NOTE, BytesSource(b"one"))
    store.put(OTHER_NOTE, BytesSource(b"other"))
    store.put(NOTE, BytesSource(b"two"))
    assert read(store, NOTE) == b"two"
    with pytest.raises(ObjectExistsError):
        store.put(NOTE, BytesSource(b"three"), if_absent=True)
    assert read(store, NOTE) == b"two"
    store.delete(NOTE)
    store.delete(NOTE)
    assert [info.key for info in store.list("heads/")] == [OTHER_NOTE]


def test_the_header_is_replaced(store: MeshStore, vault: SignedVault, make_store: Callable[[], MeshStore]) -> None:
    first = vault.layout.header.read_bytes()
    store.put("vault.json", BytesSource(first), if_absent=True)
    with pytest.raises(ObjectExistsError):
        store.put("vault.json", BytesSource(first + b" "), if_absent=True)
    vault.write_header(epoch=2)
    second = vault.layout.header.read_bytes()
    store.put("vault.json", BytesSource(second))
    assert read(store, "vault.json") == second
    assert read(store, "vault.json", offset=2, length=3) == second[2:5]
    vault.write_header(epoch=2, slots=["other"])
    third = vault.layout.header.read_bytes()
    other = make_store()
    other.put("vault.json", BytesSource(third))
    assert read(store, "vault.json") == third


def test_segments_are_deleted_only_by_order(store: MeshStore) -> None:
    key, data = segment(10)
    store.put(key, BytesSource(data))
    with pytest.raises(RemoteRefusedError, match="password"):
        store.delete(key)
    assert read(store, key) == data


def test_what_it_can_do_is_found_out(store: MeshStore) -> None:
    assert probe(store) == Features(conditional_create=True, range_reads=True, lists_at_once=True)
    assert list(store.list("")) == []


class WrongSource:
    """A source that does not have the bytes that it says."""

    def __init__(self, data: bytes, size_bytes: int) -> None:
        self._data = data
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def open(self) -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(self._data)


class UnreadableFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(5, "Input/output error")


class UnreadableSource(WrongSource):
    def open(self) -> AbstractContextManager[BinaryIO]:
        return UnreadableFile(self._data)


class UnopenableSource(WrongSource):
    def open(self) -> AbstractContextManager[BinaryIO]:
        raise FileNotFoundError(2, "No such file or directory")


@pytest.mark.parametrize("key", [segment(1000)[0], NOTE])
@pytest.mark.parametrize(
    ("kind", "size", "error"),
    [
        (WrongSource, 1001, IntegrityError),
        (WrongSource, 999, IntegrityError),
        (UnreadableSource, 1000, StorageError),
        (UnopenableSource, 1000, StorageError),
    ],
)
def test_a_source_that_is_not_what_it_says(
    store: MeshStore, key: str, kind: type[WrongSource], size: int, error: type[VaultError]
) -> None:
    with pytest.raises(error):
        store.put(key, kind(segment(1000)[1], size))
    assert store.size_bytes(key) is None


def test_bytes_are_counted_and_limited(store: MeshStore) -> None:
    key, data = segment(3 * PIECE_BYTES + 7)
    taken: list[int] = []

    class Bucket(TokenBucket):
        def take(self, count: int) -> None:
            taken.append(count)

    bucket = Bucket(1)
    counting = CountingStore(LimitedStore(store, sending=bucket, receiving=bucket))
    counting.put(key, BytesSource(data))
    assert counting.counts.sent_bytes == 2 * len(data)  # to two peers
    assert sum(taken) == 2 * len(data)
    assert max(taken) <= PIECE_BYTES
    assert b"".join(counting.get(key)) == data
    assert counting.counts.received_bytes == len(data)


def test_in_many_threads(store: MeshStore) -> None:
    objects = dict(segment(5000, seed) for seed in range(24))

    def work(key: str) -> bool:
        store.put(key, BytesSource(objects[key]))
        return read(store, key) == objects[key]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, objects))
    assert {info.key for info in store.list("segments/")} == objects.keys()


def test_a_race_for_one_name(make_store: Callable[..., MeshStore], peers: list[RunningPeer]) -> None:
    """Also of machines that have added their peers in different orders."""
    stores = [make_store(is_reversed=bool(number % 2)) for number in range(4)]
    gate = threading.Barrier(len(stores))

    def work(number: int) -> bool:
        gate.wait()
        try:
            stores[number].put(NOTE, BytesSource(b"%d" % number), if_absent=True)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(stores)) as pool:
        winners = [number for number, won in enumerate(pool.map(work, range(len(stores)))) if won]
    assert len(winners) == 1
    for peer in peers:
        assert peer.path(stores[0].page.vault_id, NOTE).read_bytes() == b"%d" % winners[0]


def test_closed_it_does_nothing(store: MeshStore) -> None:
    store.put(NOTE, BytesSource(b"note"))
    store.close()
    with pytest.raises(RemoteUnreachableError):
        read(store, NOTE)
    with pytest.raises(RemoteUnreachableError):
        store.put(NOTE, BytesSource(b"note"))
