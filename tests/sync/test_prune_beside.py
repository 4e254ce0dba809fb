"""Prunes of several machines at once, clones that have not everything, clocks that are wrong, and hostile notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sync.pruning import DAY_NS, LAST, START_NS, WEEK_NS, Machine, kinds, stored_segments, synced_machine
from sync.test_prune_interrupted import at_request, killed, require_newest
from vaultfs.errors import VaultLockedError
from vaultfs.ids import SegmentName
from vaultfs.sync.condemned import put_spare
from vaultfs.sync.keep_policy import KeepPolicy

NEVER = 0
RIPE_NS = START_NS + WEEK_NS


def names(machine: Machine) -> list[SegmentName]:
    return list(machine.vault.segments)


def three(scratch: Path) -> tuple[Machine, Machine, Machine]:
    """Two that are about to delete the first and third segment, and one whose next snapshot needs them again."""
    machine = synced_machine(scratch)
    others = [Machine(machine.vault, machine.memory, scratch / f"state {number}") for number in (1, 2)]
    for other in others:
        other.require_synced()
    machine.prune()
    return machine, others[0], others[1]


def test_two_prunes_and_a_sync_at_any_request(scratch: Path) -> None:
    """One prune stands still; another does everything, and a sync sends anew what the first may still delete."""
    machine, _, _ = three(scratch / "count")
    machine.store.requests.clear()
    machine.prune(now_ns=RIPE_NS)
    refused = 0
    for number in range(1, len(machine.store.requests) + 1):
        slow, quick, third = three(scratch / str(number))

        def meanwhile(quick: Machine = quick, third: Machine = third) -> None:
            nonlocal refused
            try:
                quick.prune(KeepPolicy(), now_ns=RIPE_NS)
            except VaultLockedError:
                refused += 1
            third.vault.snapshot(names(third)[0], names(third)[2])  # on its machine: the prunes do not see it
            third.sync()

        at_request(slow, number, meanwhile)
        try:
            slow.prune(KeepPolicy(), now_ns=RIPE_NS)
        except VaultLockedError:
            refused += 1
        at_request(slow, NEVER, killed)
        third.require_synced()
        require_newest(third)
    assert refused


def test_unfilled_clone(scratch: Path) -> None:
    machine = synced_machine(scratch)
    first, _, third, _, _ = names(machine)
    machine.vault.layout.sealed_path(third).unlink()
    machine.prune()
    machine.prune(KeepPolicy(), now_ns=RIPE_NS)
    assert third in stored_segments(machine)
    assert first not in stored_segments(machine)


def test_spare_slow_clock(scratch: Path) -> None:
    machine = synced_machine(scratch)
    first = names(machine)[0]
    machine.prune()
    put_spare(machine.memory, machine.vault.vault_id, 0, [first])
    machine.prune(KeepPolicy(), now_ns=RIPE_NS)
    assert first in stored_segments(machine)
    print(kinds(machine.memory), DAY_NS, LAST, pytest)
