"""Verifying a remote: each kind of damage is named, and what is no damage is not."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import blake3
import pytest
from remotes.faults import ChangeList, EndlessBody, Fail, FaultyStore, invent, omit, repeat
from remotes.memory_store import MemoryStore

from sync.fabricated import DEVICE, Fabricated
from vaultfs.errors import (
    FormatTooNewError,
    IntegrityError,
    RemoteRefusedError,
    RemoteUnreachableError,
    StorageError,
    UsageError,
)
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.remotes.store import ObjectInfo
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.sync.remote_layout import HEADER_KEY, LARGEST_SEGMENT_BYTES, RemoteHead, head_key, segment_key
from vaultfs.sync.upload import Target, sync
from vaultfs.sync.verify import CONNECTIONS, StoppedError, SyncProgress, VerifyReport, verify


@pytest.fixture
def filled(vault: Fabricated, away: Target, store: MemoryStore) -> MemoryStore:
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    store.requests.clear()
    return store


def key_of(store: MemoryStore, seq: int) -> str:
    return next(key for key in store.objects if key.startswith("heads/") and key[71:81] == f"{seq:010d}")


def the_problem(store: MemoryStore, read_share: float = 0.0) -> str:
    report = verify(store, read_share=read_share)
    [problem] = report.problems
    return problem


def test_a_sound_remote(filled: MemoryStore) -> None:
    quick = verify(filled)
    assert quick == VerifyReport([], 9, quick.bytes_read, 3, 0)
    assert len(filled.requests) == 1 + 2 + 3
    full = verify(filled, read_share=1.0)
    assert full.problems == []
    assert full.bytes_read == sum(map(len, filled.objects.values()))
    assert quick.bytes_read == full.bytes_read - sum(
        len(data) for key, data in filled.objects.items() if key.startswith("segments/")
    )


def test_a_share_is_read(filled: MemoryStore) -> None:
    for share, count in ((0.0, 0), (0.1, 1), (0.4, 2), (0.41, 3), (1.0, 5)):
        filled.requests.clear()
        verify(filled, read_share=share)
        assert sum(operation == "get" and key.startswith("segments/") for operation, key in filled.requests) == count


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_senseless_shares(filled: MemoryStore, share: float) -> None:
    with pytest.raises(UsageError):
        verify(filled, read_share=share)


def test_nothing_is_written(filled: MemoryStore) -> None:
    verify(filled, read_share=1.0)
    assert {operation for operation, _ in filled.requests} == {"get", "list"}


def test_a_missing_segment(vault: Fabricated, filled: MemoryStore) -> None:
    key = segment_key(list(vault.segments)[2])
    del filled.objects[key]
    problem = the_problem(filled)
    assert key in problem
    assert "snapshot 2" in problem
    assert "1 of its 3 segments" in problem


def test_many_missing_segments(vault: Fabricated, filled: MemoryStore) -> None:
    for key in [key for key in filled.objects if key.startswith("segments/")]:
        del filled.objects[key]
    names = [SegmentName(f"{number:064x}") for number in range(1000)]
    manifest = Manifest(vault.vault_id, DEVICE, SnapshotSeq(9), 0, None, tuple((name, 5) for name in names), b"")
    data = manifest.encode(bytes(64))
    filled.objects[head_key(RemoteHead(DEVICE.hex(), 9, manifest_hash(data)))] = data
    filled.requests.clear()
    report = verify(filled)
    assert len(report.problems) == 4
    assert "lacks 1000 of its 1000 segments" in report.problems[-1]
    assert len(report.problems[-1]) < 3000
    assert len(filled.requests) < 50


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_segment_of_another_size(vault: Fabricated, filled: MemoryStore, size: int) -> None:
    key = segment_key(list(vault.segments)[2])
    filled.objects[key] = bytes(size)
    assert f"{key} has {size} bytes" in the_problem(filled)


def test_a_changed_segment(vault: Fabricated, filled: MemoryStore) -> None:
    key = segment_key(list(vault.segments)[2])
    data = filled.objects[key]
    filled.objects[key] = data[:-1] + bytes([data[-1] ^ 1])
    assert verify(filled).problems == []
    problem = the_problem(filled, 1.0)
    assert key in problem
    assert "damaged or was replaced" in problem


def test_an_unused_segment_is_no_problem_but_a_changed_one_is(filled: MemoryStore) -> None:
    key = segment_key(SegmentName("ab" * 32))
    filled.objects[key] = b"left by an interrupted sync"
    report = verify(filled)
    assert (report.problems, report.unused_segments) == ([], 1)
    assert key in the_problem(filled, 1.0)


def test_an_absurdly_large_segment_is_not_read(filled: MemoryStore) -> None:
    key = segment_key(SegmentName("ab" * 32))
    faulty = FaultyStore(filled, EndlessBody(key))
    filled.objects[key] = b"x"
    problem_keys = verify(faulty, read_share=1.0).problems
    assert len(problem_keys) == 1
    assert "longer than the 1 bytes" in problem_keys[0]
    del filled.objects[key]
    faulty.heal()
    faulty.add(ChangeList(invent(ObjectInfo(key, LARGEST_SEGMENT_BYTES + 1)), "segments/"))
    [problem] = verify(faulty, read_share=1.0).problems
    assert key in problem
    assert faulty.count("get", key) == 1


def test_a_segment_that_is_listed_but_not_there(vault: Fabricated, filled: MemoryStore) -> None:
    name = list(vault.segments)[2]
    key = segment_key(name)
    size = len(filled.objects.pop(key))
    faulty = FaultyStore(filled, ChangeList(invent(ObjectInfo(key, size)), times=None))
    assert verify(faulty).problems == []
    assert key in "".join(verify(faulty, read_share=1.0).problems)


def test_a_segment_that_ends_before_its_listed_size(filled: MemoryStore) -> None:
    key = segment_key(SegmentName("ab" * 32))
    filled.objects[key] = b"12"
    longer = [info._replace(size_bytes=3) if info.key == key else info for info in filled.list("segments/")]
    faulty = FaultyStore(filled, ChangeList(lambda _found: longer, "segments/"))
    assert any("ended after 2 of 3 bytes" in problem for problem in verify(faulty, read_share=1.0).problems)


def test_a_missing_header(filled: MemoryStore) -> None:
    del filled.objects[HEADER_KEY]
    assert "vault.json is missing" in the_problem(filled)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"x" * (2 << 20)])
def test_a_damaged_header(filled: MemoryStore, content: bytes) -> None:
    filled.objects[HEADER_KEY] = content
    assert "vault.json" in the_problem(filled)


def test_a_newer_format(filled: MemoryStore) -> None:
    filled.objects[HEADER_KEY] = json.dumps({"type": "vaultfs vault", "format": 2}).encode()
    with pytest.raises(FormatTooNewError):
        verify(filled)


def test_a_damaged_manifest(filled: MemoryStore) -> None:
    key = key_of(filled, 2)
    for data in (b"", filled.objects[key][:-1], filled.objects[key] + b"x", b"x" * 100):
        filled.objects[key] = data
        assert key in the_problem(filled)


def test_a_manifest_under_another_name(filled: MemoryStore) -> None:
    key = key_of(filled, 2)
    for wrong in (key.replace("0000000002", "0000000007"), key.replace(key[6:70], "ab" * 32)):
        filled.objects[wrong] = filled.objects[key]
        problem = the_problem(filled)
        assert wrong in problem
        assert "another snapshot's or device's" in problem
        del filled.objects[wrong]


def test_a_manifest_of_another_vault(vault: Fabricated, filled: MemoryStore) -> None:
    vault.write_header(vault_id="ab" * 16)
    filled.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    problems = verify(filled).problems
    assert len(problems) == 3
    assert all("of another vault" in problem for problem in problems)


def test_a_manifest_without_end(filled: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.sync.remote_objects.MAX_MANIFEST_BYTES", 3 << 20)
    key = key_of(filled, 2)
    [problem] = verify(FaultyStore(filled, EndlessBody(key))).problems
    assert key in problem


def test_an_empty_remote() -> None:
    report = verify(MemoryStore("memory:empty"), read_share=1.0)
    assert report.problems == ["vault.json is missing: without it nothing can be restored; sync again"]
    assert report.objects == 0


def test_everything_at_once(vault: Fabricated, filled: MemoryStore) -> None:
    names = list(vault.segments)
    del filled.objects[segment_key(names[2])]
    filled.objects[segment_key(names[3])] = b"x"
    data = filled.objects[segment_key(names[4])]
    filled.objects[segment_key(names[4])] = bytes(len(data))
    filled.objects[key_of(filled, 1)] = b"x"
    text = "\n".join(verify(filled, read_share=1.0).problems)
    for key in (*(segment_key(name) for name in names[2:]), key_of(filled, 1)):
        assert key in text


@pytest.mark.parametrize("change", [omit(), repeat(3)])
def test_listings_that_are_odd_are_no_damage(filled: MemoryStore, change: object) -> None:
    faulty = FaultyStore(filled, ChangeList(change, "segments/", times=None))  # type: ignore[arg-type]
    report = verify(faulty, read_share=1.0)
    assert report.problems == []
    assert report.bytes_read == sum(map(len, filled.objects.values()))


@pytest.mark.parametrize("error", [RemoteUnreachableError, RemoteRefusedError])
def test_no_answer_is_no_finding(filled: MemoryStore, error: type[RemoteUnreachableError]) -> None:
    for number in range(1 + 2 + 3 + 5):
        with pytest.raises(error):
            verify(FaultyStore(filled, Fail(error("cut"), skip=number)), read_share=1.0)


def test_stopping_and_progress(filled: MemoryStore) -> None:
    seen: list[SyncProgress] = []
    verify(filled, read_share=1.0, progress=seen.append)
    total = sum(len(data) for key, data in filled.objects.items() if key.startswith("segments/"))
    assert seen[-1] == SyncProgress(total, total)
    for stop_at in range(15):
        asked = iter(range(stop_at))
        with pytest.raises(StoppedError):
            verify(filled, read_share=1.0, is_stopped=lambda asked=asked: next(asked, None) is None)  # type: ignore[misc]
    assert not [each for each in threading.enumerate() if each.name.startswith("vaultfs-sync")]


# --- checks that take the key


class Keyed:
    """Notes what it is shown, and has something against some of it."""

    def __init__(self, directory: Path, *, against: str = "") -> None:
        self.directory = directory
        self.against = against
        self.manifests: dict[RemoteHead, bytes] = {}
        self.segments: dict[SegmentName, tuple[bytes, bool]] = {}
        self.most = 0

    def manifest(self, head: RemoteHead, data: bytes) -> None:
        assert not self.segments, "all manifests come first"
        self.manifests[head] = data
        if head.hash == self.against:
            raise IntegrityError("nobody we know")

    def place(self, name: SegmentName) -> Path:
        return self.directory / name

    def segment(self, name: SegmentName, *, is_needed: bool) -> list[str]:
        self.most = max(self.most, len(list(self.directory.iterdir())))
        self.segments[name] = ((self.directory / name).read_bytes(), is_needed)
        return ["it is odd", "it is old"] if name == self.against else []


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_who_has_the_key_sees_everything(filled: MemoryStore, tmp_path: Path, share: float) -> None:
    spare = b"nothing needs this"
    filled.objects[segment_key(SegmentName(blake3.blake3(spare).hexdigest()))] = spare
    keyed = Keyed(tmp_path / "looked at")
    keyed.directory.mkdir()
    report = verify(filled, read_share=share, keyed=keyed)
    assert report == verify(filled, read_share=share)
    assert sorted(keyed.manifests.values()) == sorted(
        data for key, data in filled.objects.items() if key.startswith("heads/")
    )
    assert {head_key(head) for head in keyed.manifests} <= set(filled.objects)
    shown = {segment_key(name): data for name, (data, _) in keyed.segments.items()}
    assert shown == {key: data for key, data in filled.objects.items() if share and key.startswith("segments/")}
    assert [data for data, is_needed in keyed.segments.values() if not is_needed] == ([spare] if share else [])
    assert keyed.most <= CONNECTIONS
    assert list(keyed.directory.iterdir()) == []


def test_what_who_has_the_key_finds(vault: Fabricated, filled: MemoryStore, tmp_path: Path) -> None:
    name = list(vault.segments)[1]
    report = verify(filled, read_share=1.0, keyed=Keyed(tmp_path, against=name))
    assert report.problems == [f"{segment_key(name)}: it is odd", f"{segment_key(name)}: it is old"]
    key = key_of(filled, 2)
    report = verify(filled, keyed=Keyed(tmp_path, against=key[-64:]))
    assert report.problems == [f"{key}: nobody we know"]
    assert report.snapshots == 3


def test_what_is_damaged_is_not_shown(vault: Fabricated, filled: MemoryStore, tmp_path: Path) -> None:
    """Neither a manifest nor a segment whose hash is wrong, and nothing of it stays on the disk."""
    name = list(vault.segments)[1]
    for key in (segment_key(name), key_of(filled, 2)):
        filled.objects[key] = filled.objects[key][:-1] + bytes([filled.objects[key][-1] ^ 1])
    keyed = Keyed(tmp_path)
    assert len(verify(filled, read_share=1.0, keyed=keyed).problems) == 2
    assert (len(keyed.manifests), name in keyed.segments) == (2, False)
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_room_for_it(filled: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        verify(filled, read_share=1.0, keyed=Keyed(tmp_path / "file"))
