from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, target
from vaultfs.remotes.limiting import TokenBucket
from vaultfs.storage.lock import VaultLock
from vaultfs.sync import courtesy
from vaultfs.sync.courtesy import BUSY_SHARE, FREE_BYTES, LOOK_S, Courtesy
from vaultfs.sync.upload import sync


class Bucket(TokenBucket):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.taken: list[int] = []

    def take(self, count: int) -> None:
        self.taken.append(count)


class Daemon:
    """A process that uses as much processor time as a test says."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.used_s = 5.0
        self.asked = 0
        self.bucket = Bucket()
        self.courtesy = Courtesy(77, used_s=self.used, clock=lambda: self.now_s, bucket=self.bucket)
        self.courtesy.wait(FREE_BYTES)

    def used(self, pid: int) -> float:
        assert pid == 77
        self.asked += 1
        return self.used_s

    def pass_by(self, seconds: float, share: float) -> None:
        self.now_s += seconds
        self.used_s += share * seconds

    def is_waited_for(self) -> bool:
        self.bucket.taken.clear()
        self.courtesy.wait(7)
        return self.bucket.taken == [7]


def test_only_a_busy_daemon_is_waited_for() -> None:
    daemon = Daemon()
    assert not daemon.is_waited_for()
    daemon.pass_by(LOOK_S * 1.01, BUSY_SHARE * 0.9)
    assert not daemon.is_waited_for()
    daemon.pass_by(LOOK_S * 1.01, BUSY_SHARE * 1.1)
    assert daemon.is_waited_for()
    daemon.pass_by(LOOK_S * 1.01, 0.0)
    assert not daemon.is_waited_for()
    daemon.pass_by(100.0, BUSY_SHARE * 1.1)
    assert daemon.is_waited_for()


def test_it_does_not_look_at_each_piece() -> None:
    daemon = Daemon()
    for _ in range(100):
        daemon.pass_by(LOOK_S / 49, 1.0)
        daemon.courtesy.wait(1)
    assert daemon.asked == 3  # at the beginning, and twice


def test_what_was_used_before_does_not_count() -> None:
    daemon = Daemon()
    daemon.used_s = 5.0
    daemon.pass_by(LOOK_S * 1.01, 0.0)
    assert not daemon.is_waited_for()


def test_a_daemon_that_ends_is_not_busy() -> None:
    daemon = Daemon()
    daemon.pass_by(LOOK_S * 1.01, 1.0)
    assert daemon.is_waited_for()
    daemon.now_s += LOOK_S * 1.01
    daemon.used_s = 0.0
    assert not daemon.is_waited_for()


def test_a_small_sync_is_not_slowed() -> None:
    daemon = Daemon()
    courtesy = Courtesy(77, used_s=daemon.used, clock=lambda: daemon.now_s, bucket=daemon.bucket)
    for _ in range(4):
        daemon.pass_by(LOOK_S * 1.01, 1.0)
        courtesy.wait(FREE_BYTES // 4)
    assert daemon.bucket.taken == []
    daemon.pass_by(LOOK_S * 1.01, 1.0)
    courtesy.wait(1)
    assert daemon.bucket.taken == [1]


def test_without_a_daemon_nobody_looks() -> None:
    bucket = Bucket()
    none = Courtesy(0, used_s=lambda _pid: pytest.fail("looked"), bucket=bucket)
    none.wait(1)
    assert bucket.taken == []


def test_a_real_process() -> None:
    bucket = Bucket()
    now_s = time.monotonic()
    own = Courtesy(os.getpid(), clock=lambda: now_s, bucket=bucket)
    own.wait(FREE_BYTES)
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    now_s += 0.2
    own.wait(1)
    assert bucket.taken == [1]
    gone = Courtesy(2**22 + 1, clock=lambda: now_s, bucket=bucket)  # above the largest pid_max of Linux
    gone.wait(FREE_BYTES)
    now_s += 0.2
    gone.wait(1)
    assert bucket.taken == [1]


def test_a_sync_is_slow_while_the_holder_of_the_vault_is_busy(
    vault: Fabricated, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = threading.Event()
    pids: list[int] = []

    class Watched(Courtesy):
        def __init__(self, pid: int) -> None:
            pids.append(pid)
            super().__init__(pid)

        def wait(self, count: int) -> None:
            assert count == 1 << 20
            waited.set()
            super().wait(count)

    monkeypatch.setattr("vaultfs.sync.upload.Courtesy", Watched)
    with VaultLock.acquire(vault.layout, purpose="mounted"):
        [outcome] = sync(vault.layout, [target(vault, MemoryStore(), scratch / "state")])
    assert outcome.is_up_to_date
    assert waited.is_set()
    [outcome] = sync(vault.layout, [target(vault, MemoryStore(), scratch / "state", "other")])
    assert outcome.is_up_to_date
    assert pids == [os.getpid(), 0]


def test_stat_with_brackets_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stat").write_text("77 (a) b) (c) S 1 1 1 0 -1 4194304 0 0 0 0 150 50 0 0 20 0 1 0 1 1 1\n")
    monkeypatch.setattr(courtesy, "Path", lambda _: tmp_path / "stat")
    assert courtesy._used_s(77) == 200 / os.sysconf("SC_CLK_TCK")
