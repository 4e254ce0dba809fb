"""Prunes: two phases, what stays, what is protected, and what refuses to be pruned."""

from __future__ import annotations

import json
from pathlib import Path

import blake3
import pytest
from remotes.faults import ChangeBody, ChangeList, Fail, FaultyStore, LosePut, flip, invent, omit
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads, require_same, small_vault
from sync.pruning import (
    DAY_NS,
    LAST,
    START_NS,
    WEEK_NS,
    Machine,
    kinds,
    prune_by_url,
    stored_segments,
    synced_machine,
)
from vaultfs.errors import (
    FormatTooNewError,
    IntegrityError,
    ObjectMissingError,
    RemoteUnreachableError,
    UsageError,
    VaultLockedError,
)
from vaultfs.ids import SegmentName
from vaultfs.remotes.store import ObjectInfo
from vaultfs.sync.condemned import Record, put_record, put_spare
from vaultfs.sync.download import choose_head, heads
from vaultfs.sync.keep_policy import KeepPolicy
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.remote_layout import head_key, segment_key
from vaultfs.sync.upload import missing
from vaultfs.sync.verify import verify


def names(machine: Machine) -> list[SegmentName]:
    return list(machine.vault.segments)


def sweep(machine: Machine, **options: int) -> None:
    machine.prune(KeepPolicy(), **({"now_ns": START_NS + WEEK_NS} | options))  # type: ignore[arg-type]


# --- the two phases


def test_the_first_phase_deletes_nothing(scratch: Path) -> None:
    machine = synced_machine(scratch)
    before = dict(machine.memory.objects)
    report = machine.prune()
    assert {key: machine.memory.objects[key] for key in before} == before
    assert kinds(machine.memory) == {"vault.json": 1, "segments": 5, "heads": 3, "heads/condemned": 1}
    assert [each.head.seq for each in report.kept] == [3]
    assert [each.head.seq for each in report.dropped] == [2, 1]
    assert report.condemned_segments == 2
    first, third = names(machine)[0], names(machine)[2]
    assert report.condemned_bytes == len(machine.vault.segments[first]) + len(machine.vault.segments[third])
    assert report.deleted_segments == report.deleted_snapshots == 0
    assert [each.due_ns for each in report.waiting] == [START_NS + WEEK_NS]
    assert not any(operation == "delete" for operation, _ in machine.memory.requests)
    # What was dropped can still be restored.
    assert verify(machine.memory, read_share=1.0).problems == []
    require_same(machine.vault, machine.memory, scratch / "back")


