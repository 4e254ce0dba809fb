"""A fetch that is interrupted anywhere is gone on with, and only what is lacking is asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from remotes.faults import BreakBody, Fail, FaultyStore, RandomFailures, cut, flip
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated
from vaultfs.errors import (
    RemoteUnreachableError,
)
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import RemoteHead, StoppedError, SyncProgress, fetch
from vaultfs.sync.fetched_file import part_path
from vaultfs.sync.remote_layout import segment_key

from .fetched import LOST, REQUESTS, names_of, require_fetched, require_nothing_false


@pytest.mark.parametrize("number", range(REQUESTS))
def test_any_request_fails_once(
    vault: Fabricated, faulty: FaultyStore, head: RemoteHead, into: VaultLayout, number: int
) -> None:
    faulty.add(Fail(LOST, "get", skip=number))
    with pytest.raises(RemoteUnreachableError):
        fetch(faulty, into, head, connections=1)
    require_nothing_false(into, head)
    have = set(into.sealed_names())
    assert len(have) == max(0, number - 2)
    faulty.requests.clear()
    fetch(faulty, into, head)
    require_fetched(vault, head, into)
    asked = {key for _, key in faulty.requests if key.startswith("segments/")}
    assert asked == {segment_key(name) for name in set(names_of(vault)) - have}


@pytest.mark.parametrize("number", range(REQUESTS))
def test_any_body_breaks_off(
    vault: Fabricated, faulty: FaultyStore, head: RemoteHead, into: VaultLayout, number: int
) -> None:
    faulty.add(BreakBody(100, skip=number))
    with pytest.raises(RemoteUnreachableError):
        fetch(faulty, into, head)
    require_nothing_false(into, head)
    fetch(faulty, into, head)
    require_fetched(vault, head, into)


def test_only_the_rest_of_a_segment_is_asked_for(
    vault: Fabricated, faulty: FaultyStore, head: RemoteHead, into: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = names_of(vault)[1]
    faulty.add(BreakBody(100, key=segment_key(name)))
    with pytest.raises(RemoteUnreachableError):
        fetch(faulty, into, head)
    assert part_path(into, name).read_bytes() == vault.segments[name][:100]
    asked = []
    real = faulty.inner.get

    def get(key: str, *, offset: int = 0, length: int | None = None) -> object:
        asked.append((key, offset, length))
        return real(key, offset=offset, length=length)

    monkeypatch.setattr(faulty.inner, "get", get)
    fetch(faulty, into, head)
    assert (segment_key(name), 100, len(vault.segments[name]) - 100) in asked
    require_fetched(vault, head, into)


@pytest.mark.parametrize(
    "kept", [b"", b"\0" * 100, b"\0" * 10_000, None], ids=["nothing", "zeros", "too much", "everything"]
)
def test_a_damaged_rest_is_fetched_anew(
    vault: Fabricated, faulty: FaultyStore, head: RemoteHead, into: VaultLayout, kept: bytes | None
) -> None:
    """As a power cut leaves it; ``None``: all of it, but not yet renamed."""
    into.create_directories()
    name = names_of(vault)[0]
    part = part_path(into, name)
    part.parent.mkdir(mode=0o700)
    part.write_bytes(vault.segments[name] if kept is None else kept)
    seen: list[SyncProgress] = []
    fetch(faulty, into, head, progress=seen.append)
    require_fetched(vault, head, into)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    if kept is None:
        assert faulty.count("get", segment_key(name)) == 0


@pytest.mark.parametrize("how", ["flipped", "short", "empty"])
def test_a_segment_that_went_bad_meanwhile_is_fetched_anew(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout, how: str
) -> None:
    fetch(filled, into, head)
    path = into.sealed_path(names_of(vault)[0])
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes({"flipped": flip()(data), "short": cut()(data), "empty": b""}[how])
    fetch(filled, into, head)
    require_fetched(vault, head, into)


def test_bad_luck(vault: Fabricated, filled: MemoryStore, head: RemoteHead, scratch: Path) -> None:
    for seed in range(20):
        into = VaultLayout(scratch / f"restored{seed}")
        store = FaultyStore(filled, RandomFailures(seed, 0.3))
        for _ in range(100):
            try:
                fetch(store, into, head)
            except RemoteUnreachableError:
                require_nothing_false(into, head)
            else:
                break
        require_fetched(vault, head, into)


def test_stopped_at_any_question(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    for stop_at in range(40):
        asked = iter(range(stop_at))
        try:
            fetch(filled, into, head, connections=1, is_stopped=lambda asked=asked: next(asked, None) is None)  # type: ignore[misc]
        except StoppedError:
            require_nothing_false(into, head)
        else:
            break
    require_fetched(vault, head, into)


def test_a_stop_ends_a_body_that_is_under_way(faulty: FaultyStore, head: RemoteHead, into: VaultLayout) -> None:
    begun = threading.Event()
    real = faulty.inner.get

    class Slow(FaultyStore):
        def get(self, key: str, *, offset: int = 0, length: int | None = None):  # type: ignore[no-untyped-def] # noqa: ANN202
            if key.startswith("segments/"):
                begun.set()
                while True:
                    threading.Event().wait(0.01)
                    yield b""
            yield from real(key, offset=offset, length=length)

    with pytest.raises(StoppedError):
        fetch(Slow(faulty.inner), into, head, is_stopped=begun.is_set)
    assert not [each for each in threading.enumerate() if each.name.startswith("vaultfs-sync")]
