"""Figures of vaultfs alone that need a remote: how soon a clone can be read, and what a sync costs the mount."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmark.backup_places import Place, S3Place, s3_place
from benchmark.backup_systems import VaultfsSync
from benchmark.inputs import FILES_PER_DIRECTORY, MIB, SEED, Sizes, directory_name
from benchmark.own import ROUNDS, Figure
from benchmark.runner import say, warm_memory
from benchmark.systems import BenchError, Vaultfs, run

OPERATION_MIB = 64
OPERATIONS_ALONE = 8
SYNCS = 2


class _Vault(VaultfsSync):
    """A vault with one remote, whose tree nobody needs."""

    def __init__(self, home: Path, place: Place) -> None:
        home.mkdir(exist_ok=True)
        super().__init__(home, home, place)

    def add_remote(self) -> None:
        """Make the place a remote of the vault."""
        command = [Vaultfs.executable, "remote", "add", str(self.source.vault), "away", self.url, *self.options]
        run(command, env=self.environment)

    def remove_remote(self) -> None:
        """Undo `add_remote`."""
        run([Vaultfs.executable, "remote", "remove", str(self.source.vault), "away"], env=self.environment)


def clone(home: Path, sizes: Sizes) -> Iterator[Figure]:
    """Yield the time from the command to the first byte of a file, for a vault with many files on an S3 server."""
    count = sizes.many_files
    with ExitStack() as stack:
        vault = _Vault(home / "origin", stack.enter_context(s3_place(home / "server")))
        stack.callback(vault.end)
        vault.source.prepare()
        say(f"vaultfs alone: making a vault of {count:,} files, and sending it")
        command = [sys.executable, "-m", "benchmark.populate", str(vault.source.vault), str(count)]
        derivation_s = float(run(command, env=vault.environment, limit_s=4 * 3600))
        vault.add_remote()
        run([Vaultfs.executable, "sync", str(vault.source.vault), "--snapshot", "--quiet"], env=vault.environment)
        walls = []
        generator = random.Random(SEED)
        for number in range(ROUNDS):
            at = generator.randrange(count)
            system = Vaultfs(home / f"clone-{number}")
            settings = {**vault.environment, **system.state}
            stack.callback(system.destroy)
            system.prepare()
            path = system.mount_point / directory_name(at // FILES_PER_DIRECTORY) / f"f{at % FILES_PER_DIRECTORY:04}"
            start = time.perf_counter()
            run([Vaultfs.executable, "clone", vault.url, str(system.vault), "--quiet", *vault.options], env=settings)
            run([Vaultfs.executable, "mount", str(system.vault), str(system.mount_point)], env=settings)
            with path.open("rb") as file:
                first = file.read(1)
            walls.append(time.perf_counter() - start)
            if first != b"c":
                raise BenchError(f"{path.name} of the clone begins with {first!r}")
            system.destroy()
    wall = statistics.median(walls)
    yield Figure(
        "clone-first-byte",
        f"clone of {count:,} files: from the command to the first byte of a file",
        wall,
        "s",
        3.0,
        f"clone, mount and read; of them {2 * derivation_s:.2f} s for deriving the key twice",
    )


def sync_load(home: Path, sizes: Sizes) -> Iterator[Figure]:
    """Yield by how much the mount gets slower while a sync runs: to a directory, and to an S3 server."""
    for kind in (Place.kind, S3Place.kind):
        with ExitStack() as stack:
            place = Place(home / f"load-{kind}")
            vault = _Vault(home / f"loaded-{kind}", place)
            stack.callback(vault.end)
            vault.source.create()
            vault.source.mount()
            generator = random.Random(SEED)
            for number in range(sizes.sent_mib // OPERATION_MIB):
                (vault.source.mount_point / f"sent{number}").write_bytes(generator.randbytes(OPERATION_MIB * MIB))
            vault.source.settle()
            data = generator.randbytes(OPERATION_MIB * MIB)
            warm_memory()
            alone: list[tuple[float, float]] = []
            loaded: list[tuple[float, float]] = []
            for turn in range(SYNCS):
                alone += [_operation(vault.source.mount_point, data, turn) for _ in range(OPERATIONS_ALONE)]
                with ExitStack() as inner:
                    directory = home / f"load-{kind}-{turn}"
                    vault.place = inner.enter_context(s3_place(directory)) if kind == S3Place.kind else Place(directory)
                    vault.add_remote()
                    loaded += _operations_during_sync(vault, data, turn)
                    vault.remove_remote()
                shutil.rmtree(directory)
        if not loaded:
            raise BenchError("a sync ended before anything could be measured")
        drops = [
            (1 - statistics.median(each[at] for each in alone) / statistics.median(each[at] for each in loaded)) * 100
            for at in (0, 1)
        ]
        article = "" if kind == S3Place.kind else "a "
        yield Figure(
            f"sync-load-{kind.lower()}",
            f"throughput of the mount while a sync to {article}{kind} runs: less by",
            max(drops),
            "%",
            20.0,
            f"writing {drops[0]:.0f} %, reading {drops[1]:.0f} %; {len(loaded)} times {OPERATION_MIB} MiB",
        )


def _operations_during_sync(vault: _Vault, data: bytes, turn: int) -> list[tuple[float, float]]:
    """What was measured from beginning to end while a sync was running."""
    root = vault.source.mount_point
    command = [Vaultfs.executable, "sync", str(root), "--quiet"]
    environment = {**os.environ, **vault.environment}
    measured = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sync:
        time.sleep(0.3)  # until it sends
        while sync.poll() is None:
            found = _operation(root, data, turn)
            if sync.poll() is None:
                measured.append(found)
        if sync.returncode:
            raise BenchError(f"vaultfs sync returned {sync.returncode} while files were written")
    return measured


def _operation(root: Path, data: bytes, turn: int) -> tuple[float, float]:
    """Write a file and sync it, then read it cold; return the seconds of both."""
    path = root / f"operation{turn}"
    view = memoryview(data)
    stamp = time.perf_counter_ns().to_bytes(16, "little")  # another content each time, in each chunk
    start = time.perf_counter()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for at in range(0, len(data), MIB):
            os.writev(descriptor, [stamp, view[at + len(stamp) : at + MIB]])
        os.fsync(descriptor)
        written_s = time.perf_counter() - start
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for at in range(0, len(data), MIB):
            if len(os.pread(descriptor, MIB, at)) != MIB:
                raise BenchError("what was written came back short")
        return written_s, time.perf_counter() - start
    finally:
        os.close(descriptor)


REMOTE = {"clone": (clone, False), "sync-load": (sync_load, False)}
"""As `benchmark.own.OWN`."""
