"""Runs the rows: every system in turn, round after round, each with a fresh vault; failures are results too."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.inputs import MIB, Inputs
from benchmark.rows import Row, Stage
from benchmark.systems import BenchError, System

ROW_LIMIT_S = 900.0
WARMED_BYTES = 2048 * MIB


@dataclass
class Results:
    """What was measured, in the unit of each row: ``times[row][system]`` has one entry per round that worked."""

    times: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    failures: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))


def say(text: str) -> None:
    """Tell the person who waits what is going on."""
    print(text, file=sys.stderr, flush=True)


def run_rows(
    kinds: list[type[System]], rows: list[Row], rounds: int, inputs: Inputs, memory: Path, disk: Path
) -> Results:
    """Measure every row with every system.

    Args:
        kinds: the systems.
        rows: the rows, in the order to run them.
        rounds: how often; the first system of a round is another one each time.
        inputs: the common input.
        memory: an empty directory on a tmpfs, for most rows.
        disk: an empty directory on a real disk, for the rows that are about syncing.
    """
    results = Results()
    for turn in range(rounds):
        shift = turn % len(kinds)
        for kind in kinds[shift:] + kinds[:shift]:
            for where, wanted in ((memory, False), (disk, True)):
                chosen = [row for row in rows if row.on_disk is wanted]
                if chosen:
                    warm_memory()
                    say(f"round {turn + 1} of {rounds}: {kind.name}, {len(chosen)} rows")
                    run_system(kind, chosen, inputs, where, results)
    return results


def warm_memory(size: int = WARMED_BYTES) -> None:
    """Touch memory and free it, so that nobody is charged for pages that a virtual machine has to get from its host.

    The first touch of a page costs up to 9 us there, thirty times as much as any later one.
    """
    memory = bytearray(size)
    for at in range(0, size, 4096):
        memory[at] = 1


def run_system(kind: type[System], rows: list[Row], inputs: Inputs, where: Path, results: Results) -> None:
    """Take one system through some rows, with a new vault after each failure."""
    system = kind(where / kind.name)
    mounted = False
    try:
        for row in rows:
            try:
                if not mounted:
                    system.create()
                    system.mount()
                    mounted = True
                seconds = measure(row, Stage(system, inputs))
            except (BenchError, OSError) as error:
                reason = str(error).replace(str(system.home), "…")
                say(f"  {row.key}: fails: {reason}")
                results.failures[row.key][kind.name] = reason
                system.destroy()
                mounted = False
            else:
                say(f"  {row.key}: {seconds:.4g} {row.unit}")
                results.times[row.key][kind.name].append(seconds)
        if mounted:
            system.unmount()
    finally:
        system.destroy()


def measure(row: Row, stage: Stage) -> float:
    """Run one row; a daemon that hangs is killed after ``ROW_LIMIT_S``, which fails the row."""
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        stage.system.kill()

    stage.system.settle()
    watchdog = threading.Timer(ROW_LIMIT_S, give_up)
    watchdog.start()
    try:
        return row.measure(stage)
    except (BenchError, OSError) as error:
        if expired.is_set():
            raise BenchError(f"not done after {ROW_LIMIT_S:.0f} s") from error
        raise
    finally:
        watchdog.cancel()
