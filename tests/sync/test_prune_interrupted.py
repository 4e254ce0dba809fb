"""Prunes and syncs that end at any request, or meet at any request: the remote never shows an incomplete snapshot."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from remotes.faults import Fail, FailAfter
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads
from sync.pruning import DAY_NS, LAST, START_NS, WEEK_NS, Machine, kinds, synced_machine
from vaultfs.errors import RemoteUnreachableError, UsageError, VaultError, VaultLockedError
from vaultfs.sync.download import heads
from vaultfs.sync.keep_policy import KeepPolicy
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.upload import TargetOutcome
from vaultfs.sync.verify import verify

LOST = RemoteUnreachableError("the line is cut")


class Killed(BaseException):
    """As if the process ended here: nobody may handle it."""


def at_request(machine: Machine, number: int, act: Callable[[], object]) -> None:
    """Do something before the n-th request from now; the remote is looked at before each."""
    count = 0
    lock = threading.Lock()

    def before(_operation: str, _key: str) -> None:
        nonlocal count
        with lock:
            count += 1
            is_now = count == number
        require_complete_heads(machine.memory)
        if is_now:
            act()

    machine.store.before = before


def killed() -> None:
    raise Killed


def both_phases(machine: Machine) -> None:
    machine.prune()
    machine.prune(now_ns=START_NS + WEEK_NS)


def require_pruned(machine: Machine) -> None:
    """Nothing is left over but marks, of which the next deletion leaves one."""
    found = kinds(machine.memory)
    assert found.pop("heads/swept") <= 3
    assert found == {"vault.json": 1, "segments": 3, "heads": 1}


def requests_of_both_phases(scratch: Path) -> int:
    machine = synced_machine(scratch)
    machine.store.requests.clear()
    both_phases(machine)
    return len(machine.store.requests)


def test_killed_at_any_request(scratch: Path) -> None:
    count = requests_of_both_phases(scratch / "count")
    assert count > 15
    for number in range(1, count + 1):
        machine = synced_machine(scratch / str(number))
        at_request(machine, number, killed)
        with pytest.raises(Killed):
            both_phases(machine)
        at_request(machine, 0, killed)
        both_phases(machine)
        require_pruned(machine)
        before = dict(machine.memory.objects)
        machine.require_synced()
        assert machine.memory.objects == before
        assert verify(machine.memory, read_share=1.0).problems == []


@pytest.mark.parametrize("fault", [Fail, FailAfter])
def test_a_failure_at_any_request(scratch: Path, fault: type[Fail | FailAfter]) -> None:
    count = requests_of_both_phases(scratch / "count")
    for number in range(count):
        machine = synced_machine(scratch / str(number))
        machine.store.add(fault(LOST, skip=number))
        with pytest.raises(VaultError):
            both_phases(machine)
        machine.store.heal()
        machine.require_synced()
        machine.prune(now_ns=START_NS)
        machine.prune(now_ns=START_NS + WEEK_NS)
        require_pruned(machine)
        assert verify(machine.memory, read_share=1.0).problems == []


def prepared(scratch: Path, *, is_taken_in: bool) -> tuple[Machine, Machine]:
    """One machine has given up the first segment; the vault needs it again; the other is about to sync."""
    machine = synced_machine(scratch)
    other = Machine(machine.vault, machine.memory, scratch / "other state")
    other.require_synced()
    machine.prune()
    if is_taken_in:
        other.require_synced()
    machine.vault.snapshot(next(iter(machine.vault.segments)), machine.vault.segment())
    return machine, other


@pytest.mark.parametrize("is_taken_in", [False, True])
def test_a_prune_at_any_request_of_a_sync(scratch: Path, is_taken_in: bool) -> None:
    _, other = prepared(scratch / "count", is_taken_in=is_taken_in)
    other.store.requests.clear()
    other.require_synced()
    count = len(other.store.requests)
    refused = 0
    for number in range(1, count + 1):
        machine, other = prepared(scratch / str(number), is_taken_in=is_taken_in)
        at_request(other, number, lambda machine=machine: machine.prune(LAST, now_ns=START_NS + WEEK_NS))  # type: ignore[misc]
        refused += not other.sync().is_up_to_date
        other.require_synced()
        require_newest(machine)
    assert refused <= 3


def test_a_sync_at_any_request_of_a_prune(scratch: Path) -> None:
    machine, _ = prepared(scratch / "count", is_taken_in=False)
    machine.store.requests.clear()
    machine.prune(now_ns=START_NS + WEEK_NS)
    count = len(machine.store.requests)
    refused = 0
    for number in range(1, count + 1):
        machine, other = prepared(scratch / str(number), is_taken_in=False)
        outcomes: list[TargetOutcome] = []
        at_request(machine, number, lambda other=other, outcomes=outcomes: outcomes.append(other.sync()))  # type: ignore[misc]
        machine.prune(now_ns=START_NS + WEEK_NS)
        refused += not outcomes[0].is_up_to_date
        other.require_synced()
        require_newest(machine)
    assert 0 < refused < count


def require_newest(machine: Machine) -> None:
    """The newest snapshot of the vault is on the remote, whole."""
    assert verify(machine.memory, read_share=1.0).problems == []
    newest = list_manifests(machine.vault.layout)[-1]
    assert newest.hash in {head.hash for head in heads(machine.memory)}


class Machines(RuleBasedStateMachine):
    """Two machines with ledgers of their own sync and prune one remote, and are killed at times.

    A sync takes no longer than the grace period, as documented: time passes between the rules only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = time.time_ns()  # syncs ask the clock; here it stands still, and prunes are told that it moves

    @initialize()
    def begin(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(dir="/dev/shm"))
        vault = Fabricated(self.scratch / "vault")
        self.memory = MemoryStore("memory:one")
        self.machines = [Machine(vault, self.memory, self.scratch / f"state {number}") for number in range(2)]
        self.vault = vault
        vault.snapshot(vault.segment(50))

    @rule(old=st.lists(st.integers(0, 30), max_size=4), new=st.integers(0, 2))
    def snapshot(self, old: list[int], new: int) -> None:
        known = list(self.vault.segments)
        chosen = dict.fromkeys(known[number % len(known)] for number in old)
        self.vault.snapshot(*chosen, *(self.vault.segment(50) for _ in range(new)))

    @rule(number=st.integers(0, 9))
    def delete(self, number: int) -> None:
        found = list_manifests(self.vault.layout)
        if len(found) > 1:
            self.vault.path_of(found[number % (len(found) - 1)]).unlink()

    @rule(days=st.sampled_from([1, 3, 7, 30]))
    def time_passes(self, days: int) -> None:
        self.now_ns += days * DAY_NS

    @rule(who=st.integers(0, 1), kill_at=st.integers(0, 12))
    def sync(self, who: int, kill_at: int) -> None:
        self._run(who, kill_at, lambda machine: machine.sync())

    @rule(who=st.integers(0, 1), kill_at=st.integers(0, 12), last=st.integers(0, 3))
    def prune(self, who: int, kill_at: int, last: int) -> None:
        self._run(who, kill_at, lambda machine: self._prune(machine, last))

    @rule(who=st.integers(0, 1), when=st.integers(1, 14), last=st.integers(0, 3))
    def prune_during_a_sync(self, who: int, when: int, last: int) -> None:
        at_request(self.machines[who], when, lambda: self._prune(self.machines[1 - who], last))
        self.machines[who].sync()
        at_request(self.machines[who], 0, killed)

    @rule(who=st.integers(0, 1), when=st.integers(1, 14), last=st.integers(0, 3))
    def sync_during_a_prune(self, who: int, when: int, last: int) -> None:
        at_request(self.machines[who], when, self.machines[1 - who].sync)
        self._prune(self.machines[who], last)
        at_request(self.machines[who], 0, killed)

    @rule(who=st.integers(0, 1), when=st.integers(1, 14), last=st.integers(0, 3))
    def sync_after_a_prune_during_a_prune(self, who: int, when: int, last: int) -> None:
        slow, quick = self.machines[who], self.machines[1 - who]

        def meanwhile() -> None:
            self._prune(quick, last)
            known = list(self.vault.segments)
            self.vault.snapshot(*dict.fromkeys((known[0], known[-1])))
            quick.sync()

        at_request(slow, when, meanwhile)
        self._prune(slow, last)
        at_request(slow, 0, killed)

    def _prune(self, machine: Machine, last: int) -> None:
        try:
            machine.prune(KeepPolicy(last=last), now_ns=self.now_ns)
        except UsageError as error:
            assert "no vault" in str(error) or "no snapshot" in str(error)  # noqa: PT017  # which one is meant
        except VaultLockedError:  # another one deletes, or was killed less than a day ago
            pass

    def _run(self, who: int, kill_at: int, act: Callable[[Machine], object]) -> None:
        machine = self.machines[who]
        at_request(machine, kill_at, killed)
        with contextlib.suppress(Killed):
            act(machine)
        at_request(machine, 0, killed)

    @invariant()
    def snapshots_are_complete(self) -> None:
        if hasattr(self, "memory"):
            require_complete_heads(self.memory)

    def teardown(self) -> None:
        if not hasattr(self, "memory"):
            return
        self.now_ns += 40 * DAY_NS
        # Prunes finish what was interrupted, and then both can sync, and nothing is left over.
        for _ in range(2):
            for machine in self.machines:
                self._prune(machine, 1)
            self.now_ns += 40 * DAY_NS
        for machine in self.machines:
            machine.require_synced()
        assert verify(self.memory, read_share=1.0).problems == []
        self._prune(self.machines[0], 1)
        self.now_ns += 40 * DAY_NS
        self._prune(self.machines[0], 1)
        assert set(kinds(self.memory)) <= {"vault.json", "segments", "heads", "heads/swept"}
        require_newest(self.machines[0])
        shutil.rmtree(self.scratch)


TestMachines = Machines.TestCase
TestMachines.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
