"""Nobody stores more than may be, also many at once, and nothing counts that is not there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mesh_replicas.peer_objects import (
    ALICE,
    BOB,
    NOTE,
    OTHER_VAULT,
    VAULT,
    Clock,
    begin,
    check,
    data_of,
    header,
    put,
    put_head,
    put_segment,
    segment_key,
    send,
)
from vaultfs.errors import NoSpaceError, RemoteRefusedError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import replica_intake
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_ledger import MOST_INTERRUPTED, MOST_VAULTS, UNBOUNDED
from vaultfs.mesh.replica_record import MOST_WRITERS
from vaultfs.mesh.replicas import ReplicaStore

BLOCK = 4096


def test_blocks(store: ReplicaStore) -> None:
    for size_bytes, expected in [(1, 1), (4096, 2), (4097, 4)]:
        put_segment(store, data_of(1, size_bytes))
        assert store.usage(ALICE) == expected * BLOCK
    put(store, NOTE, b"")
    assert store.usage(ALICE) == 5 * BLOCK


def test_what_is_coming_counts_from_its_beginning(store: ReplicaStore) -> None:
    data = data_of(1, 10 * BLOCK)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    assert store.usage(ALICE) == 10 * BLOCK
    upload.write(data[: 3 * BLOCK])
    assert store.usage(ALICE) == 10 * BLOCK
    upload.abort(keep=True)
    assert store.usage(ALICE) == 3 * BLOCK
    again = begin(store, segment_key(data), data)
    assert again is not None
    assert store.usage(ALICE) == 10 * BLOCK
    again.abort(keep=False)
    assert store.usage(ALICE) == 0


def test_the_quota_of_a_caller(store: ReplicaStore, root: Path) -> None:
    put_segment(store, data_of(1, 4 * BLOCK))
    put(store, segment_key(data_of(2, BLOCK)), data_of(2, BLOCK), vault=OTHER_VAULT)
    data = data_of(3, 2 * BLOCK)
    with pytest.raises(NoSpaceError):
        begin(store, segment_key(data), data, quota_bytes=7 * BLOCK - 1)
    assert store.usage(ALICE) == 5 * BLOCK
    assert put(store, segment_key(data), data, quota_bytes=7 * BLOCK)
    assert not put(store, segment_key(data), data, quota_bytes=0)
    assert put(store, segment_key(b"x"), b"x", caller=BOB, quota_bytes=BLOCK)
    check(root, store, (VAULT, OTHER_VAULT))


def test_what_is_small_may_exceed_quotas(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a peer that is full of segments could be told of no snapshot any more, and no prune could make room."""
    monkeypatch.setattr(replica_intake, "SMALL_BEYOND_BYTES", 4 * BLOCK)
    store = ReplicaStore.open(root, 8 * BLOCK)
    try:
        assert put(store, segment_key(data_of(1, 8 * BLOCK)), data_of(1, 8 * BLOCK), quota_bytes=8 * BLOCK)
        with pytest.raises(NoSpaceError):
            begin(store, segment_key(b"x"), b"x", quota_bytes=8 * BLOCK)
        assert put(store, NOTE, b"note", quota_bytes=8 * BLOCK)
        assert put(store, "vault.json", header(1), revision=1, quota_bytes=8 * BLOCK)
        before = store.usage(ALICE)
        large = data_of(2, 3 * BLOCK)
        with pytest.raises(NoSpaceError):
            begin(store, NOTE.replace("5", "6"), large, quota_bytes=8 * BLOCK)
        assert store.usage(ALICE) == before
        with pytest.raises(NoSpaceError):
            begin(store, segment_key(b"x"), b"x", quota_bytes=100 * BLOCK)
    finally:
        store.close()


def test_the_quota_of_the_peer(root: Path) -> None:
    store = ReplicaStore.open(root, 4 * BLOCK, reserve_bytes=0)
    put_segment(store, data_of(1, 3 * BLOCK))
    with pytest.raises(NoSpaceError):
        put(store, segment_key(data_of(2, 2 * BLOCK)), data_of(2, 2 * BLOCK), caller=BOB, quota_bytes=100 * BLOCK)
    assert put(store, segment_key(b"x"), b"x", caller=BOB)
    assert store.state(BOB, VAULT, None)[:3] == (4 * BLOCK, BLOCK, 0)
    assert store.state(ALICE, OTHER_VAULT, 3 * BLOCK) == (3 * BLOCK, 3 * BLOCK, 0, 0, 0)
    store.close()


