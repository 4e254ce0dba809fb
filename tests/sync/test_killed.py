"""SIGKILL in the middle of a sync or a fetch, in processes of their own, with a directory as the remote."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from remotes.faults import FaultyStore
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads, require_same, target
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.storage import durable
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync import fetched_file, ledger
from vaultfs.sync.download import choose_head, fetch, heads
from vaultfs.sync.upload import Target, sync
from vaultfs.sync.verify import verify


def killed(action: Callable[[], object]) -> bool:
    """Do something in another process; whether it was killed.  Threads are made there only, after the fork."""
    pid = os.fork()
    if not pid:
        try:
            action()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status in {0, signal.SIGKILL}, status
    return status != 0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """Kills the process at one call of a function, in the middle of it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def write_all(self, descriptor: int, data: bytes) -> None:
        self.left -= 1
        if self.left == 0:
            durable.write_all(descriptor, data[: len(data) // 2])
            kill()
        durable.write_all(descriptor, data)

    def request(self, _operation: str, _key: str) -> None:
        self.left -= 1
        if self.left == 0:
            kill()

    def fchmod(self, descriptor: int, mode: int) -> None:
        self.left -= 1
        if self.left == 0:
            kill()
        os.chmod(descriptor, mode)

    def rename(self, old: Path, new: Path) -> None:
        self.left -= 1
        if self.left == 0:
            kill()
        Path(old).rename(new)


@pytest.fixture
def disk(scratch: Path) -> DirectoryStore:
    (scratch / "disk").mkdir()
    return DirectoryStore(scratch / "disk")


def in_memory(disk: DirectoryStore) -> MemoryStore:
    """The same objects, to be looked at."""
    store = MemoryStore(disk.name)
    store.objects = {info.key: b"".join(disk.get(info.key)) for info in disk.list("")}
    return store


def synced(vault: Fabricated, away: Target, store: FaultyStore | DirectoryStore) -> None:
    [outcome] = sync(vault.layout, [Target("away", store, away.ledger)])
    assert outcome.is_up_to_date, outcome.error


def test_a_sync_killed_at_any_request(vault: Fabricated, disk: DirectoryStore, scratch: Path) -> None:
    for number in range(1, 100):
        away = target(vault, disk, scratch / f"state{number}")
        for path in sorted((scratch / "disk").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        dying = FaultyStore(disk)
        dying.before = Dying(number).request
        if not killed(lambda: synced(vault, away, dying)):  # noqa: B023  # called at once
            break
        require_complete_heads(in_memory(disk))
        synced(vault, away, disk)
        assert verify(disk, read_share=1.0).problems == []
    assert number > 15
    require_same(vault, in_memory(disk), scratch / "back")


def test_a_sync_killed_while_it_writes_its_ledger(
    vault: Fabricated, disk: DirectoryStore, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = target(vault, disk, scratch / "state")
    puts: list[str] = []
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "write_all", Dying(1 + number % 3).write_all)
            if not killed(lambda: synced(vault, away, disk)):
                break
        require_complete_heads(in_memory(disk))
    assert number > 2
    counting = FaultyStore(disk)
    synced(vault, away, counting)
    puts += [key for operation, key in counting.requests if operation == "put"]
    assert puts == []
    require_same(vault, in_memory(disk), scratch / "back")


@pytest.mark.parametrize("call", ["write_all", "rename", "fchmod", "request"])
def test_a_fetch_killed_anywhere(
    vault: Fabricated, disk: DirectoryStore, scratch: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    synced(vault, target(vault, disk, scratch / "state"), disk)
    head = choose_head(heads(disk), None)
    for number in range(1, 100):
        into = VaultLayout(scratch / f"restored{number}")
        dying = FaultyStore(disk)
        with monkeypatch.context() as patch:
            if call == "write_all":
                patch.setattr(fetched_file, "write_all", Dying(number).write_all)
            elif call == "rename":
                patch.setattr(os, "rename", Dying(number).rename)
            elif call == "fchmod":
                patch.setattr(os, "fchmod", Dying(number).fchmod)
            else:
                dying.before = Dying(number).request
            if not killed(lambda: fetch(dying, into, head)):  # noqa: B023  # called at once
                break
        assert not into.manifest_path(head.seq, head.hash).exists()
        counting = FaultyStore(disk)
        have = len(list(into.sealed_names()))
        fetch(counting, into, head)
        assert counting.count("get", "segments/") <= 3 - have
        assert len(list(into.sealed_names())) == 3
        assert not list(into.root.rglob(".*.part"))
        assert {path.stat().st_mode & 0o777 for path in into.segments.rglob("*.seg")} == {0o400}
    assert number > 3
