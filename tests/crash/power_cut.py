"""Cuts power at every recorded write of a workload, and looks at what is left.

The workload runs once, under strace.  For every system call that changed the disk and every kind of `Loss` a tree is
made as a power cut may leave it; states that were seen before are skipped.  Each is opened like after a reboot, without
a manual step, and must then show the exact tree after some operation, not an earlier one than the last that promised.
All processors share this work (`sharing`).
"""

from __future__ import annotations

import itertools
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .recorder import Mark, Recorder
from .report import Inspect, Report
from .sharing import share
from .simulated_disk import Loss, Recording, State
from .trace import run_traced
from .workload import Expectation, generate

REPOSITORY = Path(__file__).parents[2]


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


class Recorded:
    """A workload that ran once under strace.

    Args:
        job: what to run.
        scratch: for marks, the trace, and the disks after the cuts.
        root: the store, ready to be opened.
        expectation: of another workload than the job's.
    """

    def __init__(self, job: Job, scratch: Path, root: Path, *, expectation: Expectation | None = None) -> None:
        self.job = job
        self.root = root
        self._scratch = scratch
        self.expectation = expectation or Expectation(generate(job.workload, job.seed, job.steps))
        marks = scratch / "marks"
        recorder = Recorder(root, marks)
        calls = run_traced(job.command(root, marks), scratch / "trace", directory=REPOSITORY)
        self.recording: Recording = recorder.follow(calls)
        self.marks: Sequence[Mark] = recorder.marks

    def cuts(self, losses: Sequence[Loss], seeds: int, *, every: int = 1) -> Iterator[Cut]:
        """Every different state that a cut can leave, or a sample of them that is always the same.

        Args:
            losses: kinds to make.
            seeds: how many states of each kind that chance decides.
            every: of each kind only so many-th state, but all of those just before, at and just after a sync.
        """
        seen = set()
        near = self._positions_near_syncs()
        counts = {loss: zlib.crc32(f"{self.job} {loss.name}".encode()) for loss in losses}
        for position in self.recording.cuts:
            survivors = self.expectation.bounds(self.marks, position)
            for loss in losses:
                for seed in range(seeds if loss in {Loss.JOURNAL, Loss.SCATTERED} else 1):
                    state = self.recording.crash(position, loss, seed)
                    key = (state.digest(), survivors)
                    if key in seen:
                        continue
                    seen.add(key)
                    counts[loss] += position not in near
                    if position in near or counts[loss] % every == 0:
                        yield Cut(position, loss, seed, state, survivors)

    def _positions_near_syncs(self) -> frozenset[int]:
        """Cuts after a sync, and the ones before and after that: where the most depends on one call."""
        positions = self.recording.cuts
        synced = {end + 1 for node in self.recording.nodes for _, end in node.syncs}
        places = {place + step for place, each in enumerate(positions) if each in synced for step in (-1, 0, 1)}
        return frozenset(positions[place] for place in places if 0 <= place < len(positions))

    def again(self, scratch: Path, cut: Cut) -> Recorded:
        """Lay out the state after a cut, and record how it is opened, looked at and closed."""
        cut.state.write_to(self.root)
        job = replace(self.job, workload="nothing", steps=0)
        return Recorded(job, scratch, self.root, expectation=self.expectation.from_now_on(cut.survivors))

    def check(
        self, inspect: Inspect, *, losses: Sequence[Loss] = tuple(Loss), seeds: int = 1, every: int = 1
    ) -> Report:
        """Make all cuts and inspect what is left.

        Args:
            inspect: opens the store.
            losses: as for `cuts`.
            seeds: as for `cuts`.
            every: as for `cuts`.
        """

        def work(number: int, shares: int, place: Path) -> Report:
            report = Report()
            for cut in itertools.islice(self.cuts(losses, seeds, every=every), number, None, shares):
                cut.state.write_to(place / "disk")
                where = f"cut at {cut.position}, lost {cut.loss.name} {cut.seed}"
                report.inspected(inspect, place / "disk", self.expectation, cut.survivors, where)
                if report.is_hopeless:
                    break
            return report

        report = share(work, self._scratch)
        report.points = len(self.recording.cuts)
        return report
