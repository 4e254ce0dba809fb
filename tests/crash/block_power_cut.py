"""Cuts power at every write that a workload caused on a disk with ext4, and looks at what the journal makes of it.

Where the journal makes the same of two cuts, and the same may have survived, one of them is inspected.

The equivalent of dm-log-writes where there is no device-mapper: the disk is a loop device on a file that block_server
serves and logs.  Nothing is assumed about file systems; the kernel's own ext4 decides what is lost.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from .block_device import Replay, copy_sparse, make_ext4, marks_of, mounted_ext4, remembering_disk
from .block_server import WRITE, Record, read_log
from .power_cut import REPOSITORY, Job
from .report import Inspect, Report
from .sharing import share
from .simulated_disk import UNDURABLE_SUFFIX
from .workload import Expectation, generate


def digest_of(root: Path) -> bytes:
    """Equal for directories in which all names, modes, links and bytes are equal, as `State.digest` is for others."""
    digest = hashlib.blake2b()
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode) and not path.name.endswith(UNDURABLE_SUFFIX.decode()):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(path.readlink())
        digest.update(repr((path.relative_to(root), status.st_mode, status.st_nlink, len(content))).encode())
        digest.update(content)
    return digest.digest()


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
        marks = marks_of(self.records)
        points = [n + 1 for n, record in enumerate(self.records) if record.kind == WRITE]
        points += [mark.position + 1 for mark in marks if self.expectation.is_promise(mark)]
        points = sorted(points)[::every]

        def work(number: int, shares: int, place: Path) -> Report:
            report = Report()
            base, image, mountpoint = place / "base", place / "cut", place / "mount"
            mountpoint.mkdir()
            copy_sparse(self._base, base)
            replay = Replay(base, self.records)
            seen = set()
            # One after the other, not every so many-th: it is neighbours that leave the same.
            for count in points[len(points) * number // shares : len(points) * (number + 1) // shares]:
                survivors = self.expectation.bounds(marks, count)
                for seed in range(seeds + 1):
                    chance = random.Random(f"{count} {seed}") if seed else None
                    if not replay.image(count, image, chance) and seed:
                        continue  # nothing was lost: the same as before
                    where = f"cut after write {count}, seed {seed}"
                    with mounted_ext4(image, mountpoint):
                        store = mountpoint / self.root.name
                        key = (digest_of(store), survivors)
                        if key not in seen:
                            seen.add(key)
                            report.inspected(inspect, store, self.expectation, survivors, where)
                if report.is_hopeless:
                    break
            return report

        report = share(work, self._scratch)
        report.points = len(points)
        return report
