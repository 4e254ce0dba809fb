"""Two copies of a vault that both went on: refused, and then side by side on one remote if a person wishes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from remotes.faults import Fail

from sync.fabricated import Fabricated
from sync.pruning import START_NS, WEEK_NS, Machine, kinds, prune_by_url, synced_machine
from vaultfs.errors import ForkedError, RemoteUnreachableError, UsageError
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import choose_head, fetch, find_head, heads
from vaultfs.sync.keep_policy import KeepPolicy
from vaultfs.sync.listing import list_snapshots
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.upload import sync
from vaultfs.sync.verify import verify


def copy_of(machine: Machine, scratch: Path) -> Machine:
    """Another machine with a copy of the vault as it is now, and no ledger."""
    scratch.mkdir(exist_ok=True)
    vault = Fabricated(scratch / "copy", seed=99)
    shutil.rmtree(vault.layout.root)
    shutil.copytree(machine.vault.layout.root, vault.layout.root)
    vault.vault_id = machine.vault.vault_id
    vault.seq, vault.previous = machine.vault.seq, machine.vault.previous
    vault.segments = dict(machine.vault.segments)
    return Machine(vault, machine.memory, scratch / "copy state")


@pytest.fixture
def forked(scratch: Path) -> tuple[Machine, Machine]:
    """Ours has made snapshots 4 and 5, theirs 4; theirs was sent first."""
    ours = synced_machine(scratch)
    theirs = copy_of(ours, scratch)
    for _ in range(2):
        ours.vault.snapshot(ours.vault.segment())
    theirs.vault.snapshot(theirs.vault.segment())
    theirs.require_synced()
    return ours, theirs


def test_refused_first(forked: tuple[Machine, Machine]) -> None:
    ours, _ = forked
    before = dict(ours.memory.objects)
    error = ours.sync().error
    assert isinstance(error, ForkedError)
    assert "--adopt" in str(error)
    assert "--fork" in str(error)
    assert ours.memory.objects == before


def test_both_go_on_side_by_side(forked: tuple[Machine, Machine], scratch: Path) -> None:
    ours, theirs = forked
    before = dict(ours.memory.objects)
    ours.require_synced(fork=True)
    assert {key: ours.memory.objects[key] for key in before} == before
    assert [head.seq for head in heads(ours.memory)] == [1, 2, 3, 4, 4, 5]
    assert kinds(ours.memory)["heads/branches"] == 1
    # From now on neither needs to be told again, however often the other goes on.
    assert isinstance(theirs.sync().error, ForkedError)
    theirs.require_synced(fork=True)
    assert kinds(ours.memory)["heads/branches"] == 1
    for _ in range(3):
        for machine in (ours, theirs):
            machine.vault.snapshot(machine.vault.segment())
            machine.require_synced()
    assert verify(ours.memory, read_share=1.0).problems == []
    for machine in (ours, theirs):
        newest = list_manifests(machine.vault.layout)[-1]
        layout = VaultLayout(scratch / f"back {newest.hash[:8]}")
        fetch(machine.memory, layout, choose_head(heads(machine.memory), newest.hash[:12]))
        assert list_manifests(layout) == [newest]
    ours.require_synced()  # it reads the other's newest manifest, once
    ours.store.requests.clear()
    ours.require_synced()
    assert len(ours.store.requests) == 2


def test_nobody_guesses_which_is_the_present(forked: tuple[Machine, Machine]) -> None:
    ours, _ = forked
    ours.require_synced(fork=True)
    with pytest.raises(UsageError, match="side by side"):
        find_head(ours.memory, None)
    assert find_head(ours.memory, "5").seq == 5
    found = list_snapshots(ours.memory, ours.target.ledger.read(ours.store.name))
    assert all(each.is_in_branch for each in found)
    chain = {each.head.hash: each.previous for each in found}
    assert sum(previous == found[2].head.hash for previous in chain.values()) == 2


def test_a_dry_run_of_a_fork_writes_nothing(forked: tuple[Machine, Machine]) -> None:
    ours, _ = forked
    before = dict(ours.memory.objects)
    ledger = ours.target.ledger.path.read_bytes()
    [outcome] = sync(ours.vault.layout, [ours.target], dry_run=True, fork=True)
    assert (outcome.error, outcome.manifests) == (None, 2)
    assert ours.memory.objects == before
    assert ours.target.ledger.path.read_bytes() == ledger
    assert isinstance(ours.sync().error, ForkedError)


def test_without_another_history_a_fork_is_a_sync(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.vault.snapshot(machine.vault.segment())
    machine.require_synced(fork=True)
    assert "heads/branches" not in kinds(machine.memory)


def test_a_fork_that_was_interrupted(forked: tuple[Machine, Machine]) -> None:
    """At any request; the next sync, with or without --fork, is right or refuses."""
    ours, _ = forked
    for number in range(30):
        ours.store.add(Fail(RemoteUnreachableError("the line is cut"), skip=number))
        outcome = ours.sync(fork=True)
        ours.store.heal()
        if outcome.error is None:
            break
        again = ours.sync().error
        assert again is None or isinstance(again, ForkedError)
    else:
        pytest.fail("it never got through")
    ours.require_synced()
    assert kinds(ours.memory)["heads/branches"] == 1


def test_a_third_history_is_refused_again(forked: tuple[Machine, Machine], scratch: Path) -> None:
    ours, theirs = forked
    third = copy_of(theirs, scratch / "third")
    ours.require_synced(fork=True)
    # It goes on from what ours has accepted: that is the same branch.
    third.vault.snapshot(third.vault.segment())
    third.require_synced(fork=True)
    ours.require_synced()
    # Somebody moves our own branch forward.
    fourth = copy_of(ours, scratch / "fourth")
    fourth.vault.snapshot(fourth.vault.segment())
    fourth.require_synced(fork=True)
    assert isinstance(ours.sync().error, ForkedError)


def test_a_prune_leaves_the_other_history_alone(forked: tuple[Machine, Machine]) -> None:
    ours, theirs = forked
    ours.require_synced(fork=True)
    with pytest.raises(UsageError, match="side by side"):
        prune_by_url(ours.memory)
    report = ours.prune(grace_ns=0)
    assert [each.head.seq for each in report.dropped] == [4, 3, 2, 1]
    assert {tuple(each.rules) for each in report.kept} == {("newest", "last"), ("not ours",)}
    assert len(heads(ours.memory)) == 2
    assert verify(ours.memory, read_share=1.0).problems == []
    # The other's is given up by name; then there is one history, and no need to choose.
    [head] = [head for head in heads(ours.memory) if head.hash == list_manifests(theirs.vault.layout)[-1].hash]
    ours.prune(KeepPolicy(), drop=[head.hash[:12]])
    assert "heads/branches" not in kinds(ours.memory)
    ours.prune(KeepPolicy(), now_ns=START_NS + WEEK_NS)
    assert find_head(ours.memory, None).seq == 5
    assert verify(ours.memory, read_share=1.0).problems == []
