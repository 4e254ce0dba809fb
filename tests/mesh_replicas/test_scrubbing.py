"""Damage is found step by step, and what is damaged is missing from then on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mesh_replicas.peer_objects import (
    ALICE,
    DAY_NS,
    NOTE,
    OTHER_VAULT,
    VAULT,
    Clock,
    begin,
    check,
    data_of,
    digest_of,
    header,
    put,
    put_head,
    put_segment,
    read,
    segment_key,
)
from vaultfs.mesh.replicas import ReplicaStore


def test_round_and_round(store: ReplicaStore, root: Path, clock: Clock) -> None:
    for number in range(5):
        put_segment(store, data_of(number, 1000))
        put_segment(store, data_of(number, 1000), vault=OTHER_VAULT)
    put(store, NOTE, b"note")
    put(store, "vault.json", header(), revision=1)
    for _ in range(2):
        checked = []
        while True:
            step = store.scrub_some(2500)
            assert step.damaged == ()
            checked.append((step.checked_objects, step.checked_bytes))
            if step.is_round_complete:
                break
            store.close()
            store = ReplicaStore.open(root, None, clock, reserve_bytes=0)
        assert checked == [(3, 3000), (3, 3000), (3, 3000), (1, 1000)]
    assert store.scrub_some(1 << 40)[:2] == (10_000, 10)
    store.close()


def test_one_at_least(store: ReplicaStore) -> None:
    assert store.scrub_some(0) == (0, 0, (), True)
    put_segment(store, data_of(1, 1000))
    put_segment(store, data_of(2, 1000))
    assert store.scrub_some(0)[1] == 1


@pytest.mark.parametrize("damage", [b"", b"x", bytes(1000), None])
def test_damaged_objects_are_missing(
    store: ReplicaStore, root: Path, damage: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(1, 1000)
    key = put_segment(store, data)
    good = put_segment(store, data_of(2, 1000))
    head = put_head(store)
    path = root / VAULT.hex() / key
    if damage is not None:
        path.write_bytes(damage)
        (root / VAULT.hex() / head).write_bytes(b"x")
    with monkeypatch.context() as patch:
        if damage is None:
            patch.setattr("os.pread", lambda *args: _fail(path, head, *args))
        step = store.scrub_some(1 << 20)
    assert sorted(step.damaged) == sorted(f"{VAULT.hex()}/{each}" for each in (key, head))
    assert store.have(VAULT, digest_of(data) + digest_of(data_of(2, 1000))) == [0, 1000]
    check(root, store)
    aside = root / VAULT.hex() / ".mesh" / "damaged" / digest_of(data).hex()
    assert aside.read_bytes() == (damage if damage is not None else data)
    assert put(store, key, data)
    assert not aside.exists()
    assert read(store, good) == data_of(2, 1000)
    check(root, store)


PREAD = os.pread


def _fail(path: Path, head: str, descriptor: int, length: int, offset: int) -> bytes:
    if Path(f"/proc/self/fd/{descriptor}").readlink().name in {path.name, Path(head).name}:
        raise OSError(5, "Input/output error")
    return PREAD(descriptor, length, offset)


def test_a_file_that_came_in_its_place_meanwhile_stays(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 1000)
    key = put_segment(store, data)
    path = root / VAULT.hex() / key
    path.write_bytes(b"damaged")

    def replace(number: int, most: int, offset: int) -> bytes:
        path.unlink()
        path.write_bytes(data)
        monkeypatch.undo()
        return b""

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("os.pread", replace)
        assert store.scrub_some(1000).damaged == ()
    assert read(store, key) == data


def test_a_lost_or_damaged_place_begins_a_round(store: ReplicaStore, root: Path) -> None:
    for number in range(4):
        put_segment(store, data_of(number, 1000))
    for damage in (b"", b"{", b'{"vault":"x","key":""}', b"[" * 4000, b"x" * 10_000):
        assert not store.scrub_some(1000).is_round_complete
        place = root / ".scrub.json"
        assert place.stat().st_size < 300
        place.write_bytes(damage)
        assert store.scrub_some(1 << 20)[1:] == (4, (), True)
        assert not place.exists()


def age(path: Path, days: float) -> None:
    now_ns = 1_800_000_000 * 10**9
    os.utime(path, ns=(now_ns, now_ns - int(days * DAY_NS)))


@pytest.mark.parametrize("restarted", [False, True])
def test_old_things_go(store: ReplicaStore, root: Path, clock: Clock, restarted: bool) -> None:
    sent = [data_of(number, 10_000) for number in range(5)]
    uploads = [begin(store, segment_key(data), data) for data in sent]
    for upload, data in zip(uploads, sent, strict=True):
        assert upload is not None
        upload.write(data[:5000])
    partial = root / VAULT.hex() / ".mesh" / "partial"
    names = [f"{digest_of(data).hex()}-{ALICE.hex()}" for data in sent]
    for upload in uploads[:-1]:
        assert upload is not None
        upload.abort(keep=True)
    for name, days in zip(names, (7.1, 6.9, -6.9, -3650, 100), strict=True):
        age(partial / name, days)
    put_segment(store, b"x")
    (root / VAULT.hex() / segment_key(b"x")).write_bytes(b"y")
    store.scrub_some(100)
    (damaged,) = (root / VAULT.hex() / ".mesh" / "damaged").iterdir()
    age(damaged, 29.9)
    (partial / f"{names[0]}-{'0' * 16}.tmp").write_bytes(b"left by a crash")
    if restarted:
        store.close()
        for name, days in zip(names, (7.1, 6.9, -6.9, -3650, 100), strict=True):
            age(partial / name, days)
        store = ReplicaStore.open(root, None, clock, reserve_bytes=0)
        kept = names[1:3]
    else:
        freed_bytes = store.remove_old_partials()
        assert freed_bytes == 2 * 8192
        kept = [*names[1:3], names[4]]
    assert sorted(path.name for path in partial.iterdir()) == sorted(kept)
    assert damaged.exists()
    age(damaged, 30.1)
    store.remove_old_partials()
    assert not damaged.exists()
    for upload in uploads:
        assert upload is not None
        upload.abort(keep=True)
    check(root, store)
    store.close()
