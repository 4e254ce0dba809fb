"""What a caller can make a peer keep without paying for it: directories, vaults, notes of whose objects are whose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh_replicas.peer_objects import ALICE, BOB, VAULT, begin, check, put, segment_key
from vaultfs.errors import NoSpaceError
from vaultfs.ids import VaultId
from vaultfs.mesh import replica_files, replica_ledger, replica_vault
from vaultfs.mesh.replicas import ReplicaStore

MANY = 40


def directories(root: Path) -> set[str]:
    base = root / VAULT.hex()
    return {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_dir()}


def test_directories_of_notes_go_with_the_notes(store: ReplicaStore, root: Path) -> None:
    put(store, "probe/a", b"")
    before = directories(root)
    put(store, "probe/same/kept", b"x")
    for number in range(MANY):
        put(store, f"probe/same/{number}/note", b"x")
        put(store, f"probe/{number}/{number}/note", b"x")
        assert store.forget(VAULT, f"probe/{number}/{number}/note") == 1
        assert store.forget(VAULT, f"probe/same/{number}/note") == 1
    assert directories(root) == {*before, "probe/same"}
    put(store, "probe/1/1/note", b"again")
    check(root, store)
    assert store.forget(VAULT, "probe/1/1/note") == 1
    assert store.forget(VAULT, "probe/same/kept") == 1
    assert store.forget(VAULT, "probe/a") == 1
    assert directories(root) == before


def test_directories_of_notes_that_never_were(store: ReplicaStore, root: Path) -> None:
    put(store, "probe/a", b"")
    before = directories(root)
    for number in range(MANY):
        assert store.forget(VAULT, f"probe/{number}/{number}/note") == 0
    assert directories(root) == before


def test_one_caller_does_not_take_all_places_for_vaults(
    store: ReplicaStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vault(number: int) -> VaultId:
        return VaultId(number.to_bytes(16, "big"))

    assert replica_ledger.MOST_BEGUN_BY_ONE * 8 <= replica_ledger.MOST_VAULTS
    monkeypatch.setattr(replica_ledger, "MOST_BEGUN_BY_ONE", 3)
    for number in range(3):
        put(store, segment_key(b"x"), b"x", vault=vault(number))
    with pytest.raises(NoSpaceError, match="as many as one may"):
        begin(store, segment_key(b"x"), b"x", vault=vault(3))
    assert not (root / vault(3).hex()).exists()
    put(store, segment_key(b"y"), b"y", vault=vault(2))
    for number in range(4):  # of which he began one
        put(store, segment_key(b"z"), b"z", vault=vault(number), caller=BOB)
    put(store, segment_key(b"z"), b"z", vault=vault(4), caller=BOB)
    put(store, segment_key(b"y"), b"y", vault=vault(3))
    store.close()
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    with pytest.raises(NoSpaceError):
        begin(again, segment_key(b"x"), b"x", vault=vault(5))
    again.close()


def test_the_log_of_a_second_writer_stays_small(
    store: ReplicaStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_vault, "LEAST_LOG_BYTES", 160)
    log = root / VAULT.hex() / ".mesh" / "others"
    written = 0
    real = replica_files.replace_file

    def replace_file(directory: int, parts: Sequence[str], data: bytes) -> None:
        nonlocal written
        written += parts[-1] == "others"
        real(directory, parts, data)

    monkeypatch.setattr(replica_files, "replace_file", replace_file)
    put(store, "probe/first", b"x")
    longest = 0
    for number in range(MANY):
        put(store, "probe/note", bytes([number]), caller=BOB)
        longest = max(longest, log.stat().st_size)
    assert 100 < longest <= 160
    assert 0 < written < MANY / 2
    for number in range(MANY):
        put(store, f"probe/{number}", b"", caller=BOB)
    assert log.stat().st_size <= 2 * 16 * (MANY + 1)
    used = store.usage(ALICE), store.usage(BOB)
    assert used == (4096, (MANY + 1) * 4096)
    store.close()
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    assert (again.usage(ALICE), again.usage(BOB)) == used
    again.close()
