from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from vaultfs.fuse.handshake import Negotiated
from vaultfs.fuse.session import MountRequest, Tricks, serve

from .memory_fs import MemoryOperations

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534


PRIVATE_DEVICE = """
node=$(mktemp -u /tmp/fuse-node-XXXXXX)
mknod -m 666 "$node" c 10 229 && mount --bind "$node" /dev/fuse && rm "$node" && exec "$@"
"""
"""fusermount3 opens /dev/fuse with the user's rights.  Where only root may open it, tests of ordinary users get a node
as udev makes it, in a mount namespace of their own."""


def mounts_on(mountpoint: Path, pid: int | str = "self") -> list[tuple[str, str, str]]:
    """Source, type and options of what a process sees mounted there, oldest first."""
    found = []
    for line in Path(f"/proc/{pid}/mounts").read_text(encoding="utf-8").splitlines():
        source, where, kind, options = line.split(" ")[:4]
        if where.encode().decode("unicode_escape") == str(mountpoint):
            found.append((source.encode().decode("unicode_escape"), kind, options))
    return found


class Host:
    """A running `tests.fuse_session.host`."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        own_device = ["unshare", "--mount", "sh", "-c", PRIVATE_DEVICE, "sh"] if "user" in wanted else []
        self.process = subprocess.Popen(
            [*own_device, sys.executable, "-m", "tests.fuse_session.host", json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        self.first = self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            pytest.fail(f"the host died: {errors}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def run_as_user(self, *command: str | Path) -> None:
        """Run a command as the mounting user in the namespace of the host."""
        namespace = ["nsenter", "--mount", f"--target={self.process.pid}"]
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        subprocess.run([*namespace, *user, *command], check=True)

    def counts(self) -> dict[str, int]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        counts: dict[str, int] = self.hear()["counts"]
        return counts

    def wait(self) -> int:
        code = self.process.wait(timeout=60)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    def ended(self) -> dict[str, int]:
        """Wait for the clean end and return the counts."""
        last = self.hear()
        assert last["ended"]
        assert self.wait() == 0
        counts: dict[str, int] = last["counts"]
        return counts


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse")
    where = tmp_path / "a mount,point"
    where.mkdir()
    yield where
    while mounts_on(where):
        subprocess.run(["umount", "-l", where], check=True)


@pytest.fixture
def user_mountpoint(mountpoint: Path) -> Path:
    if os.geteuid() == 0:
        os.chown(mountpoint, NOBODY, NOBODY)
        for parent in mountpoint.parents:
            if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
            if parent.name.startswith("pytest-of-"):
                break
    return mountpoint


@pytest.fixture
def start_host(mountpoint: Path) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def start(**wanted: Any) -> Host:
        hosts.append(Host({"mountpoint": str(mountpoint), **wanted}))
        return hosts[-1]

    yield start
    for host in hosts:
        if host.process.poll() is None:
            host.process.kill()
        host.wait()


@asynccontextmanager
async def mounted(
    operations: MemoryOperations,
    mountpoint: Path,
    *,
    tricks: Tricks | None = None,
    on_negotiated: Callable[[Negotiated], None] = lambda _: None,
    **rest: Any,
) -> AsyncIterator[None]:
    """Serve in this event loop; the folder must then be used from threads or other processes only."""
    ready, stop = trio.Event(), trio.Event()
    request = MountRequest("the vault, mine", mountpoint, tricks=tricks or Tricks(), **rest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                serve,
                operations,
                request,
                on_ready=ready.set,
                on_negotiated=on_negotiated,
                stop=stop,
                handle_signals=False,
            )
        )
        await ready.wait()
        try:
            yield
        finally:
            stop.set()


Mounted = Callable[..., AbstractAsyncContextManager[None]]
