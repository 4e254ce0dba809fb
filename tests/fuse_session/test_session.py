from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio

from vaultfs.errors import MountError, UsageError
from vaultfs.fuse import polling, session
from vaultfs.fuse.handshake import Negotiated
from vaultfs.fuse.session import READ_AHEAD_KIB, MountRequest, Tricks, serve

from .conftest import NOBODY, Host, mounted, mounts_on
from .memory_fs import MemoryOperations

pytestmark = pytest.mark.fuse

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PLAIN = Tricks(**dict.fromkeys((each.name for each in fields(Tricks)), False))


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    return await trio.to_thread.run_sync(function, *arguments)


def write_pieces(path: Path, pieces: int = 100) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for _ in range(pieces):
        os.write(descriptor, b"x" * 100)
    os.close(descriptor)


@pytest.mark.parametrize(
    "tricks",
    [
        Tricks(),
        PLAIN,
        Tricks(hand_mount=False),
        Tricks(polling=False),
        Tricks(killpriv_v2=False, cache_symlinks=False),
        Tricks(killpriv_v2=False, cache_symlinks=False, polling=False),
    ],
    ids=["all", "plain", "pyfuse3 mounts", "no polling", "no handshake", "no handshake, no polling"],
)
async def test_folder_works_with_any_tricks(mountpoint: Path, tricks: Tricks) -> None:
    heard: list[Negotiated] = []
    async with mounted(MemoryOperations(), mountpoint, tricks=tricks, on_negotiated=heard.append):
        ((source, kind, options),) = mounts_on(mountpoint)
        assert (source, kind) == ("the vault, mine", "fuse.vaultfs")
        assert {"default_permissions", "nosuid", "nodev"} <= set(options.split(","))
        await in_thread((mountpoint / "file").write_bytes, b"text" * 100_000)
        await in_thread(os.mkdir, mountpoint / "directory")
        assert sorted(await in_thread(os.listdir, mountpoint)) == ["directory", "file"]
        assert await in_thread((mountpoint / "file").read_bytes) == b"text" * 100_000
        assert len(heard) == 1
    assert mounts_on(mountpoint) == []
    assert os.listdir(mountpoint) == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "tricks", [Tricks(), Tricks(polling=False), Tricks(hand_mount=False)], ids=["all", "no polling", "pyfuse3 mounts"]
)
async def test_a_request_that_is_taken_back_holds_nobody_up(
    mountpoint: Path, tricks: Tricks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program is killed after the device has become readable, and before the daemon reads."""
    victims: list[subprocess.Popen[bytes]] = []
    kills, killed = trio.open_memory_channel[None](10)

    class Late(polling.PyfuseTrio):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._really_wait = self._wait
            self._wait = self._wait_and_kill

        async def _wait_and_kill(self, descriptor: int) -> None:
            await self._really_wait(descriptor)
            if victims:
                victim = victims.pop()
                victim.kill()
                assert victim.wait() == -signal.SIGKILL
                kills.send_nowait(None)

    monkeypatch.setattr(session, "PyfuseTrio", Late)
    operations = MemoryOperations()
    async with mounted(operations, mountpoint, tricks=tricks):
        for number in range(3):
            before = operations.counts["lookup"]
            victims.append(subprocess.Popen(["stat", mountpoint / f"asked for {number}"]))  # noqa: ASYNC220  # as fork(2)
            await killed.receive()
            await trio.sleep(0.05)
            assert operations.counts["lookup"] == before
        await in_thread((mountpoint / "file").write_bytes, b"text")
        assert await in_thread(os.listdir, mountpoint) == ["file"]
    assert mounts_on(mountpoint) == []


async def test_security_capability_is_asked_once_with_killpriv_v2(mountpoint: Path) -> None:
    operations = MemoryOperations()
    heard: list[Negotiated] = []
    async with mounted(operations, mountpoint, on_negotiated=heard.append):
        await in_thread(write_pieces, mountpoint / "file")
    if not heard[0].handle_killpriv_v2:
        pytest.skip("this kernel does not offer FUSE_HANDLE_KILLPRIV_V2")
    assert operations.counts["getxattr security.capability"] <= 2


async def test_security_capability_is_asked_at_each_write_without(mountpoint: Path) -> None:
    operations = MemoryOperations()
    async with mounted(operations, mountpoint, tricks=Tricks(killpriv_v2=False)):
        await in_thread(write_pieces, mountpoint / "file")
    assert operations.counts["getxattr security.capability"] >= 100


@pytest.mark.parametrize("is_cached", [True, False])
async def test_symlink_targets_are_cached(mountpoint: Path, is_cached: bool) -> None:
    operations = MemoryOperations()
    heard: list[Negotiated] = []
    async with mounted(operations, mountpoint, tricks=Tricks(cache_symlinks=is_cached), on_negotiated=heard.append):
        await in_thread(os.symlink, "target", mountpoint / "link")
        for _ in range(5):
            assert await in_thread(os.readlink, mountpoint / "link") == "target"
    assert heard[0].cache_symlinks == is_cached
    assert operations.counts["readlink"] == (1 if is_cached else 5)


@pytest.mark.parametrize("dont_mask", [True, False])
async def test_umask_is_left_to_the_operations_with_dont_mask(mountpoint: Path, dont_mask: bool) -> None:
    operations = MemoryOperations()
    async with mounted(operations, mountpoint, tricks=Tricks(dont_mask=dont_mask)):
        made = await trio.run_process(["sh", "-c", f"umask 027; mkdir '{mountpoint}/directory'"])
        assert made.returncode == 0
    (directory,) = (node for node in operations.nodes.values() if node.number != 1)
    assert directory.mode & 0o777 == (0o777 if dont_mask else 0o750)
    assert operations.umasks == [0o027]


async def test_read_only(mountpoint: Path) -> None:
    async with mounted(MemoryOperations(), mountpoint, read_only=True):
        with pytest.raises(OSError, match="Read-only"):
            await in_thread(os.mkdir, mountpoint / "directory")


@needs_root
async def test_read_ahead_is_raised_by_root(mountpoint: Path) -> None:
    async with mounted(MemoryOperations(), mountpoint):
        number = (await in_thread(os.stat, mountpoint)).st_dev
        setting = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb")
        assert int(await in_thread(setting.read_text)) == READ_AHEAD_KIB


async def test_loop_runs_other_tasks_under_load(mountpoint: Path) -> None:
    operations = MemoryOperations()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.002)
            ticks += 1

    script = f"import os\nfor _ in range(20000): os.access({str(mountpoint / 'missing')!r} + str(_), 0)"
    async with mounted(operations, mountpoint), trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await trio.run_process([sys.executable, "-c", script])
        nursery.cancel_scope.cancel()
    assert operations.counts["lookup"] >= 20_000
    assert ticks >= 20  # 20,000 requests take some 400 ms


async def test_slow_requests_overlap_and_do_not_hold_up_quick_ones(mountpoint: Path) -> None:
    class SlowOperations(MemoryOperations):
        async def read(self, *arguments: Any) -> bytes:
            """Wait until all have begun and the quick requests are done."""
            data = await super().read(*arguments)
            if self.counts["read"] == 8:
                all_reading.set()
            await quick_done.wait()
            return data

    all_reading, quick_done = trio.Event(), trio.Event()
    operations = SlowOperations()

    async def look() -> None:
        await all_reading.wait()
        for number in range(200):
            await in_thread(os.path.exists, mountpoint / f"missing{number}")
        quick_done.set()

    for number in range(8):
        operations.add_file(f"file{number}".encode(), b"x" * 10)
    async with mounted(operations, mountpoint), trio.open_nursery() as nursery:
        nursery.start_soon(look)
        for number in range(8):
            nursery.start_soon(in_thread, (mountpoint / f"file{number}").read_bytes)
    assert quick_done.is_set()


async def test_cancellation_unmounts(mountpoint: Path) -> None:
    operations = MemoryOperations()
    ready = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await serve(operations, MountRequest("v", mountpoint), on_ready=ready.set, handle_signals=False)

            nursery.start_soon(run)
            await ready.wait()
            await in_thread(write_pieces, mountpoint / "file")
            scope.cancel()
    assert scope.cancelled_caught
    assert mounts_on(mountpoint) == []
    assert operations.nodes[2].size == 10_000  # the kernel's dirty pages have arrived


async def test_crash_of_the_operations_leaves_no_mount(mountpoint: Path) -> None:
    class Broken(MemoryOperations):
        async def mkdir(self, *_: object) -> Any:
            raise ZeroDivisionError

    async def break_it() -> None:
        async with mounted(Broken(), mountpoint):
            with contextlib.suppress(OSError):
                await in_thread(os.mkdir, mountpoint / "directory")
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await break_it()
    assert caught.group_contains(ZeroDivisionError)
    assert mounts_on(mountpoint) == []


@pytest.mark.parametrize("tricks", [Tricks(), Tricks(killpriv_v2=False, cache_symlinks=False)])
async def test_failed_start_leaves_no_mount_and_no_descriptor(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, tricks: Tricks
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("fuse_session_new() failed")

    monkeypatch.setattr(pyfuse3, "init", fail)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError, match="fuse_session_new"):
        await serve(MemoryOperations(), MountRequest("v", mountpoint, tricks=tricks), on_ready=lambda: None)
    assert mounts_on(mountpoint) == []
    assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_mount_error_leaves_nothing(tmp_path: Path) -> None:
    for tricks in (Tricks(), Tricks(hand_mount=False)):
        with pytest.raises(MountError, match="does not exist"):
            await serve(
                MemoryOperations(), MountRequest("v", tmp_path / "missing", tricks=tricks), on_ready=lambda: None
            )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_unmounts(mountpoint: Path, start_host: Callable[..., Host], number: signal.Signals) -> None:
    host = start_host()
    assert host.first == {"ready": True}
    write_pieces(mountpoint / "file")
    host.process.send_signal(number)
    assert host.ended()["write"] >= 1
    assert mounts_on(mountpoint) == []


def test_unmount_by_others_ends_the_session(mountpoint: Path, start_host: Callable[..., Host]) -> None:
    host = start_host()
    subprocess.run(["umount", mountpoint], check=True)
    host.ended()


def test_busy_folder_is_detached_and_its_open_file_keeps_working(
    mountpoint: Path, start_host: Callable[..., Host]
) -> None:
    host = start_host(grace_s=1.0)
    descriptor = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    host.process.send_signal(signal.SIGTERM)
    while mounts_on(mountpoint):
        time.sleep(0.01)
    os.write(descriptor, b"still here")
    os.fsync(descriptor)
    os.close(descriptor)
    assert host.ended()["fsync"] == 1


def test_second_signal_does_not_wait_for_programs(mountpoint: Path, start_host: Callable[..., Host]) -> None:
    host = start_host(grace_s=1000.0)
    descriptor = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    host.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    host.process.send_signal(signal.SIGTERM)
    host.ended()
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)


@pytest.mark.parametrize("tricks", [{}, {"hand_mount": False}], ids=["by hand", "pyfuse3 mounts"])
@needs_root
def test_ordinary_user_mounts(user_mountpoint: Path, start_host: Callable[..., Host], tricks: dict[str, bool]) -> None:
    host = start_host(user=NOBODY, source="my, vault", tricks=tricks)
    if "fusermount3 is not" in host.first.get("error", ""):
        pytest.skip(host.first["error"])
    assert host.first == {"ready": True}
    ((source, kind, options),) = mounts_on(user_mountpoint, host.process.pid)
    assert (source, kind) == ("my, vault", "fuse.vaultfs")
    assert f"user_id={NOBODY}" in options
    host.run_as_user("sh", "-c", f"cd '{user_mountpoint}' && seq 1000 > file && sync file")
    host.run_as_user("fusermount3", "-u", user_mountpoint)
    assert host.ended()["write"] >= 1


@needs_root
def test_sigterm_unmounts_for_an_ordinary_user(user_mountpoint: Path, start_host: Callable[..., Host]) -> None:
    host = start_host(user=NOBODY)
    if "fusermount3 is not" in host.first.get("error", ""):
        pytest.skip(host.first["error"])
    assert len(mounts_on(user_mountpoint, host.process.pid)) == 1
    host.process.send_signal(signal.SIGTERM)
    host.ended()


@needs_root
def test_ordinary_user_needs_user_allow_other(user_mountpoint: Path, start_host: Callable[..., Host]) -> None:
    configuration = Path("/etc/fuse.conf")
    if configuration.exists() and "\nuser_allow_other" in "\n" + configuration.read_text():
        pytest.skip("user_allow_other is set here")
    host = start_host(user=NOBODY, allow_other=True)
    if "fusermount3 is not" in host.first.get("error", ""):
        pytest.skip(host.first["error"])
    assert host.first["kind"] == "MountError"
    assert "user_allow_other" in host.first["error"]
    assert host.wait() == 14


@needs_root
def test_ordinary_user_may_not_mount_on_a_directory_of_another(
    mountpoint: Path, user_mountpoint: Path, start_host: Callable[..., Host]
) -> None:
    os.chown(mountpoint, 0, 0)
    host = start_host(user=NOBODY)
    assert host.first["kind"] == "MountError"
    assert "no permission to mount" in host.first["error"] or "not installed" in host.first["error"]
    assert host.wait() == 14


def test_idle_daemon_uses_no_processor_time(mountpoint: Path, start_host: Callable[..., Host]) -> None:
    def processor_ticks() -> int:
        fields = Path(f"/proc/{host.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    host = start_host()
    for number in range(100):
        os.path.exists(mountpoint / str(number))
    before = processor_ticks()
    time.sleep(2)
    assert processor_ticks() - before <= 2  # of 200
    host.process.send_signal(signal.SIGTERM)
    host.ended()


def test_tricks_from_the_environment() -> None:
    assert Tricks().overridden({}) == Tricks()
    assert Tricks().overridden({"VAULTFS_TRICKS": "-polling, -killpriv_v2"}) == Tricks(polling=False, killpriv_v2=False)
    assert Tricks().overridden({"VAULTFS_TRICKS": "none"}) == PLAIN
    assert Tricks().overridden({"VAULTFS_TRICKS": "none polling +dont_mask"}) == replace(
        PLAIN, dont_mask=True, polling=True
    )
    with pytest.raises(UsageError, match="'pollling'"):
        Tricks().overridden({"VAULTFS_TRICKS": "-pollling"})