def test_the_second_phase_deletes_what_nothing_needs(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.prune()
    early = machine.prune(now_ns=START_NS + WEEK_NS - 1)
    assert (early.deleted_segments, early.dropped, early.condemned_segments) == (0, [], 0)
    assert len(early.waiting) == 1
    report = machine.prune(now_ns=START_NS + WEEK_NS)
    assert (report.deleted_snapshots, report.deleted_segments) == (2, 2)
    assert report.waiting == []
    assert kinds(machine.memory) == {"vault.json": 1, "segments": 3, "heads": 1, "heads/swept": 1}
    _, second, _, fourth, fifth = names(machine)
    assert stored_segments(machine) == {second, fourth, fifth}
    assert verify(machine.memory, read_share=1.0).problems == []
    # And then there is nothing to do; one mark stays, for machines that have not heard of it.
    again = machine.prune(now_ns=START_NS + 3 * WEEK_NS)
    assert (again.dropped, again.condemned_segments, again.deleted_segments, again.waiting) == ([], 0, 0, [])
    assert kinds(machine.memory)["heads/swept"] == 1


def test_without_grace_one_run_does_both(scratch: Path) -> None:
    machine = synced_machine(scratch)
    report = machine.prune(grace_ns=0)
    assert (len(report.dropped), report.deleted_snapshots, report.deleted_segments) == (2, 2, 2)
    assert kinds(machine.memory) == {"vault.json": 1, "segments": 3, "heads": 1, "heads/swept": 1}


def test_without_rules_all_snapshots_stay(scratch: Path) -> None:
    machine = synced_machine(scratch)
    report = machine.prune(KeepPolicy(), grace_ns=0)
    assert len(report.kept) == 3
    assert all(each.rules == ["no rule"] for each in report.kept)
    assert kinds(machine.memory) == {"vault.json": 1, "segments": 5, "heads": 3}


def test_requests_of_a_prune_with_nothing_to_do(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.store.requests.clear()
    machine.prune(KeepPolicy(last=9))
    assert sorted(machine.store.requests) == [("get", "vault.json"), ("list", "heads/"), ("list", "segments/")]


def test_what_was_dropped_is_not_sent_again(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.prune()
    for now_ns in (START_NS, START_NS + WEEK_NS):
        machine.prune(now_ns=now_ns)
        before = dict(machine.memory.objects)
        machine.require_synced()
        assert machine.memory.objects == before
        assert missing(machine.vault.layout, machine.target).is_nothing
    # A new one is sent, and needs nothing that is gone.
    machine.vault.snapshot(names(machine)[1], machine.vault.segment())
    machine.require_synced()
    assert [head.seq for head in heads(machine.memory)] == [3, 4]


def test_the_newest_stays_due_even_if_somebody_gives_it_up(scratch: Path) -> None:
    """A remote that claims that the newest snapshot was dropped does not keep it from being sent."""
    machine = synced_machine(scratch)
    newest = choose_head(heads(machine.memory), None)
    put_record(machine.memory, Record(machine.vault.vault_id, START_NS, (newest,), {}))
    machine.sync()
    del machine.memory.objects[head_key(newest)]
    machine.require_synced()
    assert head_key(newest) in machine.memory.objects


def test_one_snapshot_by_its_number(scratch: Path) -> None:
    machine = synced_machine(scratch)
    report = machine.prune(KeepPolicy(), drop=["2"], grace_ns=0)
    assert [each.head.seq for each in report.dropped] == [2]
    assert report.deleted_segments == 1
    assert [head.seq for head in heads(machine.memory)] == [1, 3]
    with pytest.raises(UsageError, match="newest"):
        machine.prune(drop=["3"])
    with pytest.raises(UsageError, match="no snapshot '7'"):
        machine.prune(drop=["7"])


def test_a_dry_run_changes_nothing(scratch: Path) -> None:
    machine = synced_machine(scratch)
    for now_ns in (START_NS, START_NS + WEEK_NS):
        before = dict(machine.memory.objects)
        ledger = machine.target.ledger.path.read_bytes()
        dry = machine.prune(now_ns=now_ns, dry_run=True)
        assert machine.memory.objects == before
        assert machine.target.ledger.path.read_bytes() == ledger
        assert machine.prune(now_ns=now_ns) == dry


def test_a_sync_and_a_prune_of_one_machine_wait_for_each_other(scratch: Path) -> None:
    machine = synced_machine(scratch)
    with machine.target.ledger.locked(machine.store.name), pytest.raises(VaultLockedError):
        machine.prune()


# --- what is protected


def test_what_an_interrupted_sync_left_goes_too(scratch: Path) -> None:
    machine = synced_machine(scratch)
    orphan = machine.vault.segment()
    machine.memory.objects[segment_key(orphan)] = machine.vault.segments[orphan]
    report = machine.prune(KeepPolicy())
    assert report.condemned_segments == 1
    sweep(machine)
    assert segment_key(orphan) not in machine.memory.objects


def test_what_a_snapshot_needs_that_is_still_to_be_sent_stays(scratch: Path) -> None:
    machine = synced_machine(scratch)
    early = machine.vault.segment()
    machine.vault.snapshot(early)
    machine.memory.objects[segment_key(early)] = machine.vault.segments[early]
    assert machine.prune(KeepPolicy()).condemned_segments == 0
    # Also if it was no part of any snapshot when it was given up.
    later = machine.vault.segment()
    machine.memory.objects[segment_key(later)] = machine.vault.segments[later]
    assert machine.prune(KeepPolicy()).condemned_segments == 1
    machine.vault.snapshot(later)
    sweep(machine)
    assert segment_key(later) in machine.memory.objects


def test_a_segment_that_is_needed_again(scratch: Path) -> None:
    """Data that came back by deduplication: the segment is condemned, and a new snapshot needs it."""
    machine = synced_machine(scratch)
    machine.prune()
    first = names(machine)[0]
    machine.vault.snapshot(first, names(machine)[1])
    machine.require_synced()
    assert "heads/spared" not in kinds(machine.memory)
    sweep(machine)
    assert first in stored_segments(machine)
    assert verify(machine.memory, read_share=1.0).problems == []


def test_a_segment_that_is_needed_again_after_it_was_deleted(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.prune()
    sweep(machine)
    machine.vault.snapshot(*names(machine))
    machine.require_synced()
    assert stored_segments(machine) == set(names(machine))


def test_a_machine_that_no_longer_has_the_snapshots(scratch: Path) -> None:
    """So that it does not miss them on the remote; only the mark tells it that something was deleted."""
    machine = synced_machine(scratch)
    other = Machine(machine.vault, machine.memory, scratch / "other state")
    other.require_synced()
    for manifest in list_manifests(machine.vault.layout)[:-1]:
        machine.vault.path_of(manifest).unlink()
    machine.prune()
    sweep(machine)
    machine.vault.snapshot(*names(machine))
    other.require_synced()
    assert stored_segments(machine) == set(names(machine))


@pytest.mark.parametrize("is_swept", [False, True])
def test_another_machine_relied_on_it(scratch: Path, is_swept: bool) -> None:
    """Its ledger says that the segment is there."""
    machine = synced_machine(scratch)
    other = Machine(machine.vault, machine.memory, scratch / "other state")
    other.require_synced()
    machine.prune()
    if is_swept:
        sweep(machine)
    first = names(machine)[0]
    machine.vault.snapshot(first, names(machine)[1])
    other.require_synced()
    sweep(machine, now_ns=START_NS + 2 * WEEK_NS)
    assert first in stored_segments(machine)
    assert verify(machine.memory, read_share=1.0).problems == []
    other.require_synced()  # it lists everything, if something was deleted since it looked last
    other.store.requests.clear()
    other.require_synced()
    assert len(other.store.requests) == 2


def test_a_listing_does_not_bring_trust_back(scratch: Path) -> None:
    """A machine that lists everything while a record waits must not believe what it finds of it later."""
    machine = synced_machine(scratch)
    machine.prune()
    other = Machine(machine.vault, machine.memory, scratch / "other state")
    other.require_synced()  # its first: it lists
    sweep(machine)
    machine.vault.snapshot(names(machine)[0])
    other.require_synced()
    assert names(machine)[0] in stored_segments(machine)


def test_a_sync_meets_a_prune_that_deletes(scratch: Path) -> None:
    machine = synced_machine(scratch)
    other = Machine(machine.vault, machine.memory, scratch / "other state")
    other.require_synced()
    machine.prune()
    machine.store.add(Fail(RemoteUnreachableError("the line is cut"), "delete"))
    with pytest.raises(RemoteUnreachableError):
        sweep(machine)
    assert (kinds(machine.memory)["heads/swept"], kinds(machine.memory)["heads/condemned"]) == (2, 1)
    machine.vault.snapshot(names(machine)[0])
    before = dict(machine.memory.objects)
    error = other.sync().error
    assert "vaultfs prune" in str(error)
    assert machine.memory.objects == before
    # What needs nothing of it is not kept from being sent; and after the prune's end all is well.
    for manifest in list_manifests(machine.vault.layout)[-1:]:
        machine.vault.path_of(manifest).unlink()
    machine.vault.snapshot(machine.vault.segment())
    other.require_synced()
    machine.vault.snapshot(names(machine)[0])
    sweep(machine)
    other.require_synced()
    assert verify(machine.memory, read_share=1.0).problems == []


def test_a_spare_of_a_sync_that_never_ended(scratch: Path) -> None:
    machine = synced_machine(scratch)
    first = names(machine)[0]
    machine.prune()
    put_spare(machine.memory, machine.vault.vault_id, START_NS, [first])
    sweep(machine)
    assert first in stored_segments(machine)
    assert names(machine)[2] not in stored_segments(machine)
    # It is an orphan now, and given up again; after a month the spare protects it once more, and then it is forgotten.
    machine.prune(now_ns=START_NS + 8 * DAY_NS)
    machine.prune(now_ns=START_NS + 31 * DAY_NS)
    assert first in stored_segments(machine)
    assert "heads/spared" not in kinds(machine.memory)
    machine.prune(now_ns=START_NS + 32 * DAY_NS)
    machine.prune(now_ns=START_NS + 39 * DAY_NS)
    assert first not in stored_segments(machine)
    assert "heads/spared" not in kinds(machine.memory)


# --- listings that lie, and other wrong things


def test_a_snapshot_that_the_listing_leaves_out(scratch: Path) -> None:
    """The ledger knows it."""
    machine = synced_machine(scratch)
    left_out = [head_key(head) for head in heads(machine.memory) if head.seq != 2]
    machine.store.add(ChangeList(omit(*left_out), "heads/", times=None))
    report = machine.prune(KeepPolicy(last=9), grace_ns=0)
    assert [each.head.seq for each in report.kept] == [3, 2, 1]
    assert stored_segments(machine) == set(names(machine))


def test_a_snapshot_that_the_listing_leaves_out_and_no_ledger_knows(scratch: Path) -> None:
    """The next one names it."""
    machine = synced_machine(scratch)
    store = FaultyStore(machine.memory)
    store.add(
        ChangeList(omit(*(head_key(head) for head in heads(machine.memory) if head.seq != 3)), "heads/", times=None)
    )
    report = prune_by_url(store, KeepPolicy(last=9), grace_ns=0)
    assert [each.head.seq for each in report.kept] == [3, 2, 1]
    assert stored_segments(machine) == set(names(machine))


def test_a_listing_that_comes_too_late(scratch: Path) -> None:
    """A snapshot that shows only at the second look, after the mark."""
    machine = synced_machine(scratch)
    machine.prune(KeepPolicy(last=1))
    machine.vault.snapshot(names(machine)[0])
    seen = 0

    def late(operation: str, key: str) -> None:
        nonlocal seen
        if key.startswith("heads/swept/") and operation == "put" and not seen:
            seen = 1
            # Not by a sync, which would see the mark: by a machine that knows nothing of prunes.
            [newest] = [each for each in list_manifests(machine.vault.layout) if each.seq == 4]
            data = machine.vault.path_of(newest).read_bytes()
            machine.memory.objects[f"heads/{bytes(range(32)).hex()}/{4:010d}-{newest.hash}"] = data
            machine.vault.path_of(newest).unlink()

    machine.store.before = late
    sweep(machine)
    assert seen
    require_complete_heads(machine.memory)
    assert names(machine)[0] in stored_segments(machine)


def test_an_invented_segment(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.store.add(ChangeList(invent(ObjectInfo("segments/ab/" + "ab" * 32, 5)), "segments/", times=None))
    machine.prune(KeepPolicy(last=9), grace_ns=0)
    assert stored_segments(machine) == set(names(machine))


def test_a_manifest_that_cannot_be_read(scratch: Path) -> None:
    machine = synced_machine(scratch)
    key = head_key(heads(machine.memory)[0])
    good = machine.memory.objects[key]
    machine.memory.objects[key] = flip(100)(good)
    before = dict(machine.memory.objects)
    with pytest.raises(IntegrityError, match="snapshot 1"):
        prune_by_url(machine.memory, grace_ns=0)
    assert machine.memory.objects == before
    machine.memory.objects[key] = good
    store = FaultyStore(machine.memory, Fail(ObjectMissingError("gone"), "get", key, times=None))
    with pytest.raises(ObjectMissingError):
        prune_by_url(store, grace_ns=0)
    machine.memory.objects[key] = good
    assert machine.memory.objects == {**before, key: good}


def test_a_damaged_manifest_there_is_read_here(scratch: Path) -> None:
    machine = synced_machine(scratch)
    key = head_key(heads(machine.memory)[-1])
    machine.store.add(ChangeBody(flip(100), key, times=None))
    assert len(machine.prune(KeepPolicy(last=2)).kept) == 2


def test_a_damaged_record(scratch: Path) -> None:
    """It deletes nothing; a sync refuses until a prune has removed it."""
    machine = synced_machine(scratch)
    machine.prune()
    [key] = [key for key in machine.memory.objects if key.startswith("heads/condemned/")]
    machine.memory.objects[key] = machine.memory.objects[key][:-1]
    other = Machine(machine.vault, machine.memory, scratch / "other state")
    error = other.sync().error
    assert isinstance(error, IntegrityError)
    assert "vaultfs prune" in str(error)
    sweep(machine)
    assert key not in machine.memory.objects
    assert len(stored_segments(machine)) == 5
    other.require_synced()


def test_a_record_of_a_newer_vaultfs(scratch: Path) -> None:
    machine = synced_machine(scratch)
    data = json.dumps({"format": 2, "new": True}).encode()
    machine.memory.objects[f"heads/condemned/{blake3.blake3(data).hexdigest()}"] = data
    with pytest.raises(FormatTooNewError):
        machine.prune()
    assert isinstance(machine.sync().error, FormatTooNewError)


def test_a_record_of_another_vault(scratch: Path) -> None:
    machine = synced_machine(scratch)
    record = Record(Fabricated(scratch / "another", 9).vault_id, START_NS, (), dict.fromkeys(names(machine), 1))
    put_record(machine.memory, record)
    sweep(machine)
    assert len(stored_segments(machine)) == 5


def test_a_record_that_names_everything(scratch: Path) -> None:
    """What is needed stays, whoever wrote it."""
    machine = synced_machine(scratch)
    found = heads(machine.memory)
    sizes = {name: len(data) for name, data in machine.vault.segments.items()}
    put_record(machine.memory, Record(machine.vault.vault_id, 0, (), sizes))
    sweep(machine)
    assert len(stored_segments(machine)) == 5
    put_record(machine.memory, Record(machine.vault.vault_id, 0, tuple(found), sizes))
    with pytest.raises((IntegrityError, UsageError), match="no snapshot"):
        sweep(machine)
    assert len(stored_segments(machine)) == 5
    assert heads(machine.memory) == found


def test_a_record_from_the_future_is_dated_anew(scratch: Path) -> None:
    machine = synced_machine(scratch)
    report = machine.prune(now_ns=START_NS + 1000 * WEEK_NS)
    assert report.waiting
    machine.prune(KeepPolicy(), now_ns=START_NS)
    assert kinds(machine.memory)["heads/condemned"] == 1
    sweep(machine, now_ns=START_NS + WEEK_NS)
    assert len(stored_segments(machine)) == 3


def test_an_acknowledged_record_that_was_not_stored(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.store.add(LosePut("heads/condemned/"))
    machine.prune()
    assert "heads/condemned" not in kinds(machine.memory)
    machine.prune()
    sweep(machine)
    assert len(stored_segments(machine)) == 3


def test_another_vault_none_and_an_empty_one(scratch: Path) -> None:
    machine = synced_machine(scratch)
    stranger = Machine(small_vault(scratch / "another", 7), machine.memory, scratch / "other state")
    before = dict(machine.memory.objects)
    with pytest.raises(UsageError, match="another vault"):
        stranger.prune()
    assert machine.memory.objects == before
    with pytest.raises(UsageError, match="no vault"):
        prune_by_url(MemoryStore())
    for head in heads(machine.memory):
        del machine.memory.objects[head_key(head)]
    with pytest.raises(UsageError, match="no snapshot"):
        prune_by_url(machine.memory)


def test_many_segments_make_several_records(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.sync.condemned.MOST_SEGMENTS", 2)
    monkeypatch.setattr("vaultfs.sync.condemned.MOST_HEADS", 1)
    machine = synced_machine(scratch)
    for _ in range(5):
        orphan = machine.vault.segment()
        machine.memory.objects[segment_key(orphan)] = machine.vault.segments[orphan]
    machine.prune(LAST)
    assert kinds(machine.memory)["heads/condemned"] == 4
    sweep(machine)
    assert kinds(machine.memory) == {"vault.json": 1, "segments": 3, "heads": 1, "heads/swept": 1}


def test_a_machine_that_has_heard_of_one_of_two_records(scratch: Path) -> None:
    """The other record was written and carried out since; the marks of both do not hide that."""
    machine = synced_machine(scratch)
    orphan = machine.vault.segment()
    machine.memory.objects[segment_key(orphan)] = machine.vault.segments[orphan]
    machine.prune(KeepPolicy())
    other = Machine(machine.vault, machine.memory, scratch / "other state")
    other.require_synced()
    third = names(machine)[2]
    machine.prune(KeepPolicy(), drop=["2"], grace_ns=0)
    assert not {third, orphan} & stored_segments(machine)
    machine.vault.snapshot(third)
    other.require_synced()
    assert verify(machine.memory, read_share=1.0).problems == []
