"""Figures of vaultfs alone: how it scales with the number of files, how much room and memory it takes."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark.inputs import BLOCK, FILES_PER_DIRECTORY, MIB, SEED, Sizes, directory_name
from benchmark.runner import say
from benchmark.systems import BenchError, Vaultfs, run

ROUNDS = 3
PROBED_DIRECTORIES = 2
GROWTH_LIMIT_MIB = 192.0


@dataclass(frozen=True)
class Figure:
    """One number about vaultfs.

    Args:
        key: its name in JSON.
        title: its name in the table.
        value: the number; None where it could not be measured.
        unit: of value and limit.
        limit: what it must not exceed; None where nothing is promised.
        remark: what else there is to know, or why there is no value.
    """

    key: str
    title: str
    value: float | None
    unit: str
    limit: float | None = None
    remark: str = ""


def peak_memory_mib(system: Vaultfs) -> float:
    """Return the peak resident memory of the daemon in MiB."""
    status = [Path(f"/proc/{pid}/status").read_text() for pid in system.daemons()]
    peaks = [int(line.split()[1]) for text in status for line in text.splitlines() if line.startswith("VmHWM:")]
    if not peaks:
        raise BenchError("vaultfs's daemon was not found")
    return max(peaks) / 1024


def forget_peak_memory(system: Vaultfs) -> None:
    """Let the peak count from now on: the key derivation takes up to a gigabyte by design, and gives it back.

    See clear_refs in proc(5).
    """
    for pid in system.daemons():
        Path(f"/proc/{pid}/clear_refs").write_text("5\n")


def disk_usage_bytes(directory: Path) -> int:
    """Return the bytes of disk that everything below ``directory`` takes, holes left out."""
    return sum(path.lstat().st_blocks * 512 for path in directory.glob("**/*"))


def per_operation_us(operation: Callable[[str], object], names: list[str]) -> float:
    """Return the microseconds one call takes, on average over ``names``."""
    start = time.perf_counter()
    for name in names:
        operation(name)
    return (time.perf_counter() - start) * 1e6 / len(names)


def create_file(name: str) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def operation_costs(system: Vaultfs, count: int, sizes: Sizes) -> dict[str, float]:
    """Return microseconds for a create, a lookup, a readdir of a thousand entries and an unlink.

    Args:
        system: mounted, with ``count`` files.
        count: the number of files in the vault.
        sizes: how many operations.
    """
    root = system.mount_point
    measured: dict[str, list[float]] = {"create": [], "lookup": [], "readdir 1000": [], "unlink": []}
    generator = random.Random(SEED)
    for _ in range(ROUNDS):
        system.go_cold()
        (root / "probe").mkdir()
        made = [str(root / "probe" / f"probe{number}") for number in range(sizes.probes)]
        # As many directories at each size, or the kernel would look up more of them in the larger vault.
        chosen = generator.sample(range(count // FILES_PER_DIRECTORY), PROBED_DIRECTORIES)
        directories = [str(root / directory_name(number)) for number in chosen]
        for directory in directories:
            os.stat(directory)
        found = [f"{directory}/f{number:04}" for directory in directories for number in range(FILES_PER_DIRECTORY)]
        looked_up = generator.sample(found, min(sizes.probes, len(found)))
        measured["create"].append(per_operation_us(create_file, made))
        measured["lookup"].append(per_operation_us(os.stat, looked_up))
        measured["unlink"].append(per_operation_us(os.unlink, made))
        (root / "probe").rmdir()
        system.go_cold()
        measured["readdir 1000"].append(per_operation_us(os.listdir, directories))
    return {name: statistics.median(values) for name, values in measured.items()}


def many_files(home: Path, sizes: Sizes) -> Iterator[Figure]:
    """Yield the mount time, the memory and the cost of operations with few and with many files."""
    costs: dict[int, dict[str, float]] = {}
    for count in (sizes.fewer_files, sizes.many_files):
        system = Vaultfs(home / f"files-{count}")
        try:
            system.prepare()
            say(f"vaultfs alone: making a vault of {count:,} files")
            command = [sys.executable, "-m", "benchmark.populate", str(system.vault), str(count)]
            derivation_s = float(run(command, env=system.environment, limit_s=4 * 3600))
            walls = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                system.mount()
                walls.append(time.perf_counter() - start)
                system.unmount()
            wall = statistics.median(walls)
            yield Figure(
                f"mount-{count}",
                f"mount with {count:,} files, without the key derivation",
                wall - derivation_s,
                "s",
                1.0,
                f"{wall:.2f} s in all, of them {derivation_s:.2f} s for the key",
            )
            system.mount()
            costs[count] = operation_costs(system, count, sizes)
            run(["find", str(system.mount_point), "-size", "+1G"], limit_s=3600)
            yield Figure(
                f"memory-{count}", f"peak memory, all {count:,} files visited", peak_memory_mib(system), "MiB", 200.0
            )
            system.unmount()
        finally:
            system.destroy()
    for name, few in costs[sizes.fewer_files].items():
        many = costs[sizes.many_files][name]
        yield Figure(
            f"scaling-{name.replace(' ', '-')}",
            f"{name}: cost at {sizes.many_files:,} over cost at {sizes.fewer_files:,} files",
            many / few,
            "",
            1.3,
            f"{few:.0f} µs and {many:.0f} µs",
        )


def space(home: Path, sizes: Sizes) -> Iterator[Figure]:
    """Yield how much more room than the plaintext files of 1 MiB take."""
    system = Vaultfs(home / "space")
    try:
        system.create()
        empty = disk_usage_bytes(system.vault)
        system.mount()
        generator = random.Random(SEED)
        for number in range(sizes.overhead_mib):
            (system.mount_point / str(number)).write_bytes(generator.randbytes(MIB))
        system.unmount()
        used = disk_usage_bytes(system.vault)
    finally:
        system.destroy()
    percent = (used / (sizes.overhead_mib * MIB) - 1) * 100
    yield Figure(
        "space",
        "room over the plaintext, 1 MiB files",
        percent,
        "%",
        3.0,
        f"an empty vault takes {empty / 1024:.0f} KiB",
    )


def rewrites(home: Path, sizes: Sizes) -> Iterator[Figure]:
    """Yield the size of a vault in which one file of 1 MiB was rewritten over and over."""
    system = Vaultfs(home / "rewrites")
    generator = random.Random(SEED)
    used: list[float] = []
    try:
        system.create()
        system.mount()
        descriptor = os.open(system.mount_point / "file", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            for number in range(1, sizes.rewrites + 1):
                os.pwrite(descriptor, generator.randbytes(BLOCK), generator.randrange(MIB // BLOCK) * BLOCK)
                if number % 1000 == 0:
                    os.fsync(descriptor)
                if number % (sizes.rewrites // 10) == 0:
                    used.append(disk_usage_bytes(system.vault) / MIB)
        finally:
            os.close(descriptor)
        system.unmount()
        after = disk_usage_bytes(system.vault) / MIB
    finally:
        system.destroy()
    yield Figure(
        "rewrites",
        f"largest size of the vault during {sizes.rewrites:,} rewrites of 4 KiB in one 1 MiB file",
        max(used),
        "MiB",
        GROWTH_LIMIT_MIB,
        f"{used[0]:.1f} MiB after a tenth, {used[-1]:.1f} MiB after all, {after:.1f} MiB unmounted",
    )


def streaming(home: Path, sizes: Sizes) -> Iterator[Figure]:
    """Yield the memory of the daemon while one large file is written and then read."""
    size = int(sizes.streamed_gib * 1024) * MIB
    if shutil.disk_usage(home).free < size * 1.1:
        raise BenchError(f"no room for {sizes.streamed_gib:g} GiB where the vault is")
    system = Vaultfs(home / "streaming")
    piece = bytearray(random.Random(SEED).randbytes(4 * MIB))
    try:
        system.create()
        system.mount()
        forget_peak_memory(system)
        path = system.mount_point / "large"
        start = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for number in range(size // len(piece)):
                # Another content in each chunk, or deduplication would leave nothing to write.
                for at in range(0, len(piece), 32 * 1024):
                    piece[at : at + 8] = (number * len(piece) + at).to_bytes(8, "little")
                file.write(piece)
            os.fsync(file.fileno())
        rate = size / MIB / (time.perf_counter() - start)
        memory = peak_memory_mib(system)
        system.unmount()
    finally:
        system.destroy()
    yield Figure(
        "memory-streaming",
        f"peak memory while a file of {sizes.streamed_gib:g} GiB is written",
        memory,
        "MiB",
        200.0,
        f"at {rate:.0f} MiB/s, on a disk",
    )


Groups = dict[str, tuple[Callable[[Path, Sizes], Iterator[Figure]], bool]]

OWN: Groups = {
    "many-files": (many_files, False),
    "space": (space, False),
    "rewrites": (rewrites, False),
    "streaming": (streaming, True),
}
"""Each group of figures, and whether its vault belongs on a real disk."""


def run_own(groups: Groups, sizes: Sizes, memory: Path, disk: Path) -> list[Figure]:
    """Measure the chosen groups; one that fails yields a figure without a value.

    Args:
        groups: those that were chosen.
        sizes: how much.
        memory: an empty directory on a tmpfs.
        disk: an empty directory on a real disk.
    """
    figures = []
    for key, (group, on_disk) in groups.items():
        say(f"vaultfs alone: {key}")
        try:
            for figure in group(disk if on_disk else memory, sizes):
                say(f"  {figure.title}: {figure.value or 0:.4g} {figure.unit}")
                figures.append(figure)
        except (BenchError, OSError) as error:
            say(f"  fails: {error}")
            figures.append(Figure(key, key, None, "", None, f"fails: {error}"))
    return figures