def test_room(store: ReplicaStore) -> None:
    put_segment(store, data_of(1, 5000))
    room = store.state(ALICE, VAULT, 10 * BLOCK)
    assert room == (10 * BLOCK, 2 * BLOCK, 8 * BLOCK, 1, 5000)
    room = store.state(ALICE, VAULT, None)
    assert room.quota_bytes == UNBOUNDED
    assert 0 < room.free_bytes < UNBOUNDED
    assert store.state(ALICE, VAULT, BLOCK).free_bytes == 0


def test_what_was_interrupted_gives_way_the_oldest_first(store: ReplicaStore, root: Path) -> None:
    interrupted = [data_of(number, 10 * BLOCK) for number in range(3)]
    for data in interrupted:
        upload = begin(store, segment_key(data), data)
        assert upload is not None
        upload.write(data[: 2 * BLOCK])
        upload.abort(keep=True)
    assert store.usage(ALICE) == 6 * BLOCK
    large = data_of(9, 7 * BLOCK)
    with pytest.raises(NoSpaceError):  # and nothing is removed in vain
        begin(store, segment_key(large), large, quota_bytes=6 * BLOCK)
    assert store.usage(ALICE) == 6 * BLOCK
    with pytest.raises(NoSpaceError):  # what others have interrupted does not help
        begin(store, segment_key(large), large, caller=BOB, quota_bytes=6 * BLOCK)
    assert put(store, segment_key(large), large, quota_bytes=10 * BLOCK)
    assert store.usage(ALICE) == 9 * BLOCK
    exact = data_of(10, BLOCK)
    assert put(store, segment_key(exact), exact, quota_bytes=10 * BLOCK)
    last = begin(store, segment_key(interrupted[2]), interrupted[2])
    assert last is not None
    assert last.offset == 2 * BLOCK
    last.abort(keep=True)
    check(root, store)
    assert put(store, segment_key(b"x"), b"x", quota_bytes=9 * BLOCK)  # all that was interrupted, and no more
    assert store.usage(ALICE) == 9 * BLOCK
    check(root, store)


def test_one_that_goes_on_is_not_removed_for_itself(store: ReplicaStore) -> None:
    data = data_of(1, 4 * BLOCK)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data[: 3 * BLOCK])
    upload.abort(keep=True)
    with pytest.raises(NoSpaceError):
        begin(store, segment_key(data), data, quota_bytes=3 * BLOCK)
    again = begin(store, segment_key(data), data, quota_bytes=4 * BLOCK)
    assert again is not None
    assert again.offset == 3 * BLOCK
    again.abort(keep=False)


def test_too_many_interrupted(store: ReplicaStore, root: Path) -> None:
    for number in range(MOST_INTERRUPTED + 3):
        data = data_of(number, 50)
        upload = begin(store, segment_key(data), data)
        assert upload is not None
        upload.write(b"x")
        upload.abort(keep=True)
    assert len(list((root / VAULT.hex() / ".mesh" / "partial").iterdir())) == MOST_INTERRUPTED
    check(root, store)


def test_whose_bytes(store: ReplicaStore, root: Path, clock: Clock) -> None:
    keys = [put_segment(store, data_of(number, 100), ALICE if number < 3 else BOB) for number in range(5)]
    put(store, "vault.json", header(), revision=1)
    put(store, "vault.json", header(filler="x"), revision=2, caller=BOB)
    assert not put(store, keys[0], data_of(0, 100), caller=BOB)
    assert (store.usage(ALICE), store.usage(BOB)) == (4 * BLOCK, 3 * BLOCK)  # a header that is kept stays its writer's
    store.delete(VAULT, [keys[0], keys[4]])
    assert (store.usage(ALICE), store.usage(BOB)) == (3 * BLOCK, 2 * BLOCK)
    put_segment(store, data_of(4, 100), ALICE)
    put(store, "vault.json", header(filler="y"), revision=3)
    put(store, keys[3], data_of(3, 100), caller=ALICE)
    for _ in range(2):
        assert (store.usage(ALICE), store.usage(BOB)) == (5 * BLOCK, 2 * BLOCK)
        store.close()
        store = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    check(root, store)
    store.close()


