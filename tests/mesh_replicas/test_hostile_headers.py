"""A ``vault.json`` that nobody vouches for spoils nothing of what a peer remembers, nor drives out a genuine one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from mesh_replicas.peer_objects import DEVICE, VAULT, Clock, begin, check, digest_of, header, put, put_head, read
from vaultfs.errors import IntegrityError, ObjectExistsError, RemoteRefusedError, VaultError
from vaultfs.mesh.kept_headers import (
    HEADERS_PREFIX,
    KEPT_NS,
    MOST_KEPT,
    MOST_KEPT_BYTES,
    KeptHeader,
    parse_kept_header,
    surplus,
)
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.sync.remote_layout import HEADER_KEY

HUGE = (1 << 32) - 1


@pytest.mark.parametrize("epoch", [1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 100])
def test_an_epoch_that_cannot_be(store: ReplicaStore, root: Path, epoch: int) -> None:
    put_head(store)
    put(store, HEADER_KEY, header(epoch=7), revision=1)
    with pytest.raises(VaultError):
        put(store, HEADER_KEY, header(epoch=epoch), revision=2)
    put(store, HEADER_KEY, header(epoch=8), revision=2)
    store.close()
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    assert again.warnings == []
    assert again.may_delete(VAULT, DEVICE.public_key)
    assert again.stat(VAULT, HEADER_KEY)[1] == 2
    again.close()


def kept(store: ReplicaStore) -> dict[bytes, KeptHeader]:
    """The headers that were replaced, by their bytes."""
    found = {}
    for key, _ in store.listing(VAULT, HEADERS_PREFIX, "", 1000)[0]:
        parsed = parse_kept_header(key)
        assert parsed is not None
        found[read(store, key)] = parsed
    return found


def stood(root: Path, clock: Clock, seconds: int) -> None:
    """Let ``vault.json`` have been there for so long."""
    begun_ns = clock.now_ns - seconds * 10**9
    os.utime(root / VAULT.hex() / HEADER_KEY, ns=(begun_ns, begun_ns))


def put_all(store: ReplicaStore, root: Path, clock: Clock, headers: Iterable[bytes], seconds: int) -> None:
    for data in headers:
        put(store, HEADER_KEY, data, revision=store.stat(VAULT, HEADER_KEY)[1] + 1)
        stood(root, clock, seconds)


def test_what_is_replaced_is_kept(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put(store, HEADER_KEY, header(1), revision=5)
    stood(root, clock, 3600)
    put(store, HEADER_KEY, header(HUGE), revision=1 << 40)
    assert read(store, HEADER_KEY) == header(HUGE)
    assert kept(store) == {header(1): KeptHeader(5, 3600, digest_of(header(1)).hex())}
    check(root, store)
    store.close()
    again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    assert list(kept(again)) == [header(1)]
    check(root, again)
    again.close()


def test_nothing_is_kept_of_the_same_or_of_what_is_no_header(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put(store, HEADER_KEY, header(1), revision=1)
    put(store, HEADER_KEY, header(1), revision=2)
    (root / VAULT.hex() / HEADER_KEY).write_bytes(b"damaged")
    put(store, HEADER_KEY, header(1), revision=3)
    assert kept(store) == {}


def test_one_that_comes_back_has_stood_for_both_times(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put_all(store, root, clock, [header(1), header(1, filler="x"), header(1)], 100)
    put(store, HEADER_KEY, header(2), revision=9)
    assert {data: (each.revision, each.stood_s) for data, each in kept(store).items()} == {
        header(1): (3, 200),
        header(1, filler="x"): (2, 100),
    }
    assert len(store.listing(VAULT, HEADERS_PREFIX, "", 1000)[0]) == 2
    check(root, store)


@pytest.mark.parametrize("is_hostile_first", [False, True])
def test_many_drive_out_only_each_other(store: ReplicaStore, root: Path, clock: Clock, is_hostile_first: bool) -> None:
    hostile = [header(1, filler=f"hostile {number}") for number in range(3 * MOST_KEPT)]
    if is_hostile_first:
        put_all(store, root, clock, hostile, 60)
    put_all(store, root, clock, [header(1, filler="genuine")], 7 * 24 * 3600)
    put_all(store, root, clock, hostile, 60)
    found = kept(store)
    assert header(1, filler="genuine") in found
    assert len(found) == MOST_KEPT
    check(root, store)


def test_large_ones_are_bounded_together(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put_all(store, root, clock, [header(1, filler="genuine")], 100)
    put_all(store, root, clock, [header(1, filler=f"{number}" * 400_000) for number in range(9)], 50)
    found = kept(store)
    assert header(1, filler="genuine") in found
    assert sum(map(len, found)) <= MOST_KEPT_BYTES
    check(root, store)


def test_after_thirty_days_it_goes(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put(store, HEADER_KEY, header(1), revision=1)
    put(store, HEADER_KEY, header(2), revision=2)
    (path,) = (root / VAULT.hex() / "headers").iterdir()
    os.utime(path, ns=(clock.now_ns, clock.now_ns))
    clock.now_ns += KEPT_NS
    store.remove_old_partials()
    assert len(kept(store)) == 1
    clock.now_ns += 1
    store.remove_old_partials()
    assert kept(store) == {}
    check(root, store)


def test_nobody_puts_one_there(store: ReplicaStore, root: Path) -> None:
    data = header(3)
    put(store, HEADER_KEY, header(1), revision=1)
    with pytest.raises(RemoteRefusedError, match="takes none there"):
        begin(store, f"headers/9-99999-{digest_of(data).hex()}", data, revision=1)
    check(root, store)


def test_an_order_to_delete_lets_a_lower_epoch_in_again(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put(store, HEADER_KEY, header(1), revision=1)
    put(store, HEADER_KEY, header(HUGE), revision=(1 << 63) - 1)
    with pytest.raises(ObjectExistsError):
        put(store, HEADER_KEY, header(1), revision=2)
    assert store.delete(VAULT, [HEADER_KEY]) == 1
    assert put(store, HEADER_KEY, header(1), revision=1)
    (gone,) = (str(each) for each in kept(store).values())
    assert store.delete(VAULT, [gone]) == 1
    assert kept(store) == {}
    check(root, store)


def test_a_damaged_one_is_found(store: ReplicaStore, root: Path) -> None:
    put(store, HEADER_KEY, header(1), revision=1)
    put(store, HEADER_KEY, header(2), revision=2)
    (path,) = (root / VAULT.hex() / "headers").iterdir()
    path.write_bytes(b"x" + header(1)[1:])
    assert store.scrub_some(1 << 20).damaged == (f"{VAULT.hex()}/headers/{path.name}",)
    assert kept(store) == {}
    check(root, store)


def test_a_clock_that_went_back(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put(store, HEADER_KEY, header(1), revision=1)
    clock.now_ns = 0
    put(store, HEADER_KEY, header(2), revision=2)
    assert [each.stood_s for each in kept(store).values()] == [0]


@pytest.mark.parametrize(
    "key",
    [
        "headers/",
        f"headers/01-1-{'0' * 64}",
        f"headers/1-01-{'0' * 64}",
        f"headers/1-1-{'0' * 63}",
        f"headers/1-1-{'A' * 64}",
        f"headers/1-1-{'0' * 64}x",
        f"headers/{10**19}-1-{'0' * 64}",
        f"headers/1-{10**12}-{'0' * 64}",
        f"headers/-1-1-{'0' * 64}",
    ],
)
def test_what_is_no_such_key(key: str) -> None:
    assert parse_kept_header(key) is None


def test_keys_have_one_form() -> None:
    for each in (KeptHeader(0, 0, "0" * 64), KeptHeader((1 << 63) - 1, 10**12 - 1, "f" * 64)):
        assert parse_kept_header(str(each)) == each
    assert parse_kept_header(str(KeptHeader(1, 10**12, "0" * 64))) == KeptHeader(1, 10**12 - 1, "0" * 64)


def test_which_are_too_many() -> None:
    few = {KeptHeader(1, number, f"{number:064x}"): 10 for number in range(MOST_KEPT)}
    assert surplus(few) == []
    assert surplus({**few, KeptHeader(1, 5, "f" * 64): 10}) == [KeptHeader(1, 0, f"{0:064x}")]
    large = KeptHeader(1, 3, "e" * 64)
    assert surplus({**few, large: MOST_KEPT_BYTES}) == [large]


def test_the_revision_still_has_bounds(store: ReplicaStore) -> None:
    with pytest.raises(IntegrityError):
        put(store, HEADER_KEY, header(1), revision=0)
