"""The mesh rows: replication beside rsync, small requests with and without the pool, planning, and a peer's memory.

Both ends are processes of their own on loopback.  In each round vaultfs and rsync take turns with the same files.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import blake3

from benchmark.backup_places import measured
from benchmark.inputs import MIB, SEED, Sizes
from benchmark.mesh_flood import FLOODS, VAULT
from benchmark.mesh_machines import LOCAL, Machine, rsync_daemon, serving
from benchmark.runner import say, warm_memory
from benchmark.systems import PASSWORD, BenchError, Vaultfs, run

FILE_MIB = 64
SETTLE_S = 0.2
"""Until rsync's daemon has collected the child that did the work, whose processor time is asked for then."""

SEGMENTS, COMMAND, RSYNC, RSYNC_SYNCED = "segments", "command", "rsync", "rsync --fsync"
AT_REST = "at rest"
SYSTEMS = (SEGMENTS, COMMAND, RSYNC, RSYNC_SYNCED)


@dataclass(frozen=True)
class Transfer:
    """What one transfer took.

    Args:
        sent_bytes: of all files.
        wall_s: from its start to its end.
        caller_s: processor time of the program that sends.
        server_s: that of the one that stores.
    """

    sent_bytes: int
    wall_s: float
    caller_s: float
    server_s: float

    @property
    def rate(self) -> float:
        """Megabytes a second."""
        return self.sent_bytes / 1e6 / self.wall_s

    @property
    def processor_s(self) -> float:
        """Seconds of processor time for a gigabyte, of both sides."""
        return (self.caller_s + self.server_s) / (self.sent_bytes / 1e9)


