"""Signals before a mount is ready, and the end of a mount while requests of killed programs are under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from pyfuse3 import FileHandleT

from vaultfs.fuse import kernel_mount
from vaultfs.fuse.durability import Durability
from vaultfs.fuse.operations import VaultOperations
from vaultfs.fuse.read_around import ReadAround
from vaultfs.fuse.session import MountRequest, Tricks, serve
from vaultfs.vault.filesystem import FileSystem

STEPS = 500
"""Of 10 ms."""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


class Slow(VaultOperations):
    """Reads are answered when they may be."""

    def __init__(self, fs: FileSystem) -> None:
        super().__init__(fs, Durability(fs), ReadAround(is_on=False))
        self.began = trio.Event()
        self.go_on = trio.Event()

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self.began.set()
        await self.go_on.wait()
        return await super().read(fh, off, size)


@pytest.mark.parametrize("tricks", [Tricks(), Tricks(polling=False)], ids=["polling", "plain"])
async def test_who_waits_for_nobody_is_told_that_the_session_is_over(
    fs: FileSystem, folder: Path, tricks: Tricks
) -> None:
    """A program was killed while it read; the kernel unmounts, and the answer is not wanted any more."""
    operations = Slow(fs)
    ready, over = trio.Event(), trio.Event()
    calls: list[None] = []

    def on_over() -> None:
        calls.append(None)
        over.set()

    request = MountRequest("a vault", folder, tricks=tricks)
    session = partial(
        serve, operations, request, on_ready=ready.set, stop=trio.Event(), handle_signals=False, on_over=on_over
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session)
        await ready.wait()
        reader = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1]).read(9)", folder / "file"])  # noqa: ASYNC220  # as fork(2)
        await operations.began.wait()
        assert not calls
        reader.kill()
        await trio.to_thread.run_sync(reader.wait)
        for _ in range(STEPS):
            try:
                await trio.to_thread.run_sync(kernel_mount.unmount, folder)
                break
            except kernel_mount.MountBusyError:
                await trio.sleep(0.01)
        with trio.move_on_after(STEPS / 100):
            await over.wait()
        operations.go_on.set()
    assert len(calls) == 1


async def test_a_session_in_use_is_not_over(fs: FileSystem, folder: Path) -> None:
    """Workers come and go with the requests."""
    operations = Slow(fs)
    operations.go_on.set()
    ready, stop = trio.Event(), trio.Event()
    calls: list[None] = []
    request = MountRequest("a vault", folder)
    session = partial(
        serve,
        operations,
        request,
        on_ready=ready.set,
        stop=stop,
        handle_signals=False,
        on_over=lambda: calls.append(None),
    )
    limiter = trio.CapacityLimiter(20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session)
        await ready.wait()
        for _ in range(5):
            async with trio.open_nursery() as users:
                for number in range(20):
                    users.start_soon(partial(trio.to_thread.run_sync, fill, folder / f"{number}", limiter=limiter))
        assert not calls
        stop.set()
    assert len(calls) == 1


def fill(path: Path) -> None:
    """Ask for something that takes a while, and something that does not."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"text")
    os.fsync(descriptor)
    os.close(descriptor)


async def test_a_signal_before_the_mount_is_ready_unmounts(
    fs: FileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it would end the process, and leave a mount whose daemon is gone."""
    mount = kernel_mount.mount

    def mount_and_signal(mountpoint: Path, options: kernel_mount.KernelOptions) -> int:
        descriptor = mount(mountpoint, options)
        os.kill(os.getpid(), signal.SIGINT)
        return descriptor

    monkeypatch.setattr(kernel_mount, "mount", mount_and_signal)
    operations = VaultOperations(fs, Durability(fs), ReadAround(is_on=False))
    await serve(operations, MountRequest("a vault", folder), on_ready=lambda: None)
    assert not await trio.to_thread.run_sync(folder.is_mount)
