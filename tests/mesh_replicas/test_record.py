"""What a peer remembers: written and read back strictly; damaged, lost, or of another time than the objects."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mesh_replicas.peer_objects import (
    ALICE,
    BOB,
    DAY_NS,
    DEVICE,
    NOW_NS,
    STRANGER,
    VAULT,
    Clock,
    check,
    data_of,
    header,
    put,
    put_head,
    put_segment,
)
from vaultfs.errors import FormatTooNewError, IntegrityError, NoSpaceError
from vaultfs.mesh.replica_record import DEVICE_WAIT_NS, FORMAT, MOST_DEVICES, VaultRecord
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.witness import Head


def full() -> VaultRecord:
    record = VaultRecord(writers=[ALICE, BOB])
    for number in range(MOST_DEVICES):
        device = data_of(number, 32)
        for seq in (1, number + 2):
            record.remember(Head(seq, data_of(1000 + number, 32), device), NOW_NS + number)
    record.expect_header(None, data_of(5, 32), 3, 2)
    record.expect_header(data_of(5, 32), data_of(6, 32), (1 << 63) - 1, (1 << 32) - 1)
    return record


def test_written_and_read_back() -> None:
    for record in (VaultRecord(), full()):
        assert VaultRecord.decode(record.encode()) == record
    assert len(full().encode()) < 100_000


def test_revisions() -> None:
    record = VaultRecord()
    first, second, third = (data_of(number, 32) for number in range(3))
    record.expect_header(None, first, 1, 1)
    record.expect_header(first, second, 2, 1)
    assert [record.revision_of(each) for each in (first, second, third)] == [1, 2, 0]
    record.expect_header(first, third, 3, 1)  # the second never got its name
    assert [record.revision_of(each) for each in (first, second, third)] == [1, 0, 3]
    record.expect_header(third, third, 7, 1)
    assert record.headers == [(third, 7)]
    record.expect_header(third, first, 8, 0)
    assert record.headers == [(third, 7), (first, 8)]
    assert record.epoch == 1


def test_too_many_devices() -> None:
    record = full()
    late = Head(9, data_of(1, 32), STRANGER.public_key)
    before = record.encode()
    with pytest.raises(NoSpaceError):
        record.remember(late, NOW_NS)
    assert record.encode() == before
    record.confirm(STRANGER.public_key, NOW_NS)  # in the place of the youngest
    assert len(record.devices) == MOST_DEVICES
    assert data_of(MOST_DEVICES - 1, 32) not in record.devices
    assert record.may_delete(STRANGER.public_key, NOW_NS)
    record.remember(late, NOW_NS)
    for device in list(record.devices):
        record.confirm(device, NOW_NS)
    with pytest.raises(NoSpaceError):
        record.confirm(data_of(4000, 32), NOW_NS)


def test_what_is_remembered_already() -> None:
    record = VaultRecord()
    head = Head(3, data_of(3, 32), DEVICE.public_key)
    assert not record.has_remembered(head)
    record.remember(head, NOW_NS)
    assert record.has_remembered(head)
    for seq in range(10, 26):
        record.remember(Head(seq, data_of(seq, 32), DEVICE.public_key), NOW_NS)
    assert record.has_remembered(head)  # it is too old to count
    assert head not in record.heads
    assert not record.has_remembered(Head(99, data_of(3, 32), DEVICE.public_key))
    assert not record.has_remembered(Head(1, data_of(3, 32), STRANGER.public_key))


CHANGES: list[tuple[str, Any]] = [
    ("format", 0),
    ("format", "1"),
    ("newest_time_ns", -1),
    ("newest_time_ns", 1 << 63),
    ("epoch", None),
    ("headers", [{"hash": "0" * 64, "revision": number} for number in (1, 2, 3)]),
    ("headers", [{"hash": "0" * 63, "revision": 1}]),
    ("headers", [{"hash": "0" * 64 + "\n", "revision": 1}]),
    ("headers", [{"hash": "0" * 64, "revision": 0}]),
    ("devices", [{"key": "0" * 64, "first_seen_ns": 0, "confirmed": 1}]),
    ("devices", [{"key": "0" * 64, "first_seen_ns": 0, "confirmed": True}] * 2),
    ("devices", [{"key": f"{number:064x}", "first_seen_ns": 0, "confirmed": True} for number in range(257)]),
    ("heads", [{"seq": 0, "hash": "0" * 64, "device": "0" * 64}]),
    ("heads", [{"seq": 1, "hash": "0" * 64, "device": "0" * 64}] * 2),
    ("heads", [{"seq": seq, "hash": "0" * 64, "device": "0" * 64} for seq in range(1, 34)]),
    ("writers", ["A" * 64]),
    ("writers", ["a" * 64, "a" * 64]),
    ("writers", [f"{number:064x}" for number in range(65)]),
    ("more", 1),
]


def test_strict() -> None:
    for name, value in CHANGES:
        content = json.loads(full().encode())
        content[name] = value
        with pytest.raises(IntegrityError):
            VaultRecord.decode(json.dumps(content).encode())


def test_other_formats() -> None:
    content = json.loads(full().encode())
    content["format"], content["more"] = FORMAT + 1, "unknown"
    with pytest.raises(FormatTooNewError):
        VaultRecord.decode(json.dumps(content).encode())
    with pytest.raises(IntegrityError):
        VaultRecord.decode(full().encode() + b" " * (1 << 20))


@pytest.mark.parametrize("count", [1000, pytest.param(50_000, marks=pytest.mark.long)])
def test_fuzz(count: int) -> None:
    draw = random.Random(7)
    record = VaultRecord(writers=[ALICE])
    record.remember(Head(3, data_of(3, 32), DEVICE.public_key), NOW_NS)
    good = record.encode()
    for _ in range(count):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data))
            data[place : place + draw.choice([0, 1, 1, 30])] = draw.choice(
                [b"", b"[" * draw.choice([1, 5000]), bytes([draw.randrange(256)]), b'"', b"1e999", b"\xff\xfe"]
            )
        try:
            found = VaultRecord.decode(bytes(data))
        except (IntegrityError, FormatTooNewError):
            continue
        assert VaultRecord.decode(found.encode()) == found


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100, b"[" * 100_000, b" " * (2 << 20)])
def test_a_damaged_record_is_moved_aside_and_nobody_may_delete(
    store: ReplicaStore, root: Path, clock: Clock, damage: bytes
) -> None:
    put_head(store, 4)
    put_segment(store, b"x")
    put(store, "vault.json", header(2), revision=5)
    store.close()
    path = root / VAULT.hex() / ".mesh" / "record.json"
    path.write_bytes(damage)
    for opened in range(3):
        again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
        assert [VAULT.hex() in warning for warning in again.warnings] == [True] * (opened == 0)
        assert path.with_name("record.json.damaged").read_bytes() == damage
        assert [head.seq for head in again.newest_heads(VAULT)] == [5, 4][opened == 0 :]
        assert again.may_delete(VAULT, DEVICE.public_key) == (opened == 2)
        assert again.stat(VAULT, "vault.json")[1] == 0
        assert again.state(ALICE, VAULT, None).objects == 3
        put_head(again, 5, STRANGER)
        assert not again.may_delete(VAULT, STRANGER.public_key) or opened == 2
        newest = again.newest_heads(VAULT)[0]
        again.delete(VAULT, [f"heads/{newest.device.hex()}/{newest.seq:010d}-{newest.hash.hex()}"])
        again.close()
        clock.now_ns += 7 * DAY_NS if opened else 7 * DAY_NS - 1


def test_a_record_of_a_newer_vaultfs_stops_the_server(store: ReplicaStore, root: Path) -> None:
    put_segment(store, b"x")
    store.close()
    path = root / VAULT.hex() / ".mesh" / "record.json"
    content = json.loads(path.read_bytes())
    content["format"] = FORMAT + 1
    path.write_text(json.dumps(content))
    for _ in range(2):  # and the lock is free again
        with pytest.raises(FormatTooNewError, match=VAULT.hex()):
            ReplicaStore.open(root, None)


def test_a_record_older_than_the_objects(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put_head(store, 1)
    put(store, "vault.json", header(1), revision=1)
    mesh = root / VAULT.hex() / ".mesh"
    old = (mesh / "record.json").read_bytes()
    put_head(store, 2, STRANGER)
    put(store, "vault.json", header(2), revision=2)
    store.close()
    (mesh / "record.json").write_bytes(old)
    clock.now_ns += 30 * DAY_NS
    again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    assert [head.seq for head in again.newest_heads(VAULT)] == [2, 1]
    assert again.may_delete(VAULT, DEVICE.public_key)
    assert not again.may_delete(VAULT, STRANGER.public_key)  # its week begins anew
    assert again.stat(VAULT, "vault.json")[1] == 0
    assert put(again, "vault.json", header(2, filler="x"), revision=3)
    check(root, again)
    again.close()


def test_objects_older_than_the_record(store: ReplicaStore, root: Path, clock: Clock) -> None:
    put_head(store, 1)
    put_segment(store, b"old")
    base = root / VAULT.hex()
    shutil.copytree(base, root / "backup")
    put_head(store, 2)
    put_segment(store, b"new")
    put_segment(store, b"of bob", BOB)
    store.close()
    for name in ("segments", "heads"):
        shutil.rmtree(base / name)
        shutil.move(root / "backup" / name, base / name)
    again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    assert [head.seq for head in again.newest_heads(VAULT)] == [2, 1]
    assert again.state(ALICE, VAULT, None).objects == 2
    assert again.usage(BOB) == 0
    assert put(again, *_segment(b"new"))
    put_head(again, 2)
    check(root, again)
    again.close()


def _segment(data: bytes) -> tuple[str, bytes]:
    from mesh_replicas.peer_objects import segment_key

    return segment_key(data), data


def test_a_vault_copied_here_by_hand(root: Path, store: ReplicaStore, clock: Clock) -> None:
    """While the server runs, and without what is remembered: all is there, but nobody may delete for a week."""
    put_head(store, 3)
    put_segment(store, b"x")
    copied = root.with_name("copied")
    other = ReplicaStore.open(copied, None, clock, reserve_bytes=0)
    shutil.copytree(root / VAULT.hex(), copied / VAULT.hex(), ignore=shutil.ignore_patterns(".mesh"))
    assert other.stat(VAULT, _segment(b"x")[0]) == (1, 0)
    put_segment(other, b"y")
    assert other.newest_heads(VAULT) == store.newest_heads(VAULT)
    assert not other.may_delete(VAULT, DEVICE.public_key)
    check(copied, other)
    other.close()


def test_format_1_is_read_as_if_all_were_the_owners() -> None:
    record = VaultRecord(writers=[ALICE])
    record.remember(Head(1, bytes(32), b"a" * 32), NOW_NS)
    record.remember(Head(2, bytes(32), b"b" * 32), NOW_NS)
    content = json.loads(record.encode())
    content["format"] = 1
    for device in content["devices"]:
        del device["of_owner"]
    assert VaultRecord.decode(json.dumps(content).encode()) == record


def test_time_lets_in_only_what_the_owner_has_stored() -> None:
    record = VaultRecord()
    record.remember(Head(1, bytes(32), b"a" * 32), NOW_NS)
    record.remember(Head(2, bytes(32), b"b" * 32), NOW_NS, is_of_owner=False)
    later_ns = NOW_NS + 1000 * DEVICE_WAIT_NS
    assert not record.may_delete(b"b" * 32, later_ns)
    again = Head(3, bytes(32), b"b" * 32)
    assert record.has_remembered(Head(2, bytes(32), b"b" * 32))
    assert not record.has_remembered(Head(2, bytes(32), b"b" * 32), is_of_owner=True)
    record.remember(again, later_ns)
    assert not record.may_delete(b"b" * 32, later_ns + DEVICE_WAIT_NS - 1)
    assert record.may_delete(b"b" * 32, later_ns + DEVICE_WAIT_NS)
    record.remember(again, later_ns + DEVICE_WAIT_NS)
    assert record.may_delete(b"b" * 32, later_ns + DEVICE_WAIT_NS), "the wait does not begin anew"
    record.remember(Head(4, bytes(32), b"c" * 32), NOW_NS, is_of_owner=False)
    record.confirm(b"c" * 32, NOW_NS)
    assert record.may_delete(b"c" * 32, NOW_NS)
    assert VaultRecord.decode(record.encode()) == record
