"""What a verification finds to be bad on a remote is sent again; what this machine does not have stays bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from remotes.faults import flip
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_same
from vaultfs.errors import VaultLockedError
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.remote_layout import HEADER_KEY, segment_key
from vaultfs.sync.repair import send_again
from vaultfs.sync.upload import Target, TargetOutcome, sync
from vaultfs.sync.verify import verify


@pytest.fixture
def filled(vault: Fabricated, away: Target, store: MemoryStore) -> MemoryStore:
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    return store


def repaired(vault: Fabricated, away: Target, store: MemoryStore) -> TargetOutcome:
    return send_again(vault.layout, away, verify(store, read_share=1.0))


def head_of(store: MemoryStore, seq: int) -> str:
    [key] = [key for key in store.objects if f"/{seq:010d}-" in key]
    return key


def test_everything_that_can_be_bad(vault: Fabricated, away: Target, filled: MemoryStore, scratch: Path) -> None:
    first, second, third, fourth, _ = (segment_key(name) for name in vault.segments)
    filled.objects[first] = flip(7)(filled.objects[first])
    filled.objects[second] = filled.objects[second][:-1]
    filled.objects[third] = b""
    del filled.objects[fourth]
    filled.objects[head_of(filled, 2)] = flip(100)(filled.objects[head_of(filled, 2)])
    del filled.objects[head_of(filled, 1)]
    filled.objects[HEADER_KEY] = b"garbage"
    outcome = repaired(vault, away, filled)
    assert outcome.is_up_to_date
    assert (outcome.segments, outcome.manifests) == (4, 2)
    assert verify(filled, read_share=1.0).problems == []
    require_same(vault, filled, scratch / "back")


def test_only_what_is_bad_is_sent(vault: Fabricated, away: Target, filled: MemoryStore) -> None:
    name = next(iter(vault.segments))
    filled.objects[segment_key(name)] = flip(0)(filled.objects[segment_key(name)])
    filled.requests.clear()
    assert repaired(vault, away, filled).segments == 1
    assert [key for operation, key in filled.requests if operation == "put"] == [segment_key(name)]
    filled.requests.clear()
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    assert len(filled.requests) == 2


def test_what_is_not_here_any_more_stays_bad(vault: Fabricated, away: Target, filled: MemoryStore) -> None:
    third = list(vault.segments)[2]
    filled.objects[segment_key(third)] = flip(0)(filled.objects[segment_key(third)])
    key = head_of(filled, 2)
    filled.objects[key] = flip(100)(filled.objects[key])
    vault.path_of(list_manifests(vault.layout)[1]).unlink()
    before = dict(filled.objects)
    assert repaired(vault, away, filled).is_up_to_date
    assert filled.objects == before
    assert len(verify(filled, read_share=1.0).problems) == 2


def test_a_segment_that_is_damaged_here_too_is_not_sent(vault: Fabricated, away: Target, filled: MemoryStore) -> None:
    name = next(iter(vault.segments))
    filled.objects[segment_key(name)] = flip(0)(filled.objects[segment_key(name)])
    vault.spoil(name, flip(1)(vault.segments[name]))
    outcome = repaired(vault, away, filled)
    assert outcome.error is not None
    assert not outcome.is_up_to_date
    assert filled.objects[segment_key(name)] == flip(0)(vault.segments[name])


def test_while_a_sync_is_running(vault: Fabricated, away: Target, filled: MemoryStore) -> None:
    report = verify(filled)
    with away.ledger.locked(filled.name), pytest.raises(VaultLockedError):
        send_again(vault.layout, away, report)
