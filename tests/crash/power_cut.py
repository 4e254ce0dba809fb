"""Cuts power at every recorded write of a workload, and looks at what is left.

The workload runs once, under strace.  For every system call that changed the disk and every kind of `Loss` a tree is
made as a power cut may leave it; states that were seen before are skipped.  Each is opened like after a reboot, without
a manual step, and must then show the exact tree after some operation, not an earlier one than the last that promised.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .recorder import Mark, Recorder
from .simulated_disk import Loss, Recording, State
from .stores import Tree
from .trace import run_traced
from .workload import Expectation, generate

REPOSITORY = Path(__file__).parents[2]
MOST_PROBLEMS = 100
_NUMBERS = re.compile(r"[0-9a-f]{8,}|\d+")


@dataclass(slots=True)
class Inspection:
    """What a store shows after a crash.

    Attributes:
        tree: everything visible.
        problems: broken invariants, a line each.
    """

    tree: Tree
    problems: list[str] = field(default_factory=list)


Inspect = Callable[[Path], Inspection]
"""Opens what lies in a directory, checks it, and closes it; an exception is a problem like any other."""


@dataclass(frozen=True, slots=True)
class Job:
    """A workload on a store."""

    store: str
    workload: str
    seed: int
    steps: int

    def command(self, root: Path, marks: Path) -> list[str]:
        """The command that runs it; for `REPOSITORY` as the working directory."""
        words = [self.store, root, marks, self.workload, self.seed, self.steps]
        return [sys.executable, "-m", "tests.crash.worker", *map(str, words)]


@dataclass(frozen=True, slots=True)
class Cut:
    """One power cut: where, what is lost, and the disk after it."""

    position: int
    loss: Loss
    seed: int
    state: State
    survivors: range


@dataclass(slots=True)
class Report:
    """The result of many cuts."""

    points: int = 0
    states: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The counts, and one example of each kind of problem."""
        kinds: dict[str, list[str]] = {}
        for problem in self.problems:
            kinds.setdefault(_NUMBERS.sub("#", problem.partition(": ")[2]), []).append(problem)
        lines = [f"{len(each)} times: {each[0]}" for each in kinds.values()]
        return "\n".join([f"{self.states} states at {self.points} points, {len(self.problems)} problems", *lines[:20]])

    def inspected(self, inspect: Inspect, root: Path, expectation: Expectation, survivors: range, where: str) -> None:
        """Inspect what lies in ``root``, count it, and note what is wrong with it.

        Args:
            inspect: opens it.
            root: holds it.
            expectation: what it should be,
            survivors: after as many operations.
            where: names the crash.
        """
        self.states += 1
        place = f"{where}, operations {list(survivors)}"
        try:
            found = inspect(root)
        except Exception as error:
            self.problems.append(f"{place}: cannot be opened: {error!r}")
            return
        self.problems += [f"{place}: {problem}" for problem in found.problems]
        mismatch = expectation.mismatch(found.tree, survivors)
        if mismatch:
            self.problems.append(f"{place}: {mismatch}")

    @property
    def is_hopeless(self) -> bool:
        """Whether more problems would tell nothing new."""
        return len(self.problems) >= MOST_PROBLEMS

    def verify(self, least_points: int) -> None:
        """Fail if there was a problem, or if there were fewer points than a test means to have."""
        if self.problems or self.points < least_points:
            raise AssertionError(str(self))

    def add(self, other: Report) -> None:
        """Take in what another report says."""
        self.points += other.points
        self.states += other.states
        self.problems += other.problems


class Recorded:
    """A workload that ran once under strace.

    Args:
        job: what to run.
        scratch: for marks and the trace.
        root: the store, ready to be opened; states will be laid out here, for stores remember paths.
        expectation: of another workload than the job's.
    """

    def __init__(self, job: Job, scratch: Path, root: Path, *, expectation: Expectation | None = None) -> None:
        self.job = job
        self.root = root
        self.expectation = expectation or Expectation(generate(job.workload, job.seed, job.steps))
        marks = scratch / "marks"
        recorder = Recorder(root, marks)
        calls = run_traced(job.command(root, marks), scratch / "trace", directory=REPOSITORY)
        self.recording: Recording = recorder.follow(calls)
        self.marks: Sequence[Mark] = recorder.marks

    def cuts(self, losses: Sequence[Loss], seeds: int) -> Iterator[Cut]:
        """Every different state that a cut can leave.

        Args:
            losses: kinds to make.
            seeds: how many states of each kind that chance decides.
        """
        seen = set()
        for position in self.recording.cuts:
            survivors = self.expectation.bounds(self.marks, position)
            for loss in losses:
                for seed in range(seeds if loss in {Loss.JOURNAL, Loss.SCATTERED} else 1):
                    state = self.recording.crash(position, loss, seed)
                    key = (state.digest(), survivors)
                    if key not in seen:
                        seen.add(key)
                        yield Cut(position, loss, seed, state, survivors)

    def again(self, scratch: Path, cut: Cut) -> Recorded:
        """Lay out the state after a cut, and record how it is opened, looked at and closed."""
        cut.state.write_to(self.root)
        job = replace(self.job, workload="nothing", steps=0)
        return Recorded(job, scratch, self.root, expectation=self.expectation.from_now_on(cut.survivors))

    def check(self, inspect: Inspect, *, losses: Sequence[Loss] = tuple(Loss), seeds: int = 1) -> Report:
        """Make all cuts and inspect what is left.

        Args:
            inspect: opens the store.
            losses: as for `cuts`.
            seeds: as for `cuts`.
        """
        report = Report(points=len(self.recording.cuts))
        for cut in self.cuts(losses, seeds):
            cut.state.write_to(self.root)
            where = f"cut at {cut.position}, lost {cut.loss.name} {cut.seed}"
            report.inspected(inspect, self.root, self.expectation, cut.survivors, where)
            if report.is_hopeless:
                break
        return report
