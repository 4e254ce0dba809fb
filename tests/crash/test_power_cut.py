"""Power cuts: whatever the disk kept of what was not synced, the vault opens in the state of one moment.

The default run makes several thousand states at more than 500 points, some of them by a second cut while the vault
recovers from the first; ``--long`` takes longer workloads and more seeds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .block_power_cut import BlockRecorded
from .invariants import inspect_vault
from .power_cut import Job, Recorded, Report
from .simulated_disk import Loss
from .vault_store import prepare_vault
from .workload import STEPS

pytestmark = [pytest.mark.usefixtures("small_vaults"), pytest.mark.timeout(3600)]


@pytest.mark.parametrize("workload", sorted(STEPS))
def test_every_recorded_write(scratch: Path, root: Path, workload: str, long_run: bool) -> None:
    prepare_vault(root)
    job = Job("vault", workload, 7 if long_run else 1, 100 if long_run else 16)
    report = Recorded(job, scratch, root).check(inspect_vault, seeds=4 if long_run else 1)
    report.verify(least_points=300 if long_run else 140)


@pytest.mark.root
@pytest.mark.parametrize("workload", sorted(STEPS))
def test_every_write_below_ext4(scratch: Path, workload: str, long_run: bool) -> None:
    job = Job("vault", workload, 8 if long_run else 2, 100 if long_run else 20)
    report = BlockRecorded(job, scratch, prepare_vault).check(inspect_vault, seeds=3 if long_run else 1)
    report.verify(least_points=100 if long_run else 30)


def test_second_cut_while_recovering(scratch: Path, root: Path, long_run: bool) -> None:
    """The state after the first cut is opened, as by a mount; power fails at every write of that too."""
    prepare_vault(root)
    first = Recorded(Job("vault", "sessions", 3, 40 if long_run else 20), scratch, root)
    cuts = list(first.cuts([Loss.NOTHING, Loss.EVERYTHING], 1))
    report = Report()
    for cut in cuts[:: len(cuts) // (60 if long_run else 4)]:
        report.add(first.again(scratch, cut).check(inspect_vault))
        if report.is_hopeless:
            break
    report.verify(least_points=100)
