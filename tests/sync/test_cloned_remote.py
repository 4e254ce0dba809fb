"""What a clone knows of its remote: no more than is true, and nothing is written there to find out."""

from __future__ import annotations

from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated
from vaultfs.errors import ForkedError, UsageError, VaultLockedError
from vaultfs.ids import SegmentName
from vaultfs.remotes.configured import Remote, save_remotes
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync import known_segments as known_module
from vaultfs.sync.cloned_remote import note_cloned
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.known_segments import known_segments
from vaultfs.sync.ledger import Holdings, Ledger
from vaultfs.sync.remote_layout import RemoteHead, segment_key
from vaultfs.sync.upload import Target, missing, sync

READING = {"get", "list", "size_bytes"}


@pytest.fixture
def filled(vault: Fabricated, away: Target, store: MemoryStore) -> MemoryStore:
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    store.requests.clear()
    return store


class Clone:
    """A clone of a snapshot, and an empty ledger."""

    def __init__(self, store: MemoryStore, root: Path, which: int) -> None:
        root.mkdir()
        self.layout = VaultLayout(root / "clone")
        self.store = store
        self.head: RemoteHead = heads(store)[which]
        self.manifest: Manifest = fetch(store, self.layout, self.head, with_segments=False)
        self.target = Target("origin", store, Ledger(root / "ledger", self.manifest.vault_id))
        store.requests.clear()

    def note(self) -> dict[SegmentName, int]:
        return note_cloned("origin", self.store, self.target.ledger, self.layout, self.head, self.manifest)


@pytest.fixture
def clone(filled: MemoryStore, scratch: Path) -> Clone:
    return Clone(filled, scratch / "machine", -1)


def test_nothing_is_missing_from_the_start(clone: Clone, store: MemoryStore) -> None:
    assert not missing(clone.layout, clone.target).is_nothing
    assert clone.note() == {}
    assert {kind for kind, _ in store.requests} <= READING
    assert missing(clone.layout, clone.target).is_nothing
    store.requests.clear()
    [outcome] = sync(clone.layout, [clone.target])
    assert (outcome.is_up_to_date, outcome.segments, outcome.manifests) == (True, 0, 0)
    assert len(store.requests) == 2, "and the first sync asks no more than later ones"


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_what_the_remote_has_lost(clone: Clone, store: MemoryStore, how: str) -> None:
    name, size = clone.manifest.segments[0]
    if how == "missing":
        del store.objects[segment_key(SegmentName(name))]
    else:
        store.objects[segment_key(SegmentName(name))] = bytes(size - 1)
    assert clone.note() == {name: size}
    lack = missing(clone.layout, clone.target)
    assert (lack.segments, lack.manifests, lack.is_nothing) == (1, 1, False)


def test_the_ledger_of_an_earlier_clone_is_not_believed(clone: Clone, store: MemoryStore) -> None:
    """Others have sent and deleted since."""
    with clone.target.ledger.locked(store.name) as opened:
        opened.replace(Holdings(is_listed=True))
    assert clone.note() == {}
    assert missing(clone.layout, clone.target).is_nothing
    del store.objects[segment_key(SegmentName(clone.manifest.segments[0][0]))]
    clone.note()
    assert not missing(clone.layout, clone.target).is_nothing


def test_a_clone_of_an_older_snapshot(filled: MemoryStore, scratch: Path) -> None:
    clone = Clone(filled, scratch / "machine", 0)
    with pytest.raises(ForkedError):
        clone.note()
    assert not missing(clone.layout, clone.target).is_nothing


def test_not_beside_a_sync(clone: Clone, store: MemoryStore) -> None:
    with clone.target.ledger.locked(store.name), pytest.raises(VaultLockedError):
        clone.note()


# --- which segments may lie elsewhere


@pytest.fixture
def listed(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The clone with its remote in its list."""
    monkeypatch.setattr(known_module, "open_store", lambda *_: clone.store)
    monkeypatch.setattr(Ledger, "of", lambda *_: clone.target.ledger)
    save_remotes(clone.layout, [Remote("origin", "file:///nowhere")])
    return clone


def test_without_a_ledger_anything_may_be_there(listed: Clone) -> None:
    known = known_segments(listed.layout)
    assert (set(known.names), known.is_complete) == ({name for name, _ in listed.manifest.segments}, False)


def test_with_a_ledger_it_is_what_was_listed(listed: Clone, store: MemoryStore) -> None:
    listed.note()
    known = known_segments(listed.layout)
    assert known.is_complete
    assert set(known.names) == {key.split("/")[-1] for key in store.objects if key.startswith("segments/")}


def test_what_the_remote_has_lost_is_not_there(listed: Clone, store: MemoryStore) -> None:
    name, _ = listed.manifest.segments[0]
    del store.objects[segment_key(SegmentName(name))]
    listed.note()
    known = known_segments(listed.layout)
    assert known.is_complete
    assert name not in known.names
    assert {each for each, _ in listed.manifest.segments[1:]} <= set(known.names)


def test_of_a_remote_that_cannot_be_opened_nothing_is_known(
    listed: Clone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listed.note()

    def broken(*_: object) -> MemoryStore:
        raise UsageError("opendal is not installed")

    monkeypatch.setattr(known_module, "open_store", broken)
    known = known_segments(listed.layout)
    assert (set(known.names), known.is_complete) == ({name for name, _ in listed.manifest.segments}, False)
    assert "opendal is not installed" in caplog.text


def test_a_damaged_manifest_names_nothing(listed: Clone) -> None:
    for path in listed.layout.heads.glob("*.manifest"):
        path.write_bytes(b"damaged")
    known = known_segments(listed.layout)
    assert (set(known.names), known.is_complete) == (set(), False)
