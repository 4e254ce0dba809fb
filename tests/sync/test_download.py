"""Fetching a snapshot: nothing but what its hashes name, however often it is interrupted."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest
from remotes.faults import BreakBody, ChangeBody, EndlessBody, Fail, FaultyStore, RandomFailures, cut, flip, instead
from remotes.memory_store import MemoryStore

from sync.fabricated import DEVICE, Fabricated
from vaultfs.errors import (
    FormatTooNewError,
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteError,
    RemoteUnreachableError,
    UsageError,
    VaultError,
    VaultLockedError,
)
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.storage import durable
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.sync import fetched_file
from vaultfs.sync.download import RemoteHead, StoppedError, SyncProgress, choose_head, fetch, fill, heads
from vaultfs.sync.fetched_file import part_path
from vaultfs.sync.remote_layout import HEADER_KEY, LARGEST_SEGMENT_BYTES, head_key, segment_key
from vaultfs.sync.upload import Target, sync

LOST = RemoteUnreachableError("the line is cut")
REQUESTS = 2 + 3
"""Of a fetch of snapshot 3: header, manifest, three segments."""


@pytest.fixture
def filled(vault: Fabricated, away: Target, store: MemoryStore) -> MemoryStore:
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    store.requests.clear()
    return store


@pytest.fixture
def faulty(filled: MemoryStore) -> FaultyStore:
    return FaultyStore(filled)


@pytest.fixture
def head(filled: MemoryStore) -> RemoteHead:
    return choose_head(heads(filled), None)


@pytest.fixture
def into(scratch: Path) -> VaultLayout:
    return VaultLayout(scratch / "restored")


def names_of(vault: Fabricated) -> list[SegmentName]:
    """What snapshot 3 needs."""
    names = list(vault.segments)
    return sorted([names[1], names[3], names[4]])


def require_fetched(vault: Fabricated, head: RemoteHead, into: VaultLayout) -> None:
    """Exactly the snapshot, with the right modes, and nothing else."""
    files = {path.relative_to(into.root).as_posix() for path in into.root.rglob("*") if path.is_file()}
    segments = {into.sealed_path(name).relative_to(into.root).as_posix() for name in names_of(vault)}
    manifest = into.manifest_path(head.seq, head.hash)
    assert files == {"vault.json", "lock", ".restoring", f"heads/{manifest.name}", *segments}
    assert into.header.read_bytes() == vault.layout.header.read_bytes()
    assert manifest.read_bytes() == vault.layout.manifest_path(head.seq, head.hash).read_bytes()
    for name in names_of(vault):
        path = into.sealed_path(name)
        assert path.read_bytes() == vault.segments[name]
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert into.open_segments.is_dir()
    for path in into.root.rglob("*"):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


def require_nothing_false(into: VaultLayout, head: RemoteHead) -> None:
    """Whatever has a segment's name is that segment, and no manifest promises more."""
    for name in into.sealed_names():
        assert blake3.blake3(into.sealed_path(name).read_bytes()).hexdigest() == name
    path = into.manifest_path(head.seq, head.hash)
    if path.exists():
        manifest, _ = Manifest.decode(path.read_bytes())
        assert {name for name, _ in manifest.segments} <= set(into.sealed_names())


# --- the plain way


