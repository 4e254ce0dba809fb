"""Cuts power at every write that a workload caused on a disk with ext4, and looks at what the journal makes of it.

The equivalent of dm-log-writes where there is no device-mapper: the disk is a loop device on a file that block_server
serves and logs.  Nothing is assumed about file systems; the kernel's own ext4 decides what is lost.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

from .block_device import Replay, copy_sparse, make_ext4, marks_of, mounted_ext4, remembering_disk
from .block_server import WRITE, Record, read_log
from .power_cut import REPOSITORY, Inspect, Job, Report
from .workload import Expectation, generate


class BlockRecorded:
    """A workload that ran once on a remembering disk.

    Args:
        job: what to run.
        scratch: an empty directory for images and mount points.
        prepare: makes the store in a directory.
    """

    def __init__(self, job: Job, scratch: Path, prepare: Callable[[Path], None]) -> None:
        self.root = scratch / "mount" / "store"
        self.expectation = Expectation(generate(job.workload, job.seed, job.steps))
        self._scratch = scratch
        self._base = scratch / "base"
        image, served, log = scratch / "image", scratch / "served", scratch / "log"
        served.mkdir()
        self.root.parent.mkdir()
        make_ext4(image)
        with mounted_ext4(image, self.root.parent):
            self.root.mkdir()
            prepare(self.root)
        copy_sparse(image, self._base)
        with remembering_disk(image, served, log), mounted_ext4(served / "disk", self.root.parent):
            subprocess.run(job.command(self.root, served / "marks"), cwd=REPOSITORY, check=True)
            end = log.stat().st_size
        os.truncate(log, end)  # unmounting writes too
        self.records: list[Record] = read_log(log)

    def check(self, inspect: Inspect, *, seeds: int = 1, every: int = 1) -> Report:
        """Cut after each write and each promise, and inspect what is left.

        Args:
            inspect: opens the store.
            seeds: so many states per cut in which chance drops and tears what was not flushed, besides the whole one.
            every: cut at each so many of these points only.
        """
        report = Report()
        replay = Replay(self._base, self.records)
        marks = marks_of(self.records)
        points = [n + 1 for n, record in enumerate(self.records) if record.kind == WRITE]
        points += [mark.position + 1 for mark in marks if self.expectation.is_promise(mark)]
        for count in sorted(points)[::every]:
            if report.is_hopeless:
                break
            report.points += 1
            survivors = self.expectation.bounds(marks, count)
            for seed in range(seeds + 1):
                chance = random.Random(f"{count} {seed}") if seed else None
                image = self._scratch / "cut"
                if not replay.image(count, image, chance) and seed:
                    continue  # nothing was lost: the same as before
                where = f"cut after write {count}, seed {seed}"
                with mounted_ext4(image, self.root.parent):
                    report.inspected(inspect, self.root, self.expectation, survivors, where)
        return report