@dataclass
class MeshOutcome:
    """Everything that was measured.

    Args:
        transfers: by place and system, one for each round.
        requests: seconds for each, by kind and way, one for each round.
        plans: what `benchmark.mesh_driver` says of planning, one for each round.
        peaks_mib: the most memory of a peer, by what was sent to it; "at rest" before that.
        failures: why something has no figure.
    """

    transfers: dict[str, dict[str, list[Transfer]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    requests: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    plans: list[dict[str, float]] = field(default_factory=list)
    peaks_mib: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def rsync_version() -> str | None:
    """What rsync is installed; None: none."""
    if shutil.which("rsync") is None:
        return None
    return " ".join(run(["rsync", "--version"]).split()[:3])


def run_mesh(rounds: int, sizes: Sizes, places: dict[str, Path]) -> MeshOutcome:
    """Measure everything.

    Args:
        rounds: how often; vaultfs and rsync take turns.
        sizes: how much.
        places: empty directories by the names of their kinds; what is not about disks is measured in the first.
    """
    outcome = MeshOutcome()
    memory = next(iter(places.values()))
    for kind, home in places.items():
        with _noted(outcome, f"replication on {kind}"):
            _transfers(outcome.transfers[kind], home, rounds, sizes)
    with _noted(outcome, "requests"):
        _requests(outcome.requests, memory, rounds, sizes)
    with _noted(outcome, "planning"):
        planner = Machine(memory / "planner")
        outcome.plans += [planner.drive("plan") for _ in range(rounds)]
    with _noted(outcome, "memory"):
        _memory(outcome.peaks_mib, memory, sizes)
    return outcome


@contextmanager
def _noted(outcome: MeshOutcome, what: str) -> Iterator[None]:
    """Write down what fails, and go on with the next."""
    say(f"the mesh: {what}")
    try:
        yield
    except (BenchError, OSError) as error:
        say(f"  fails: {error}")
        outcome.failures.append(f"{what}: {error}")


def _transfers(found: dict[str, list[Transfer]], home: Path, rounds: int, sizes: Sizes) -> None:
    """Replicate a vault to one peer, and bring the same files to rsync's daemon."""
    needed = (2 + 1) * sizes.mesh_mib * MIB
    if shutil.disk_usage(home).free < needed:
        raise BenchError(f"that needs {needed / 2**30:.0f} GiB in {home}; see --where and --disk")
    vault = _sealed_vault(home, sizes)
    files = vault / "segments"
    sent_bytes = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    systems = [name for name in SYSTEMS if rsync_version() is not None or name not in {RSYNC, RSYNC_SYNCED}]
    for turn in range(rounds):
        shift = turn % len(systems)
        for name in systems[shift:] + systems[:shift]:
            work = home / "round"
            work.mkdir()
            warm_memory()
            os.sync()  # what others have written is not to be charged to the next
            transfer = (_to_rsync if name in {RSYNC, RSYNC_SYNCED} else _to_peer)(name, vault, work, sent_bytes)
            say(f"  round {turn + 1} of {rounds}: {name}: {transfer.rate:.0f} MB/s, {transfer.processor_s:.2f} s/GB")
            found[name].append(transfer)
            shutil.rmtree(work)


def _sealed_vault(home: Path, sizes: Sizes) -> Path:
    """A vault with one snapshot, of files of random bytes."""
    system = Vaultfs(home / "origin")
    try:
        system.create()
        # With a remote from the first, room is not given back in the midst of segments, which peers could not check.
        (home / "away").mkdir()
        add = [Vaultfs.executable, "remote", "add", str(system.vault), "away", (home / "away").as_uri()]
        run(add, env=system.environment)
        system.mount()
        generator = random.Random(SEED)
        for number in range(sizes.mesh_mib // FILE_MIB):
            (system.mount_point / f"file{number}").write_bytes(generator.randbytes(FILE_MIB * MIB))
        run([Vaultfs.executable, "snapshot", "create", str(system.mount_point)], env=system.environment)
        system.unmount()
        run([Vaultfs.executable, "remote", "remove", str(system.vault), "away"], env=system.environment)
    except BaseException:
        system.destroy()
        raise
    return system.vault


def _to_peer(name: str, vault: Path, work: Path, sent_bytes: int) -> Transfer:
    """To a peer that has nothing, by a machine that knows nothing of it."""
    peer = Machine(work / "peer")
    caller = Machine(work / "caller", {"VAULTFS_PASSWORD": PASSWORD})
    peer.run("peer", "accept", caller.id)
    with serving(peer, work / "store") as daemon:
        caller.run("peer", "add", str(vault), f"{peer.id}@{LOCAL}:{daemon.port}")
        try:
            before_s = daemon.processor_s()
            if name == COMMAND:
                command = [Vaultfs.executable, "mesh", "replicate", str(vault), "--replicas", "1", "--quiet"]
                usage = measured(command, env=caller.environment)
                wall_s, caller_s = usage.wall_s, usage.processor_s
            else:
                stored = caller.drive("store", str(vault))
                wall_s, caller_s = stored["wall_s"], stored["processor_s"]
            server_s = daemon.processor_s() - before_s
        finally:
            caller.run("remote", "remove", str(vault), "mesh")
    held = sum(path.stat().st_size for path in (work / "store").rglob("*") if path.parent.parent.name == "segments")
    if held != sent_bytes:
        raise BenchError(f"the peer holds {held} bytes of segments, of {sent_bytes}")
    return Transfer(sent_bytes, wall_s, caller_s, server_s)


def _to_rsync(name: str, vault: Path, work: Path, sent_bytes: int) -> Transfer:
    target = work / "target"
    target.mkdir()
    with rsync_daemon(work, target) as daemon:
        before_s = daemon.processor_s()
        flags = ["--fsync"] if name == RSYNC_SYNCED else []
        url = f"rsync://{LOCAL}:{daemon.port}/store/"
        usage = measured(["rsync", "-a", "--whole-file", *flags, f"{vault / 'segments'}/", url], env={})
        time.sleep(SETTLE_S)
        return Transfer(sent_bytes, usage.wall_s, usage.processor_s, daemon.processor_s() - before_s)


def _requests(found: dict[str, list[float]], home: Path, rounds: int, sizes: Sizes) -> None:
    """Small requests to one peer."""
    peer, caller = Machine(home / "answering"), Machine(home / "asking")
    peer.run("peer", "accept", caller.id)
    with serving(peer, home / "answering" / "store") as daemon:
        for turn in range(rounds):
            times = caller.drive("requests", f"{peer.id}@{LOCAL}:{daemon.port}", str(sizes.mesh_requests))
            for name, seconds in times.items():
                say(f"  round {turn + 1} of {rounds}: {name}: {seconds * 1e6:.0f} us")
                found[name].append(seconds)


def _memory(found: dict[str, float], home: Path, sizes: Sizes) -> None:
    """What a peer takes at most, whatever is sent to it; a new process for each flood."""
    peer = Machine(home / "flooded")
    for caller in _flood("ids").split():
        peer.run("peer", "accept", caller)
    store = home / "flooded" / "store"
    with serving(peer, store) as daemon:
        _flood("seed", f"{LOCAL}:{daemon.port}")
        found[AT_REST] = daemon.peak_mib()
    _fill(store / VAULT.hex() / "segments", sizes.mesh_objects)
    for kind in FLOODS:
        with serving(peer, store) as daemon:
            _flood(kind, f"{LOCAL}:{daemon.port}")
            found[kind] = daemon.peak_mib()
        say(f"  {kind}: {found[kind]:.0f} MiB")


def _flood(*words: str) -> str:
    return run([sys.executable, "-m", "benchmark.mesh_flood", *words])


def _fill(segments: Path, count: int) -> None:
    """Lay objects of eight bytes into a peer's store, by the thousands, while it does not run."""
    for number in range(count):
        data = number.to_bytes(8, "big")
        name = blake3.blake3(data).hexdigest()
        directory = segments / name[:2]
        directory.mkdir(exist_ok=True)
        (directory / name).write_bytes(data)
