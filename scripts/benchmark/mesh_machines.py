"""What the mesh rows run, and what it uses: machines with an identity each, peers that serve, rsync's daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmark.systems import BenchError, Vaultfs, run

LOCAL = "127.0.0.1"
START_LIMIT_S = 30.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Machine:
    """A user of some machine: directories of his own, and an identity.

    Args:
        home: a new directory is made there.
        settings: further variables of its commands.
    """

    def __init__(self, home: Path, settings: dict[str, str] | None = None) -> None:
        home.mkdir(parents=True)
        places = {f"XDG_{name.upper()}_HOME": str(home / name) for name in ("config", "data", "state", "cache")}
        self.environment = {**places, **(settings or {})}
        self.id = json.loads(self.run("peer", "init", "--json"))["id"]

    def run(self, *words: str) -> str:
        """Run a command of vaultfs on this machine, and return what it printed."""
        return run([Vaultfs.executable, *words], env=self.environment)

    def drive(self, *words: str) -> dict[str, float]:
        """Run something of `benchmark.mesh_driver` on this machine, and return what it found."""
        printed = run([sys.executable, "-m", "benchmark.mesh_driver", *words], env=self.environment)
        found: dict[str, float] = json.loads(printed)
        return found


@dataclass(frozen=True)
class Daemon:
    """A program that serves.

    Args:
        pid: of its process.
        port: where it listens, on loopback.
    """

    pid: int
    port: int

    def processor_s(self) -> float:
        """Seconds of processor time that it has used, and those of its children that have ended."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS_PER_S

    def peak_mib(self) -> float:
        """The most memory that was resident at once."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise BenchError("a server has ended before its time")


@contextmanager
def serving(machine: Machine, store: Path) -> Iterator[Daemon]:
    """Run `vaultfs peer serve`.

    Args:
        machine: where.
        store: its directory.
    """
    command = [Vaultfs.executable, "peer", "serve", "--store", str(store), "--listen", f"{LOCAL}:0", "--json"]
    environment = {**os.environ, **machine.environment}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.stdout is None:
            raise BenchError("vaultfs peer serve has no output")
        try:
            line = process.stdout.readline()
            if not line:
                raise BenchError("vaultfs peer serve did not begin to listen")
            yield Daemon(process.pid, json.loads(line)["port"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_LIMIT_S)


@contextmanager
def rsync_daemon(home: Path, target: Path) -> Iterator[Daemon]:
    """Run rsync's daemon over a plain socket, with one module, ``store``, that may be written.

    Args:
        home: an empty directory for its settings.
        target: where the module lies.
    """
    with socket.create_server((LOCAL, 0)) as free:
        port = free.getsockname()[1]
    user = "uid = 0\ngid = 0\n" if os.geteuid() == 0 else ""
    settings = home / "rsyncd.conf"
    settings.write_text(f"use chroot = no\n{user}[store]\npath = {target}\nread only = no\n")
    command = ["rsync", "--daemon", "--no-detach", f"--address={LOCAL}", f"--port={port}", f"--config={settings}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            yield Daemon(process.pid, port)
        finally:
            process.terminate()
            process.wait(START_LIMIT_S)


def _wait_for(port: int) -> None:
    """Return when somebody listens."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket.create_connection((LOCAL, port)).close()
        except ConnectionRefusedError as error:
            if time.monotonic() > deadline:
                raise BenchError("rsync's daemon did not begin to listen") from error
            time.sleep(0.02)
        else:
            return
