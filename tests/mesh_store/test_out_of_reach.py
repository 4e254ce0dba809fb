"""Peers that are all out of reach: each is called once, and then that is told."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from vaultfs.errors import NobodyAnswersError, RemoteUnreachableError
from vaultfs.ids import PeerId
from vaultfs.mesh import client, pool
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.backoff import Breakers
from vaultfs.mesh.connection import PeerConnection
from vaultfs.mesh.store import MeshStore
from vaultfs.remotes.retrying import RetryingStore
from vaultfs.remotes.store import BytesSource

from .peers import RunningPeer

READS: dict[str, Callable[[RetryingStore], object]] = {
    "list": lambda store: list(store.list("heads/")),
    "size": lambda store: store.size_bytes("vault.json"),
    "get": lambda store: list(store.get("vault.json")),
    "segment": lambda store: list(store.get(f"segments/ab/{'ab' * 32}")),
    "put": lambda store: store.put("probe/x", BytesSource(b"x")),
}


def fail_to_wait(wait_s: float) -> bool:
    raise AssertionError(f"it waits {wait_s} s, to try again")


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Counter[PeerId]:
    """How often each peer was called, in vain."""
    counted: Counter[PeerId] = Counter()

    async def dial(context: ssl.SSLContext, address: Address, expected: PeerId | None) -> PeerConnection:
        assert expected is not None
        counted[expected] += 1
        raise RemoteUnreachableError("connection refused")

    monkeypatch.setattr(client, "dial", dial)
    return counted


@pytest.mark.parametrize("name", READS)
def test_each_is_called_once(
    store: MeshStore, peers: list[RunningPeer], dials: Counter[PeerId], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "Breakers", partial(Breakers, draw=lambda _, bound: bound))  # no pause ends meanwhile
    with pytest.raises(NobodyAnswersError, match="connection refused"):
        READS[name](RetryingStore(store, wait=fail_to_wait))
    assert dials == {peer.id: 1 for peer in peers}


def test_who_has_answered_once_is_tried_again(store: MeshStore, peers: list[RunningPeer]) -> None:
    assert list(store.list("heads/")) == []
    for peer in peers:
        peer.stop()
    waits: list[float] = []
    patient = RetryingStore(store, wait=partial(came, waits))
    with pytest.raises(RemoteUnreachableError) as caught:
        list(patient.list("heads/"))
    assert not isinstance(caught.value, NobodyAnswersError)
    assert len(waits) == 2
    assert set(store.out_of_reach()) == {peer.id for peer in peers}


def came(waits: list[float], wait_s: float) -> bool:
    """Wait twice, and then no more."""
    waits.append(wait_s)
    return len(waits) == 2
