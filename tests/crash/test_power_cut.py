"""Power cuts: whatever the disk kept of what was not synced, the vault opens in the state of one moment.

The default run makes some two thousand states at more than 500 points, some of them by a second cut while the vault
recovers from the first: all states just before, at and just after a sync, and of the others always the same third.
``--long`` takes all of them, longer workloads, and more seeds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .block_power_cut import BlockRecorded
from .invariants import inspect_vault
from .power_cut import Cut, Job, Recorded
from .report import Report
from .simulated_disk import Loss
from .vault_store import prepare_vault
from .workload import STEPS

SAMPLED_EVERY = 3
"""Of the states that are next to no sync the default run inspects only so many-th; it catches all mutants so."""

pytestmark = [pytest.mark.usefixtures("small_vaults"), pytest.mark.timeout(3600)]


@pytest.mark.parametrize("workload", sorted(STEPS))
def test_every_recorded_write(scratch: Path, root: Path, workload: str, long_run: bool) -> None:
    prepare_vault(root)
    job = Job("vault", workload, 7 if long_run else 1, 100 if long_run else 16)
    report = Recorded(job, scratch, root).check(
        inspect_vault, seeds=4 if long_run else 1, every=1 if long_run else SAMPLED_EVERY
    )
    report.verify(least_points=300 if long_run else 140)


@pytest.mark.root
@pytest.mark.parametrize("workload", sorted(STEPS))
def test_every_write_below_ext4(scratch: Path, workload: str, long_run: bool) -> None:
    job = Job("vault", workload, 8 if long_run else 2, 100 if long_run else 20)
    report = BlockRecorded(job, scratch, prepare_vault).check(inspect_vault, seeds=3 if long_run else 1)
    report.verify(least_points=100 if long_run else 30)


def leaves_a_segment_open(cut: Cut) -> bool:
    """Whether recovery finds a segment with something in it, which it has to seal or to drop."""
    return any(content and b"segments/open/" in path for path, (_, content) in cut.state.tree.items())


def telling(cuts: list[Cut]) -> list[Cut]:
    """The first cut and the last, and one for each promise: in the middle of those that leave most to recovery."""
    by_promise: dict[int, list[Cut]] = {}
    for cut in cuts:
        by_promise.setdefault(cut.survivors.start, []).append(cut)
    found = [[cut for cut in each if leaves_a_segment_open(cut)] or each for each in by_promise.values()]
    return [cuts[0], *(each[len(each) // 2] for each in found), cuts[-1]]


def test_second_cut_while_recovering(scratch: Path, root: Path, long_run: bool) -> None:
    """The state after the first cut is opened, as by a mount; power fails at every write of that too."""
    prepare_vault(root)
    first = Recorded(Job("vault", "sessions", 3, 40 if long_run else 20), scratch, root)
    cuts = list(first.cuts([Loss.NOTHING, Loss.EVERYTHING], 1))
    report = Report()
    for cut in [*telling(cuts), *cuts[:: len(cuts) // 60]] if long_run else telling(cuts)[::2]:
        report.add(first.again(scratch, cut).check(inspect_vault, every=1 if long_run else SAMPLED_EVERY))
        if report.is_hopeless:
            break
    report.verify(least_points=100)
