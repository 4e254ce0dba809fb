"""Who may delete at once: the device of whoever began to store a vault, and not of somebody who was faster to sign."""

from __future__ import annotations

from pathlib import Path

from mesh_replicas.peer_objects import (
    ALICE,
    BOB,
    DAY_NS,
    DEVICE,
    STRANGER,
    VAULT,
    Clock,
    head_key,
    manifest,
    put,
    put_head,
    put_segment,
)
from vaultfs.ids import PeerId
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.replicas import ReplicaStore

OTHER = Identity.of_seed(b"o" * 32)


def put_head_of(store: ReplicaStore, device: Identity, seq: int, caller: PeerId) -> None:
    data = manifest(seq, device)
    put(store, head_key(data, seq, device), data, caller=caller)


def test_a_second_writer_that_signs_first_has_to_wait(store: ReplicaStore, clock: Clock) -> None:
    put_segment(store, b"the first of many", ALICE)
    put_head_of(store, STRANGER, 1, BOB)
    assert not store.may_delete(VAULT, STRANGER.public_key)
    put_head_of(store, DEVICE, 1, ALICE)
    assert not store.may_delete(VAULT, DEVICE.public_key)  # nobody knows which is the right one; a person does
    store.confirm_device(VAULT, DEVICE.public_key)
    assert store.may_delete(VAULT, DEVICE.public_key)
    clock.now_ns += 6 * DAY_NS
    assert not store.may_delete(VAULT, STRANGER.public_key)


def test_a_second_writer_that_comes_later_changes_nothing(store: ReplicaStore) -> None:
    put_segment(store, b"the first of many", ALICE)
    put_segment(store, b"another", BOB)
    put_head(store)
    assert store.may_delete(VAULT, DEVICE.public_key)


def test_time_does_not_let_in_who_is_only_allowed_to_store(store: ReplicaStore, root: Path, clock: Clock) -> None:
    """As everybody is who was accepted for any vault; a device of the vault's owner has to wait for seven days."""
    put_segment(store, b"the first of many", ALICE)
    put_head_of(store, DEVICE, 1, ALICE)
    put_head_of(store, STRANGER, 2, BOB)
    put_head_of(store, OTHER, 3, ALICE)
    clock.now_ns += 7 * DAY_NS
    assert store.may_delete(VAULT, OTHER.public_key)
    clock.now_ns += 365 * DAY_NS
    assert not store.may_delete(VAULT, STRANGER.public_key)
    store.close()
    again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    assert not again.may_delete(VAULT, STRANGER.public_key)
    put_head_of(again, STRANGER, 4, ALICE)  # so it is one of the owner's
    assert not again.may_delete(VAULT, STRANGER.public_key)
    clock.now_ns += 7 * DAY_NS
    assert again.may_delete(VAULT, STRANGER.public_key)
    again.close()


def test_a_manifest_that_came_another_way_is_nobodys(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put_segment(store, b"the first of many", ALICE)
    put_head_of(store, DEVICE, 1, ALICE)
    store.close()
    data = manifest(2, STRANGER)
    path = root / VAULT.hex() / head_key(data, 2, STRANGER)
    path.parent.mkdir()
    path.write_bytes(data)
    again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    clock.now_ns += 365 * DAY_NS
    assert STRANGER.public_key in again.devices(VAULT)
    assert not again.may_delete(VAULT, STRANGER.public_key)
    again.close()
