"""``vault.json``: the one object that is replaced, and never by an older one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_replicas.peer_objects import OTHER_VAULT, VAULT, Clock, begin, check, header, put, read, send
from vaultfs.errors import FormatTooNewError, IntegrityError, ObjectExistsError
from vaultfs.mesh.replicas import ReplicaStore

KEY = "vault.json"


def test_revisions_rise(store: ReplicaStore, root: Path) -> None:
    put(store, KEY, header(filler="a"), revision=3)
    for revision in (1, 2, 3):
        with pytest.raises(ObjectExistsError):
            begin(store, KEY, header(filler="b"), revision=revision)
    assert store.stat(VAULT, KEY) == (len(header(filler="a")), 3)
    assert put(store, KEY, header(filler="b"), revision=4)
    assert (read(store, KEY), store.stat(VAULT, KEY)[1]) == (header(filler="b"), 4)
    check(root, store)


def test_the_same_again_has_the_higher_revision(store: ReplicaStore, root: Path) -> None:
    put(store, KEY, header(), revision=3)
    assert not put(store, KEY, header(), revision=2)
    assert store.stat(VAULT, KEY)[1] == 3
    assert not put(store, KEY, header(), revision=9)
    assert store.stat(VAULT, KEY)[1] == 9
    store.close()
    again = ReplicaStore.open(root, None)
    try:
        assert again.stat(VAULT, KEY)[1] == 9
    finally:
        again.close()


def test_epochs_do_not_go_down_as_long_as_there_is_one(store: ReplicaStore, root: Path) -> None:
    put(store, KEY, header(2), revision=1)
    with pytest.raises(ObjectExistsError):
        put(store, KEY, header(1), revision=2)
    assert read(store, KEY) == header(2)
    assert put(store, KEY, header(2, filler="x"), revision=2)
    assert put(store, KEY, header(3), revision=3)
    store.delete(VAULT, [KEY])
    assert store.stat(VAULT, KEY) == (None, 0)
    assert put(store, KEY, header(2), revision=1)  # who may have one deleted has the vault's key
    with pytest.raises(ObjectExistsError):
        put(store, KEY, header(1), revision=2)
    assert put(store, KEY, header(2, filler="y"), revision=2)
    check(root, store)


def test_only_if_there_is_none(store: ReplicaStore) -> None:
    assert put(store, KEY, header(), revision=1, if_absent=True)
    for data in (header(), header(filler="x")):
        with pytest.raises(ObjectExistsError):
            begin(store, KEY, data, revision=5, if_absent=True)


@pytest.mark.parametrize("if_absent", [False, True])
def test_two_at_once(store: ReplicaStore, root: Path, if_absent: bool) -> None:
    first = begin(store, KEY, header(filler="a"), revision=1, if_absent=if_absent)
    second = begin(store, KEY, header(filler="b"), revision=1, if_absent=if_absent)
    assert first is not None
    assert second is not None
    send(first, header(filler="a"))
    with pytest.raises(ObjectExistsError):
        send(second, header(filler="b"))
    assert read(store, KEY) == header(filler="a")
    check(root, store)


@pytest.mark.parametrize(
    "data", [b"x", b"{}", header(vault=OTHER_VAULT), header()[:-1], header(0), b"[" * 100_000, header(1 << 32)]
)
def test_what_is_no_header_of_this_vault(store: ReplicaStore, root: Path, data: bytes) -> None:
    with pytest.raises(IntegrityError):
        put(store, KEY, data, revision=1)
    assert store.stat(VAULT, KEY) == (None, 0)
    check(root, store)


def test_a_newer_format(store: ReplicaStore) -> None:
    with pytest.raises(FormatTooNewError):
        put(store, KEY, header().replace(b'"format": 1', b'"format": 2'), revision=1)


@pytest.mark.parametrize("there", [b"damaged", header(1, OTHER_VAULT), header(5), header(5) + bytes(1 << 20)])
def test_one_that_came_another_way_has_no_revision(store: ReplicaStore, root: Path, there: bytes) -> None:
    put(store, KEY, header(2), revision=7)
    (root / VAULT.hex() / KEY).write_bytes(there)
    assert store.stat(VAULT, KEY)[1] == 0
    if there == header(5):
        with pytest.raises(ObjectExistsError):
            put(store, KEY, header(4), revision=8)
    else:
        with pytest.raises(ObjectExistsError):
            put(store, KEY, header(1), revision=8)
    assert put(store, KEY, header(5, filler="x"), revision=1)
    assert store.stat(VAULT, KEY)[1] == 1


def test_an_older_header_and_a_newer_record(store: ReplicaStore, root: Path, clock: Clock) -> None:
    """The header was restored from a backup, the record was not."""
    put(store, KEY, header(1, filler="old"), revision=1)
    put(store, KEY, header(2, filler="new"), revision=2)
    put(store, KEY, header(3, filler="newest"), revision=3)
    store.close()
    (root / VAULT.hex() / KEY).write_bytes(header(1, filler="old"))
    again = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    try:
        assert again.stat(VAULT, KEY)[1] == 0
        with pytest.raises(ObjectExistsError):
            put(again, KEY, header(2, filler="new"), revision=4)
        assert put(again, KEY, header(3, filler="newest"), revision=4)
    finally:
        again.close()