def test_a_fetch(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    filled.requests.clear()
    manifest = fetch(filled, into, head)
    assert (manifest.seq, manifest.vault_id) == (3, vault.vault_id)
    require_fetched(vault, head, into)
    assert len(filled.requests) == REQUESTS
    assert all(operation == "get" for operation, _ in filled.requests)


def test_fetching_again_reads_no_segment(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    filled.requests.clear()
    fetch(filled, into, head)
    assert len(filled.requests) == 2
    require_fetched(vault, head, into)


def test_into_an_empty_directory(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    into.root.mkdir(mode=0o700)
    fetch(filled, into, head)
    require_fetched(vault, head, into)


def test_a_second_snapshot_beside_the_first(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    filled.requests.clear()
    fetch(filled, into, heads(filled)[0])
    assert sum(key.startswith("segments/") for operation, key in filled.requests if operation == "get") == 1
    assert len(list(into.heads.glob("*.manifest"))) == 2


def test_a_changed_header_there_replaces_the_old_one(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    vault.write_header(epoch=2)
    filled.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    fetch(filled, into, head)
    require_fetched(vault, head, into)


def test_progress(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    seen: list[SyncProgress] = []
    total = sum(len(vault.segments[name]) for name in names_of(vault))
    for _ in range(2):
        seen.clear()
        fetch(filled, into, head, progress=seen.append)
        assert seen[-1] == SyncProgress(total, total)
        into.sealed_path(names_of(vault)[0]).unlink()


# --- choosing


def test_heads_are_listed_newest_last(filled: MemoryStore, vault: Fabricated) -> None:
    filled.objects["heads/nonsense"] = b""
    filled.objects["heads/" + "a" * 64 + "/0000000000-" + "b" * 64] = b""
    found = heads(filled)
    assert [each.seq for each in found] == [1, 2, 3]
    assert {each.device for each in found} == {DEVICE.hex()}


HEADS = [RemoteHead("d" * 64, seq, digest * 64) for seq, digest in ((1, "a"), (2, "b"), (12, "c"))]


@pytest.mark.parametrize(
    ("which", "seq"), [(None, 12), ("1", 1), (" 12 ", 12), ("aaaa", 1), ("BBBB", 2), ("c" * 64, 12)]
)
def test_choosing(which: str | None, seq: int) -> None:
    assert choose_head(HEADS, which).seq == seq
    assert choose_head(HEADS[::-1], which).seq == seq


@pytest.mark.parametrize("which", ["", "3", "aaa", "dddd", "a" * 65, "01", "-1", "newest", "aaab"])
def test_choosing_what_is_not_there(which: str) -> None:
    with pytest.raises(UsageError, match="there is no snapshot"):
        choose_head(HEADS, which)


def test_choosing_among_none() -> None:
    with pytest.raises(UsageError, match="no snapshot"):
        choose_head([], None)


def test_choosing_among_two() -> None:
    twins = [*HEADS, RemoteHead("e" * 64, 12, "aaaa" + "c" * 60)]
    for which in (None, "12", "aaaa"):
        with pytest.raises(UsageError):
            choose_head(twins, which)
    assert choose_head(twins, "aaaac").device == "e" * 64


# --- places that will not do


@pytest.mark.parametrize("name", ["metadata.db", "something", "heads/HEAD", ".hidden", "segments.bak"])
def test_a_directory_that_holds_something(filled: MemoryStore, head: RemoteHead, into: VaultLayout, name: str) -> None:
    path = into.root / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    before = sorted(into.root.rglob("*"))
    with pytest.raises(UsageError):
        fetch(filled, into, head)
    assert sorted(into.root.rglob("*")) == before
    assert path.read_bytes() == b"precious"


def test_what_an_interrupted_restore_has_left_is_gone_on_with(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    for name in ("metadata.db", "metadata.db-wal", ".metadata.db.restored"):
        (into.root / name).write_bytes(b"half")
    fetch(filled, into, head)  # `restoring.complete` makes them anew
    into.restoring.unlink()
    with pytest.raises(UsageError, match="holds a vault already"):
        fetch(filled, into, head)


def test_metadata_only_and_the_rest_later(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head, with_segments=False)
    assert not list(into.segments.glob("??/*"))
    fill(filled, into)
    require_fetched(vault, head, into)
    before = sorted(into.root.rglob("*"))
    fill(filled, into)
    assert sorted(into.root.rglob("*")) == before


def test_there_is_nothing_to_fill_without_a_snapshot(filled: MemoryStore, into: VaultLayout) -> None:
    into.create_directories()
    with pytest.raises(UsageError, match="no snapshot"):
        fill(filled, into)


def test_a_file_in_its_place(filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    into.root.write_bytes(b"precious")
    with pytest.raises(UsageError):
        fetch(filled, into, head)


@pytest.mark.parametrize("seed", [2, None])
def test_another_vaults_directory(
    filled: MemoryStore, head: RemoteHead, into: VaultLayout, scratch: Path, seed: int | None
) -> None:
    if seed is None:
        into.root.mkdir()
        into.header.write_bytes(b"{}")
    else:
        Fabricated(into.root, seed)
    with pytest.raises(UsageError, match="another vault"):
        fetch(filled, into, head)


def test_two_fetches_at_once(filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    into.create_directories()
    with VaultLock.acquire(into, purpose="test"), pytest.raises(VaultLockedError):
        fetch(filled, into, head)


def test_a_remote_without_a_vault(head: RemoteHead, into: VaultLayout) -> None:
    with pytest.raises(UsageError, match="holds no vault"):
        fetch(MemoryStore("memory:empty"), into, head)
    assert not into.root.exists()


# --- interrupted


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


# --- a remote that lies


LIES: dict[str, tuple[Callable[[bytes], bytes], type[VaultError]]] = {
    "flipped": (flip(3), IntegrityError),
    "cut": (cut(), IntegrityError),
    "empty": (cut(10**9), IntegrityError),
    "longer": (lambda data: data + b"x", IntegrityError),
    "another": (instead(b"another"), IntegrityError),
    "html": (instead(b"<html>please log in</html>"), IntegrityError),
}


@pytest.mark.parametrize("what", ["segments/", "heads/"])
@pytest.mark.parametrize("lie", LIES)
def test_wrong_bodies(
    vault: Fabricated, faulty: FaultyStore, head: RemoteHead, into: VaultLayout, lie: str, what: str
) -> None:
    change, error = LIES[lie]
    faulty.add(ChangeBody(change, what))
    with pytest.raises(error) as caught:
        fetch(faulty, into, head)
    assert what in str(caught.value)
    assert "memory:one" in str(caught.value)
    if what == "segments/":
        assert ("ended after" in str(caught.value)) == (lie in {"cut", "empty", "another", "html"})
    require_nothing_false(into, head)
    assert not into.manifest_path(head.seq, head.hash).exists()
    fetch(faulty, into, head)
    require_fetched(vault, head, into)


@pytest.mark.parametrize("what", ["segments/", "heads/", "vault.json"])
def test_bodies_without_end(
    vault: Fabricated,
    faulty: FaultyStore,
    head: RemoteHead,
    into: VaultLayout,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vaultfs.sync.remote_objects.MAX_MANIFEST_BYTES", 5 << 20)
    faulty.add(EndlessBody(what))
    with pytest.raises(IntegrityError):
        fetch(faulty, into, head)
    if into.root.exists():
        assert sum(path.stat().st_size for path in into.root.rglob("*") if path.is_file()) < 1 << 20
    fetch(faulty, into, head)
    require_fetched(vault, head, into)


def test_two_segments_exchanged(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    one, two, _ = (segment_key(name) for name in names_of(vault))
    filled.objects[one], filled.objects[two] = filled.objects[two], filled.objects[one]
    with pytest.raises(IntegrityError):
        fetch(filled, into, head)
    require_nothing_false(into, head)


@pytest.mark.parametrize("what", ["segments/", "heads/"])
def test_a_missing_object(filled: MemoryStore, head: RemoteHead, into: VaultLayout, what: str) -> None:
    for key in [key for key in filled.objects if key.startswith(what)]:
        del filled.objects[key]
    with pytest.raises(ObjectMissingError):
        fetch(filled, into, head)
    require_nothing_false(into, head)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"x" * (2 << 20), b"<html>"])
def test_a_header_that_is_none(filled: MemoryStore, head: RemoteHead, into: VaultLayout, content: bytes) -> None:
    filled.objects[HEADER_KEY] = content
    with pytest.raises(IntegrityError, match=r"vault\.json on memory:one"):
        fetch(filled, into, head)
    assert not into.root.exists()


def test_a_newer_format(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    vault.write_header(format=7)
    filled.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    with pytest.raises(FormatTooNewError):
        fetch(filled, into, head)


def test_a_header_of_another_vault(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    vault.write_header(vault_id="ab" * 16)
    filled.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    with pytest.raises(IntegrityError, match="another vault"):
        fetch(filled, into, head)


def planted(store: MemoryStore, manifest: Manifest, **changes: str | int) -> RemoteHead:
    data = manifest.encode(bytes(64))
    head = RemoteHead(
        str(changes.get("device", manifest.device.hex())), int(changes.get("seq", manifest.seq)), manifest_hash(data)
    )
    store.objects[head_key(head)] = data
    return head


def test_a_name_that_says_another_device_or_number(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    manifest, _ = Manifest.decode(filled.objects[head_key(head)])
    for changes in ({"device": "ab" * 32}, {"seq": 4}):
        with pytest.raises(IntegrityError, match="another snapshot's or device's"):
            fetch(filled, into, planted(filled, manifest, **changes))
    assert not into.root.exists()


def test_a_manifest_that_would_fill_the_disk(vault: Fabricated, filled: MemoryStore, into: VaultLayout) -> None:
    name = SegmentName("ab" * 32)
    manifest = Manifest(
        vault.vault_id, DEVICE, SnapshotSeq(9), 0, None, ((name, LARGEST_SEGMENT_BYTES + 1),), b"private"
    )
    with pytest.raises(IntegrityError, match="larger than any"):
        fetch(filled, into, planted(filled, manifest))
    assert not into.root.exists()


# --- the disk here


def test_a_full_disk(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write may be the one for which there is no room; what came before is kept."""
    real = durable.write_all
    for allowed in range(10):
        count = 0

        def full(descriptor: int, data: bytes) -> None:
            nonlocal count
            count += 1
            if count > allowed:  # noqa: B023  # called within the loop
                real(descriptor, data[:7])
                raise OSError(28, "No space left on device")
            real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(fetched_file, "write_all", full)
            try:
                fetch(filled, into, head, connections=1)
            except NoSpaceError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                require_nothing_false(into, head)
                assert len(list(into.segments.rglob(".*.part"))) == 1
            else:
                break
    else:
        pytest.fail("never done")
    require_fetched(vault, head, into)


@pytest.mark.parametrize("call", ["fdatasync", "rename", "fsync", "mkdir"])
def test_a_disk_that_fails(
    vault: Fabricated,
    filled: MemoryStore,
    head: RemoteHead,
    into: VaultLayout,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    real = getattr(os, call)
    done = False
    for number in range(30):
        count = 0

        def failing(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == number + 1:  # noqa: B023  # called within the loop
                raise OSError(5, "Input/output error")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                fetch(filled, into, head, connections=1)
            except VaultError:
                require_nothing_false(into, head)
            else:
                done = True
                break
    assert done
    require_fetched(vault, head, into)


def test_everything_is_durable_before_the_manifest(
    filled: MemoryStore, head: RemoteHead, into: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of system calls: data, names, and only then the manifest."""
    calls: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fdatasync", "fsync", "rename")}

    def path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def fdatasync(descriptor: int) -> None:
        calls.append(("data", path_of(descriptor)))
        real["fdatasync"](descriptor)

    def fsync(descriptor: int) -> None:
        calls.append(("sync", path_of(descriptor)))
        real["fsync"](descriptor)

    def rename(old: Path, new: Path) -> None:
        calls.append(("name", str(new)))
        real["rename"](old, new)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    manifest = fetch(filled, into, head)
    done = calls.index(("name", str(into.manifest_path(head.seq, head.hash))))
    for name, _ in manifest.segments:
        path = into.sealed_path(name)
        data = calls.index(("data", str(part_path(into, name))))
        named = calls.index(("name", str(path)))
        assert data < named
        assert any(call == ("sync", str(path.parent)) for call in calls[named:done])
    assert ("sync", str(into.segments)) in calls[:done]
    assert ("sync", str(into.heads)) in calls[done:]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "hardlink"])
def test_something_in_the_place_of_a_part(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout, scratch: Path, kind: str
) -> None:
    into.create_directories()
    part = part_path(into, names_of(vault)[0])
    part.parent.mkdir(mode=0o700)
    precious = scratch / "precious"
    precious.write_bytes(b"precious")
    if kind == "symlink":
        part.symlink_to(precious)
    elif kind == "fifo":
        os.mkfifo(part)
    else:
        part.hardlink_to(precious)
    with pytest.raises(VaultError):
        fetch(filled, into, head)
    assert precious.read_bytes() == b"precious"
    part.unlink()
    fetch(filled, into, head)
    require_fetched(vault, head, into)


def test_a_store_whose_bodies_are_too_short_says_so(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    """A store checks lengths itself; its error is passed on."""
    name = names_of(vault)[0]
    part = part_path(into, name)
    into.create_directories()
    part.parent.mkdir(mode=0o700)
    part.write_bytes(vault.segments[name][:5])
    filled.objects[segment_key(name)] = vault.segments[name][:9]
    with pytest.raises((RemoteError, IntegrityError)):
        fetch(filled, into, head)
    shutil.rmtree(into.root)
