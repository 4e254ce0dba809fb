"""The contract of stores, of peers, which take only what belongs to a vault; and what is theirs alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import blake3
import pytest
from mesh_repair.signed_vault import SignedVault
from remotes.contract import StoreContract
from remotes.data import read

from vaultfs.errors import (
    ObjectExistsError,
    RemoteRefusedError,
    RemoteUnreachableError,
)
from vaultfs.ids import SegmentName
from vaultfs.mesh.store import MeshStore
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.counting import CountingStore
from vaultfs.remotes.limiting import LimitedStore, TokenBucket
from vaultfs.remotes.probing import probe
from vaultfs.remotes.store import BytesSource, Features
from vaultfs.sync.remote_layout import segment_key

from .peers import RunningPeer

NOTE = "heads/swept/" + "5" * 64
OTHER_NOTE = "heads/swept/" + "6" * 64


def segment(size: int, seed: int = 1) -> tuple[str, bytes]:
    data = blake3.blake3(seed.to_bytes(8, "big")).digest(size)
    return segment_key(SegmentName(blake3.blake3(data).hexdigest())), data


class VaultObjects:
    """Names and contents as they are in a vault: a segment has the hash of its bytes, and is deleted by order only."""

    notes = (NOTE, OTHER_NOTE)
    missing = (segment(11)[0], NOTE, "vault.json", "heads/" + "a" * 64 + "/0000000001-" + "b" * 64)

    def made(self, size_bytes: int) -> tuple[str, bytes]:
        return segment(size_bytes)


@pytest.fixture
def objects() -> VaultObjects:
    return VaultObjects()


@pytest.fixture
def conditional_store(store: MeshStore) -> MeshStore:
    return store


class TestContract(StoreContract):
    """Of peers as one store."""


def test_all_objects_of_a_vault(store: MeshStore, vault: SignedVault) -> None:
    objects = vault.objects()
    for key, data in objects.items():
        store.put(key, BytesSource(data))
    assert {info.key: info.size_bytes for info in store.list("")} == {key: len(data) for key, data in objects.items()}
    assert [info.key for info in store.list("heads/")] == sorted(key for key in objects if key.startswith("heads/"))
    for key, data in objects.items():
        assert read(store, key) == data


def test_keys_that_no_vault_has_are_refused(store: MeshStore) -> None:
    with pytest.raises(RemoteRefusedError):
        store.put("dir/object", BytesSource(b"data"))
    assert list(store.list("")) == []


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
