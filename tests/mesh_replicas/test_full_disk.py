"""A disk that fills up: the reserve stays, nothing is half there, and it goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from mesh_replicas.peer_objects import ALICE, VAULT, Clock, begin, check, data_of, put, put_segment, segment_key
from vaultfs.errors import NoSpaceError
from vaultfs.mesh.replicas import ReplicaStore

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.root
def test_a_small_disk(small: Path) -> None:
    root = small / "replicas"
    with closing(ReplicaStore.open(root, None, Clock(), reserve_bytes=2 * MIB)) as store:
        put_segment(store, data_of(1, 3 * MIB))
        free_bytes = store.state(ALICE, VAULT, None).free_bytes
        assert 2 * MIB < free_bytes < 3 * MIB
        large = data_of(2, 3 * MIB)
        with pytest.raises(NoSpaceError):
            begin(store, segment_key(large), large)
        fits = data_of(3, free_bytes - 200_000)
        upload = begin(store, segment_key(fits), fits)
        assert upload is not None
        assert store.state(ALICE, VAULT, None).free_bytes <= 200_000  # before a byte of it came
        upload.write(fits[:MIB])
        assert store.state(ALICE, VAULT, None).free_bytes <= 200_000
        filler = small / "filler"  # of somebody else
        filler.write_bytes(bytes(3 * MIB))
        with pytest.raises(NoSpaceError):
            upload.write(fits[MIB:])
        upload.abort(keep=True)
        assert store.state(ALICE, VAULT, None).free_bytes == 0
        check(root, store)
        with pytest.raises(NoSpaceError):
            put_segment(store, b"x")
        filler.unlink()
        put_segment(store, fits)
        store.delete(VAULT, [segment_key(data_of(1, 3 * MIB))])
        put_segment(store, large)
        check(root, store)


def disk(free_bytes: int, all_bytes: int) -> SimpleNamespace:
    return SimpleNamespace(f_bavail=free_bytes // 4096, f_blocks=all_bytes // 4096, f_frsize=4096)


@pytest.mark.parametrize(
    ("all_bytes", "reserve_bytes"),
    [(1 << 30, 64 * MIB), (20 << 30, (20 << 30) // 100), (10 << 40, 1 << 30)],
)
def test_the_reserve(root: Path, monkeypatch: pytest.MonkeyPatch, all_bytes: int, reserve_bytes: int) -> None:
    store = ReplicaStore.open(root, None, Clock())
    for left_bytes, fits in [(-4096, False), (8191, False), (16384, True)]:
        monkeypatch.setattr(os, "fstatvfs", lambda _, left=left_bytes: disk(reserve_bytes + left, all_bytes))
        room = store.state(ALICE, VAULT, None)
        assert max(0, left_bytes) - 8192 <= room.free_bytes <= max(0, left_bytes)
        data = data_of(1, 4097)
        if fits:
            assert put(store, segment_key(data), data)
        else:
            with pytest.raises(NoSpaceError):
                begin(store, segment_key(data), data)
    store.close()


def test_what_was_interrupted_gives_way_to_others_when_the_disk_is_full(
    store: ReplicaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(1, 50_000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data[:40_000])
    upload.abort(keep=True)
    left = [4096]
    remove = os.unlink

    def noted(name: str, **options: int) -> None:
        if name.endswith(ALICE.hex()):
            left[0] += 40_960
        remove(name, **options)

    monkeypatch.setattr(os, "unlink", noted)
    monkeypatch.setattr(os, "fstatvfs", lambda _: disk(left[0], 1 << 40))
    other = data_of(2, 30_000)
    assert put(store, segment_key(other), other, caller=b"b" * 32)  # type: ignore[arg-type]
    assert store.usage(ALICE) == 0
