"""Whatever somebody lays into a peer's directory: nothing is followed, nothing outside is touched, nothing blocks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mesh_replicas.peer_objects import (
    ALICE,
    NOTE,
    OTHER_VAULT,
    VAULT,
    begin,
    check,
    data_of,
    digest_of,
    header,
    put,
    put_segment,
    read,
    segment_key,
)
from vaultfs.errors import ObjectMissingError, RemoteError, StorageError, VaultLockedError
from vaultfs.mesh.messages import Range
from vaultfs.mesh.replicas import ReplicaStore

DATA = data_of(1, 100)
KEY = segment_key(DATA)


def lay_symlink(path: Path) -> None:
    target = next(above for above in path.parents if above.name == "replicas").parent / "outside"
    target.write_bytes(DATA)
    path.symlink_to(target)


def lay_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # such names are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
            Path("socket").rename(path.name)
    finally:
        os.chdir(here)


ODD: dict[str, Callable[[Path], None]] = {
    "symlink": lay_symlink,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "fifo": os.mkfifo,
    "socket": lay_socket,
    "directory": Path.mkdir,
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("if_absent", [False, True])
def test_in_the_place_of_a_segment(store: ReplicaStore, root: Path, kind: str, if_absent: bool) -> None:
    put_segment(store, b"x")
    path = root / VAULT.hex() / KEY
    path.parent.mkdir(exist_ok=True)
    ODD[kind](path)
    assert store.stat(VAULT, KEY) == (None, 0)
    assert store.have(VAULT, digest_of(DATA)) == [0]
    assert store.audit(VAULT, bytes(32), [Range(digest_of(DATA), 0, 0)]) == bytes(32)
    with pytest.raises(ObjectMissingError):
        store.reader(VAULT, KEY)
    assert store.delete(VAULT, [KEY]) == 0
    assert path.is_symlink() or path.exists()
    assert KEY not in dict(store.listing(VAULT, "", "", 100)[0])
    if kind == "directory":
        with pytest.raises(RemoteError, match="directory"):
            put(store, KEY, DATA, if_absent=if_absent)
    else:
        assert put(store, KEY, DATA, if_absent=if_absent)
        assert not path.is_symlink()
        assert read(store, KEY) == DATA
    if kind == "symlink":
        assert (root.parent / "outside").read_bytes() == DATA


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "directory"])
@pytest.mark.parametrize("place", ["segments", "segments/" + KEY.split("/")[1], ".mesh", ".mesh/partial", ""])
def test_in_the_place_of_a_directory(root: Path, tmp_path: Path, kind: str, place: str) -> None:
    path = root / VAULT.hex() / place if place else root / VAULT.hex()
    path.parent.mkdir(parents=True)
    if kind == "symlink":
        outside = tmp_path / "elsewhere"
        outside.mkdir()
        path.symlink_to(outside)
    else:
        ODD[kind](path)
    with suppress(RemoteError):  # where its own directory is something else it may refuse to start
        store = ReplicaStore.open(root, None, reserve_bytes=0)
        try:
            assert store.have(VAULT, digest_of(DATA)) == [0]
            with pytest.raises(RemoteError):
                put(store, KEY, DATA)
            put_segment(store, DATA, vault=OTHER_VAULT)
        finally:
            store.close()
    if kind == "symlink":
        assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["record.json", "others", "partial/x"])
def test_in_the_place_of_what_is_remembered(store: ReplicaStore, root: Path, kind: str, name: str) -> None:
    put_segment(store, b"x")
    store.close()
    path = root / VAULT.hex() / ".mesh" / name
    path.unlink(missing_ok=True)
    ODD[kind](path)
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    try:
        assert again.usage(ALICE) == 0 or name != "record.json"
        if kind != "directory" or name == "partial/x":
            put_segment(again, DATA)
            assert read(again, KEY) == DATA
    finally:
        again.close()
    if kind == "symlink":
        assert (root.parent / "outside").read_bytes() == DATA


@pytest.mark.parametrize("kind", ODD)
def test_in_the_place_of_what_is_coming(store: ReplicaStore, root: Path, kind: str) -> None:
    put_segment(store, b"x")
    path = root / VAULT.hex() / ".mesh" / "partial" / f"{digest_of(DATA).hex()}-{ALICE.hex()}"
    ODD[kind](path)
    assert put(store, KEY, DATA)
    assert read(store, KEY) == DATA
    check(root, store)


@pytest.mark.parametrize("kind", ODD)
def test_what_was_interrupted_turned_into_something_else(store: ReplicaStore, root: Path, kind: str) -> None:
    upload = begin(store, KEY, DATA)
    assert upload is not None
    upload.write(DATA[:50])
    upload.abort(keep=True)
    (path,) = (root / VAULT.hex() / ".mesh" / "partial").iterdir()
    path.unlink()
    ODD[kind](path)
    assert put(store, KEY, DATA)
    assert read(store, KEY) == DATA
    check(root, store)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("key", ["vault.json", NOTE])
def test_in_the_place_of_header_and_note(store: ReplicaStore, root: Path, kind: str, key: str) -> None:
    put_segment(store, b"x")
    path = root / VAULT.hex() / key
    path.parent.mkdir(exist_ok=True, parents=True)
    ODD[kind](path)
    assert store.stat(VAULT, key) == (None, 0)
    if kind != "directory":
        assert put(store, key, header(), revision=1, if_absent=True)
        assert read(store, key) == header()


def test_names_that_are_no_keys(store: ReplicaStore, root: Path) -> None:
    put_segment(store, b"x")
    base = root / VAULT.hex()
    for name in ("readme", ".hidden", "segments/readme", "segments/zz", "heads/x", "nöte", "-x"):
        path = base / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (base / "segments" / "00").mkdir(exist_ok=True)
    (base / "segments" / "00" / digest_of(b"x").hex()).write_bytes(b"x")  # in the wrong shard
    for name in ("lost+found", "x" * 32, VAULT.hex().upper()):
        (root / name).mkdir(exist_ok=True)
    (root / OTHER_VAULT.hex()).write_bytes(b"")
    assert store.listing(VAULT, "", "", 100) == ([(segment_key(b"x"), 1)], False)
    store.close()
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    assert again.vaults() == [VAULT]
    assert again.state(ALICE, VAULT, None).objects == 1
    again.close()


def test_one_server_works_in_a_directory(store: ReplicaStore, root: Path) -> None:
    with pytest.raises(VaultLockedError):
        ReplicaStore.open(root, None)
    store.close()
    store.close()
    ReplicaStore.open(root, None).close()


def test_the_directory_above_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        ReplicaStore.open(tmp_path / "a" / "b", None)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        ReplicaStore.open(tmp_path / "file", None)
