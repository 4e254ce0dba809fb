"""A peer that has no descriptors left says so, and does not say of a segment that it is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from mesh_replicas.peer_objects import VAULT, put_segment, read
from vaultfs.errors import RemoteError
from vaultfs.mesh.messages import Range
from vaultfs.mesh.replicas import ReplicaStore


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_an_audit(store: ReplicaStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    key = put_segment(store, b"data")
    asked = Range(bytes.fromhex(key[-64:]), 0, 4)
    proof = store.audit(VAULT, bytes(32), [asked])
    with monkeypatch.context() as patch:

        def fail(*args: object, **kwargs: object) -> int:
            raise OSError(number, "none left")

        patch.setattr(os, "open", fail)
        with pytest.raises(RemoteError, match="for an audit"):
            store.audit(VAULT, bytes(32), [asked])
    assert store.audit(VAULT, bytes(32), [asked]) == proof != bytes(32)


@pytest.mark.parametrize("allowed", range(12))
def test_every_call_without_descriptors_leaves_everything(
    store: ReplicaStore, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    key = put_segment(store, b"data")
    calls = 0
    real = os.open

    def few(*args: object, **kwargs: object) -> int:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise OSError(errno.EMFILE, "none left")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    actions: tuple[Callable[[], object], ...] = (
        lambda: store.scrub_some(100),
        lambda: put_segment(store, b"data"),
        lambda: store.have(VAULT, bytes.fromhex(key[-64:])),
        lambda: read(store, key),
        lambda: store.listing(VAULT, "", "", 10),
    )
    for action in actions:
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", few)
            try:
                action()
            except RemoteError as error:
                assert "none left" in str(error)  # noqa: PT017  # so many may be enough
    assert read(store, key) == b"data"
