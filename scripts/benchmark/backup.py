"""The backup table: vaultfs sync beside restic, borg and rclone, each from and to the same places in one run.

Each program in turn gets the same tree and a place of its own, and goes through a first backup, one without a change,
one with 1 % of the files changed, and a restore, which is compared with the tree byte for byte.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.backup_places import Place, S3Place, Usage, s3_place
from benchmark.backup_systems import PROGRAMS, Program
from benchmark.inputs import MIB, SEED, Sizes
from benchmark.runner import say, warm_memory
from benchmark.systems import BenchError, run

CHANGED_SHARE = 0.01
FILES_PER_DIRECTORY = 100
ROOM_FACTOR = 4.0
"""Tree, vault, store and what is restored are there at once."""
ONCE = {("rclone", S3Place.kind)}
"""Takes a request or two for each file, and so too long for more than one round."""
MEMORY_LIMIT_MIB = 250.0
PUTS_PER_GIB_LIMIT = 40.0


@dataclass(frozen=True)
class Step:
    """A line of the table.

    Args:
        key: its name in JSON.
        title: its name in the table.
        target: the least time of the best other program over the time of vaultfs that is wanted; None: only shown.
    """

    key: str
    title: str
    target: float | None


STEPS = (
    Step("first", "first backup", 1.0),
    Step("first-and-written", "the same, and writing the files into the vault before", None),
    Step("unchanged", "nothing has changed", 5.0),
    Step("changed", "1 % of the files changed", 5.0),
    Step("restore", "restore: until it can be used (a vault; plain files)", 1.0),
    Step("restore-plain", "restore of plain files, without a vault", 1.0),
    Step("restore-copied", "restore of a vault, and copying all files out of its mount", None),
)


@dataclass
class Outcome:
    """What one program did with one kind of place.

    Args:
        usages: by step, one for each round.
        peak_mib: the most memory of a process in a backup.
        restore_peak_mib: likewise in a restore.
        first_bytes: what the first backup stored.
        changed_bytes: what the one with changes added.
        first_puts: PUT requests of the first backup; None for a directory.
        failure: why there is nothing.
    """

    usages: dict[str, list[Usage]] = field(default_factory=lambda: defaultdict(list))
    peak_mib: float = 0.0
    restore_peak_mib: float = 0.0
    first_bytes: int = 0
    changed_bytes: int = 0
    first_puts: int | None = None
    failure: str = ""


Outcomes = dict[str, dict[str, Outcome]]
"""By kind of place and program."""


class Tree:
    """What is backed up: files of random bytes in many directories, some of which change and change back.

    Args:
        directory: an empty one.
        sizes: how many files, how much in all.
    """

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        self.root = directory / "files"
        self._versions = {version: directory / version for version in ("old", "new")}
        generator = random.Random(SEED)
        weights = [generator.lognormvariate(0.0, 1.2) for _ in range(sizes.backup_files)]
        scale = sizes.backup_mib * MIB / sum(weights)
        self.names = []
        for at, weight in enumerate(weights):
            name = f"d{at // FILES_PER_DIRECTORY:04}/f{at:06}"
            self.names.append(name)
            _write(self.root / name, max(1, int(weight * scale)), at)
        count = max(1, round(len(self.names) * CHANGED_SHARE))
        self.changing = generator.sample(self.names, count)
        for at, name in enumerate(self.changing):
            size = (self.root / name).stat().st_size
            _copy(self.root / name, self._versions["old"] / name)
            _write(self._versions["new"] / name, size, len(self.names) + at)

    def set(self, version: str) -> None:
        """Have the files that change in their state before or after ("old", "new")."""
        for name in self.changing:
            _copy(self._versions[version] / name, self.root / name)


def _write(path: Path, size: int, seed: int) -> None:
    """Write a file that has no 4 KiB in common with that of another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = random.Random(SEED + 1 + seed)
    with path.open("wb") as file:
        while size > 0:
            piece = generator.randbytes(min(size, 64 << 10))
            file.write(piece)
            size -= len(piece)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def run_backup(names: list[str], rounds: int, sizes: Sizes, home: Path) -> Outcomes:
    """Take every program through every kind of place.

    Args:
        names: of `PROGRAMS`; those that are installed.
        rounds: how often; the first program of a round is another one each time.
        sizes: how much.
        home: an empty directory.
    """
    outcomes: Outcomes = {kind: {name: Outcome() for name in names} for kind in (Place.kind, S3Place.kind)}
    needed = sizes.backup_mib * MIB * ROOM_FACTOR
    if shutil.disk_usage(home).free < needed:
        raise BenchError(f"the backup rows need {needed / 2**30:.0f} GiB in {home}; see --where")
    say(f"making {sizes.backup_files:,} files of {sizes.backup_mib} MiB in all")
    (home / "tree").mkdir()
    tree = Tree(home / "tree", sizes)
    for turn in range(rounds):
        shift = turn % len(names)
        for kind in outcomes:
            for name in names[shift:] + names[:shift]:
                outcome = outcomes[kind][name]
                if (name, kind) in ONCE and turn:
                    continue
                if kind in PROGRAMS[name].places and not outcome.failure:
                    say(f"round {turn + 1} of {rounds}: {name} to {kind}")
                    _run_program(PROGRAMS[name], kind, tree, home / f"{name}-{kind}", outcome)
    return outcomes


def _run_program(kind: type[Program], place_kind: str, tree: Tree, home: Path, outcome: Outcome) -> None:
    """One program, one kind of place, one round."""
    home.mkdir()
    opened: AbstractContextManager[Place]
    opened = s3_place(home / "s3") if place_kind == S3Place.kind else nullcontext(Place(home / "store"))
    try:
        tree.set("old")
        with opened as place:
            (home / "program").mkdir()
            program = kind(home / "program", tree.root, place)
            try:
                for step, usage in _steps(program, tree, home / "restored", outcome):
                    say(
                        f"  {step}: {usage.wall_s:.3g} s, processor {usage.processor_s:.3g} s, {usage.peak_mib:.0f} MiB"
                    )
                    outcome.usages[step].append(usage)
            finally:
                program.end()
    except (BenchError, OSError) as error:
        outcome.failure = str(error).replace(str(home), "…")
        say(f"  fails: {outcome.failure}")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _steps(program: Program, tree: Tree, target: Path, outcome: Outcome) -> Iterator[tuple[str, Usage]]:
    """Yield what each step took."""
    program.create()
    warm_memory()
    written = program.take_in()
    program.place.sent()
    warm_memory()
    first = program.back_up()
    outcome.first_bytes, outcome.first_puts = program.place.sent()
    yield "first", first
    yield "first-and-written", written + first
    unchanged = program.back_up()
    yield "unchanged", unchanged
    tree.set("new")
    program.change(tree.changing)
    program.place.sent()
    changed = program.back_up()
    outcome.changed_bytes, _ = program.place.sent()
    yield "changed", changed
    warm_memory()
    restored = program.restore(target)
    yield "restore", restored.usable
    yield "restore-plain", restored.plain
    yield "restore-copied", restored.copied
    outcome.peak_mib = max(outcome.peak_mib, *(each.peak_mib for each in (first, unchanged, changed)))
    outcome.restore_peak_mib = max(outcome.restore_peak_mib, restored.usable.peak_mib, restored.plain.peak_mib)
    run(["diff", "-r", "--no-dereference", str(tree.root), str(target)])