@pytest.mark.parametrize("log", [None, b"", b"x" * 33, os.urandom(160)])
def test_a_lost_log_gives_everything_to_the_first(store: ReplicaStore, root: Path, log: bytes | None) -> None:
    put_segment(store, data_of(1, 100), ALICE)
    put_segment(store, data_of(2, 100), BOB)
    store.close()
    path = root / VAULT.hex() / ".mesh" / "others"
    assert path.stat().st_size == 16
    if log is None:
        path.unlink()
    else:
        path.write_bytes(log)
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    assert (again.usage(ALICE), again.usage(BOB)) == (2 * BLOCK, 0)
    check(root, again)
    again.close()


def test_what_nobody_is_known_to_have_stored_counts_for_the_first(root: Path) -> None:
    path = root / VAULT.hex() / segment_key(b"x")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    store = ReplicaStore.open(root, None, reserve_bytes=0)
    assert store.usage(ALICE) == 0
    assert store.state(ALICE, VAULT, None).objects == 1
    put_segment(store, b"y")
    assert store.usage(ALICE) == 2 * BLOCK
    store.close()


def test_too_many_writers_and_vaults(store: ReplicaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MOST_WRITERS):
        put_segment(store, data_of(number, 10), PeerId(number.to_bytes(32, "big")))
    with pytest.raises(RemoteRefusedError):
        put_segment(store, b"x", PeerId(b"z" * 32))
    assert not put(store, segment_key(data_of(0, 10)), data_of(0, 10), caller=PeerId(b"z" * 32))
    assert MOST_VAULTS == 1024
    monkeypatch.setattr("vaultfs.mesh.replica_ledger.MOST_VAULTS", 2)
    put_segment(store, b"x", vault=OTHER_VAULT)
    with pytest.raises(NoSpaceError):
        put_segment(store, b"x", vault=VaultId(b"3" * 16))


@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.long)])
def test_many_at_once_stay_within(root: Path, rounds: int) -> None:
    """Sixteen threads for room of ten: ten are stored, whichever they are, and what is counted is what is there."""
    store = ReplicaStore.open(root, 10 * BLOCK, reserve_bytes=0)
    outcomes: list[str] = []
    start = threading.Barrier(16)

    def work(number: int, data: bytes) -> None:
        start.wait(60)
        try:
            upload = begin(store, segment_key(data), data, caller=(ALICE, BOB)[number % 2], quota_bytes=9 * BLOCK)
            assert upload is not None
            barrier.wait(60)
            send(upload, data, 1000)
            outcomes.append("stored")
        except NoSpaceError:
            barrier.wait(60)
            outcomes.append("full")

    for number in range(rounds):
        outcomes.clear()
        barrier = threading.Barrier(16)
        batch = [data_of(100 * number + index, BLOCK) for index in range(16)]
        threads = [threading.Thread(target=work, args=(index, data)) for index, data in enumerate(batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["full"] * 6 + ["stored"] * 10
        check(root, store)
        assert store.delete(VAULT, [segment_key(data) for data in batch]) == 10
        assert store.usage(ALICE) + store.usage(BOB) == 0
    store.close()


def test_everything_at_once(store: ReplicaStore, root: Path) -> None:
    """The same objects put, read, deleted, listed and scrubbed by many threads."""
    batch = [data_of(number, 5000 + number) for number in range(6)]
    keys = [segment_key(data) for data in batch]
    errors: list[BaseException] = []
    scrubbing = threading.Lock()

    def work(number: int) -> None:
        try:
            for turn in range(15):
                data = batch[(number + turn) % 6]
                action = (number + turn) % 5
                if action <= 1:
                    put(store, segment_key(data), data, caller=(ALICE, BOB)[number % 2], piece_bytes=2000)
                elif action == 2:
                    store.delete(VAULT, [keys[turn % 6], keys[number % 6]])
                elif action == 3:
                    store.listing(VAULT, "", "", 100)
                    with scrubbing:  # which is for one thread at a time
                        store.scrub_some(10_000)
                else:
                    upload: Upload | None = begin(store, segment_key(data), data)
                    if upload is not None:
                        upload.write(data[upload.offset : upload.offset + 1000])
                        upload.abort(keep=turn % 2 == 0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    put_head(store)
    assert errors == []
    check(root, store)
