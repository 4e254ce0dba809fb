"""What comes of an object counts at once, and is taken back if it was wrong."""

from __future__ import annotations

import pytest
from mesh_repair.signed_vault import SignedVault

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.mesh.arrivals import Arrivals, Attempt
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.store import MeshStore
from vaultfs.remotes.store import BytesSource
from vaultfs.sync.remote_layout import segment_key

from .peers import RunningPeer

NAME = SegmentName("ab" * 32)
KEY = segment_key(NAME)


def begun(arrivals: Arrivals, key: str, came_bytes: int) -> Attempt:
    attempt = arrivals.begin(key)
    assert attempt is not None
    arrivals.came(attempt, came_bytes)
    return attempt


def test_what_comes_counts_until_it_is_given_out() -> None:
    arrivals = Arrivals()
    with arrivals.reading(KEY):
        attempt = begun(arrivals, KEY, 10)
        arrivals.came(attempt, 5)
        assert arrivals.pending_bytes == 15
        arrivals.end(attempt, is_whole=True)
        assert arrivals.pending_bytes == 15
        arrivals.handed(KEY, 15)
        assert arrivals.pending_bytes == 0
    assert arrivals.begin(KEY) is None
    arrivals.handed(KEY, 1)
    assert arrivals.pending_bytes == 0


def test_what_failed_is_taken_back() -> None:
    arrivals = Arrivals()
    with arrivals.reading(KEY):
        arrivals.end(begun(arrivals, KEY, 10), is_whole=False)
        assert arrivals.pending_bytes == 0
        arrivals.end(begun(arrivals, KEY, 10), is_whole=True)
        begun(arrivals, KEY, 3)  # so the one before had a wrong hash
        assert arrivals.pending_bytes == 3


def test_of_two_that_send_the_same_the_faster_counts() -> None:
    arrivals = Arrivals()
    with arrivals.reading(KEY):
        slow = begun(arrivals, KEY, 3)
        begun(arrivals, KEY, 7)
        assert arrivals.pending_bytes == 7
        arrivals.came(slow, 10)
        assert arrivals.pending_bytes == 13


def test_shares_count_together_for_their_segment() -> None:
    arrivals = Arrivals()
    coded = CodedSegment(NAME, 100, Coding(2, 3))
    keys = [str(ShareKey(coded, index, f"{index:064x}")) for index in range(3)]
    with arrivals.reading(KEY):
        for key in keys[:2]:
            arrivals.end(begun(arrivals, key, 40), is_whole=True)
        assert arrivals.pending_bytes == 80
        begun(arrivals, keys[2], 40)
        assert arrivals.pending_bytes == 100


def test_a_second_reader_of_the_same_is_not_counted() -> None:
    arrivals = Arrivals()
    with arrivals.reading(KEY):
        begun(arrivals, KEY, 10)
        with arrivals.reading(KEY):
            assert arrivals.pending_bytes == 10
        assert arrivals.pending_bytes == 10
    assert arrivals.pending_bytes == 0


@pytest.fixture
def stored(vault: SignedVault, store: MeshStore) -> tuple[str, int]:
    """The key of a large segment that peers hold, and its length."""
    name = vault.segment(5 << 19)  # given out in three pieces
    store.put(segment_key(name), BytesSource(vault.segments[name]))
    return segment_key(name), len(vault.segments[name])


def test_read_from_peers(store: MeshStore, stored: tuple[str, int]) -> None:
    key, size = stored
    pieces = store.get(key)
    first = next(pieces)
    assert store.pending_bytes == size - len(first) > 0
    assert sum(map(len, pieces)) + len(first) == size
    assert store.pending_bytes == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_wrong_copy_counts_for_nothing(
    store: MeshStore, stored: tuple[str, int], peers: list[RunningPeer], vault: SignedVault, number: int
) -> None:
    key, size = stored
    holders = [peer for peer in peers if peer.has(key.rpartition("/")[2])]
    spoil(holders[number], vault, key)
    first = next(pieces := store.get(key))
    assert store.pending_bytes == size - len(first)
    list(pieces)
    spoil(holders[1 - number], vault, key)
    with pytest.raises(IntegrityError):
        list(store.get(key))
    assert store.pending_bytes == 0


def spoil(peer: RunningPeer, vault: SignedVault, key: str) -> None:
    path = peer.path(vault.vault_id, key)
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))


def test_nothing_is_left_of_a_read_that_is_given_up(store: MeshStore) -> None:
    store.put("probe/large", BytesSource(b"x" * 60_000))
    pieces = store.get("probe/large")
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert store.pending_bytes == 0
