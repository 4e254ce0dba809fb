"""The disk is told to begin while an object still comes, so that the sync at its end has little to wait for."""

from __future__ import annotations

import os

import pytest

from mesh_replicas.peer_objects import begin, data_of, segment_key
from vaultfs.mesh import partial_uploads
from vaultfs.mesh.replicas import ReplicaStore

LOT_BYTES = 1000


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the disk was told to begin with: offsets and lengths."""
    found: list[tuple[int, int]] = []
    advise = os.posix_fadvise

    def note(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        assert os.fstat(descriptor).st_size >= offset + length, "it is told of bytes that are not written yet"
        advise(descriptor, offset, length, advice)
        found.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", note)
    monkeypatch.setattr(partial_uploads, "WRITE_OUT_BYTES", LOT_BYTES)
    return found


def test_every_lot_is_begun_with_once(store: ReplicaStore, told: list[tuple[int, int]]) -> None:
    data = data_of(1, 4 * LOT_BYTES)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    for start, end in [(0, 999), (999, 1000), (1000, 2500), (2500, 3499), (3499, 4000)]:
        upload.write(data[start:end])
    assert told == [(0, 1000), (1000, 1500), (2500, 1500)]
    upload.finish()


def test_what_an_earlier_try_has_brought_is_left_alone(store: ReplicaStore, told: list[tuple[int, int]]) -> None:
    data = data_of(2, 4 * LOT_BYTES)
    first = begin(store, segment_key(data), data)
    assert first is not None
    first.write(data[:900])
    first.abort(keep=True)
    again = begin(store, segment_key(data), data)
    assert again is not None
    assert again.offset == 900
    again.write(data[900:1899])
    assert told == []
    again.write(data[1899:])
    assert told == [(900, 3100)]
    again.finish()
