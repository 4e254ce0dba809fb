"""Who may delete, what is gone then, and what is remembered all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_replicas.peer_objects import (
    DAY_NS,
    DEVICE,
    NOTE,
    NOW_NS,
    STRANGER,
    VAULT,
    Clock,
    begin,
    check,
    data_of,
    digest_of,
    header,
    manifest,
    put,
    put_head,
    put_segment,
    segment_key,
)
from vaultfs.errors import ObjectMissingError, RemoteRefusedError
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.witness import Head

SHARE = "shares/" + "7" * 64 + "/2-3-{}-100000-" + digest_of(b"share").hex()


def test_the_first_device_at_once_and_others_after_a_week(store: ReplicaStore, clock: Clock, root: Path) -> None:
    first, second = DEVICE.public_key, STRANGER.public_key
    assert not store.may_delete(VAULT, first)
    put_head(store)
    assert store.may_delete(VAULT, first)
    put_head(store, 2, STRANGER)
    clock.now_ns += 7 * DAY_NS - 1
    assert not store.may_delete(VAULT, second)
    store.close()
    again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    try:
        put_head(again, 3, STRANGER)
        assert not again.may_delete(VAULT, second)
        clock.now_ns += 1
        assert again.may_delete(VAULT, second)
        assert again.may_delete(VAULT, first)
    finally:
        again.close()


def test_a_person_confirms(store: ReplicaStore, root: Path, clock: Clock) -> None:
    with pytest.raises(ObjectMissingError):
        store.confirm_device(VAULT, STRANGER.public_key)
    put_head(store)
    store.confirm_device(VAULT, STRANGER.public_key)
    store.close()
    again = ReplicaStore.open(root, None, clock)
    try:
        assert again.may_delete(VAULT, STRANGER.public_key)
        assert again.devices(VAULT)[STRANGER.public_key].is_confirmed
    finally:
        again.close()


def test_a_clock_that_was_set_back_makes_nobody_old(store: ReplicaStore, clock: Clock) -> None:
    put_head(store)
    clock.now_ns -= 3650 * DAY_NS
    assert store.may_delete(VAULT, DEVICE.public_key)
    put_head(store, 2, STRANGER)
    assert not store.may_delete(VAULT, STRANGER.public_key)
    clock.now_ns = NOW_NS + 7 * DAY_NS - 1
    assert not store.may_delete(VAULT, STRANGER.public_key)
    clock.now_ns += 1
    assert store.may_delete(VAULT, STRANGER.public_key)


def test_a_clock_before_1970(root: Path) -> None:
    store = ReplicaStore.open(root, None, lambda: -5, reserve_bytes=0)
    put_head(store)
    put_head(store, 2, STRANGER)
    store.close()
    again = ReplicaStore.open(root, None, lambda: -5, reserve_bytes=0)
    assert again.warnings == []
    assert again.devices(VAULT)[STRANGER.public_key].first_seen_ns == 0
    again.close()


def test_what_is_deleted_is_gone_and_does_not_count(store: ReplicaStore, root: Path) -> None:
    keys = [put_segment(store, data_of(number, 9000)) for number in range(3)]
    shares = [SHARE.format(index) for index in range(2)]
    for key in shares:
        put(store, key, b"share")
    keys += [*shares, put_head(store)]
    assert store.delete(VAULT, [keys[0], keys[3], segment_key(b"never there")]) == 2
    assert store.stat(VAULT, keys[0]) == (None, 0)
    check(root, store)
    assert (root / VAULT.hex() / "shares").is_dir()
    assert store.delete(VAULT, keys) == 4
    assert store.delete(VAULT, keys) == 0
    assert list((root / VAULT.hex() / "shares").iterdir()) == []  # nobody pays for directories
    check(root, store)
    assert put(store, shares[0], b"share")
    check(root, store)


def test_one_wrong_key_and_nothing_is_deleted(store: ReplicaStore) -> None:
    key = put_segment(store, b"x")
    with pytest.raises(RemoteRefusedError):
        store.delete(VAULT, [key, "segments/../vault.json"])
    assert store.stat(VAULT, key) == (1, 0)


def test_only_notes_are_forgotten(store: ReplicaStore, root: Path) -> None:
    keys = [put_segment(store, b"x"), put_head(store)]
    put(store, "vault.json", header(), revision=1)
    put(store, NOTE, b"note")
    put(store, "probe/x", b"note")
    assert store.forget(VAULT, NOTE) == 1
    assert store.forget(VAULT, NOTE) == 0
    assert store.forget(VAULT, "probe/x") == 1
    for key in [*keys, "vault.json", SHARE.format(0)]:
        with pytest.raises(RemoteRefusedError):
            store.forget(VAULT, key)
    check(root, store)


def test_heads_are_remembered_when_they_are_deleted(store: ReplicaStore, root: Path, clock: Clock) -> None:
    keys = [put_head(store, seq) for seq in (1, 5, 3)]
    expected = [Head(seq, digest_of(manifest(seq)), DEVICE.public_key) for seq in (5, 3, 1)]
    assert store.newest_heads(VAULT) == expected
    store.delete(VAULT, keys)
    store.close()
    again = ReplicaStore.open(root, None, clock)
    try:
        assert again.newest_heads(VAULT) == expected
        check(root, again)
    finally:
        again.close()


def test_a_stranger_crowds_out_none_of_the_vaults_heads(store: ReplicaStore) -> None:
    for seq in range(1, 21):
        put_head(store, seq)
    for seq in range(1000, 1040):
        put_head(store, seq, STRANGER)
    heads = store.newest_heads(VAULT)
    assert [head.seq for head in heads] == [*range(1039, 1023, -1), *range(20, 4, -1)]


def test_a_head_that_came_another_way_is_checked_when_it_is_put(store: ReplicaStore, root: Path) -> None:
    put_segment(store, b"x")
    data = manifest(4)
    key = f"heads/{DEVICE.public_key.hex()}/{4:010d}-{digest_of(data).hex()}"
    path = root / VAULT.hex() / key
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert begin(store, key, data) is None
    assert [head.seq for head in store.newest_heads(VAULT)] == [4]
    assert not store.may_delete(VAULT, DEVICE.public_key)
