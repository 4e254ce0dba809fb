"""Who may delete at once: the device of whoever began to store a vault, and not of somebody who was faster to sign."""

from __future__ import annotations

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
