"""Directories with more names than are held in memory are listed all the same, in order, from anywhere."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import pytest

from mesh_replicas.peer_objects import VAULT, put, put_segment
from vaultfs.mesh import replica_files
from vaultfs.mesh.replicas import ReplicaStore


def sorted_paths(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_every_page_of_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(replica_files, "MOST_NAMES", most)
    chosen = random.Random(most)
    root = tmp_path / "root"
    for _ in range(60):
        parts = ["".join(chosen.choices("ab-.", k=chosen.randint(1, 3))).strip(".") or "c" for _ in range(2)]
        path = root / "v" / Path(*parts[: chosen.randint(1, 2)])
        if not any(each.is_file() for each in (path.parent, path)) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    expected = sorted_paths(root / "v")
    assert len(expected) > 10
    descriptor = os.open(root, os.O_RDONLY)
    try:
        for after in ["", *expected, "a", "a/", "b/a-", "zz"]:
            found = [path for path, _ in replica_files.walk(descriptor, ["v"], after)]
            assert found == [path for path in expected if path > after], after
    finally:
        os.close(descriptor)


def test_few_names_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_files, "MOST_NAMES", 10)
    for number in range(500):
        (tmp_path / f"{number:03}").write_bytes(b"")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        names, begin = replica_files._names(descriptor, "", "", "")
        assert (names, begin) == ([f"{number:03}" for number in range(10)], "010")
        names, begin = replica_files._names(descriptor, "490", "", "")
        assert (names, begin) == ([f"{number:03}" for number in range(490, 500)], None)
        assert replica_files._names(descriptor, "", "499", "") == ([], None)
        tracemalloc.start()
        count = sum(1 for _ in replica_files.walk(descriptor, []))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 500
        assert peak_bytes < 500 * 50  # a name of three characters takes 52 bytes
    finally:
        os.close(descriptor)


def test_pages_of_a_store(store: ReplicaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_files, "MOST_NAMES", 3)
    keys = [put_segment(store, bytes([number])) for number in range(20)]
    for number in range(20):
        key = f"heads/swept/{number:064x}"
        put(store, key, b"")
        keys.append(key)
    found: list[str] = []
    has_more = True
    while has_more:
        page, has_more = store.listing(VAULT, "", found[-1] if found else "", 7)
        found += [key for key, _ in page]
    assert found == sorted(keys)
