"""Prunes of several machines at once, vaults that are not all here, clocks that are wrong, and notes of strangers."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from remotes.faults import ChangeList, Fail, invent, omit
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads, require_same
from sync.pruning import DAY_NS, START_NS, WEEK_NS, Machine, kinds, prune_by_url, stored_segments, synced_machine
from sync.test_prune_interrupted import Killed, at_request, killed, require_newest
from vaultfs.errors import FormatTooNewError, IntegrityError, RemoteError, RemoteUnreachableError, VaultLockedError
from vaultfs.ids import SegmentName
from vaultfs.remotes.store import ObjectInfo
from vaultfs.sync.condemned import Record, put_claim, put_record, put_spare
from vaultfs.sync.download import heads
from vaultfs.sync.keep_policy import KeepPolicy
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.remote_layout import RemoteHead, segment_key
from vaultfs.sync.remote_objects import MOST_NOTES
from vaultfs.sync.verify import verify

NEVER = 0
RIPE_NS = START_NS + WEEK_NS
ALL = KeepPolicy()


def names(machine: Machine) -> list[SegmentName]:
    return list(machine.vault.segments)


def another(machine: Machine, state: Path) -> Machine:
    return Machine(machine.vault, machine.memory, state)


def notes(memory: MemoryStore, kind: str) -> set[str]:
    prefix = f"heads/{kind}/"
    return {key.removeprefix(prefix) for key in memory.objects if key.startswith(prefix)}


# --- one prune at a time deletes


def three(scratch: Path) -> tuple[Machine, Machine, Machine]:
    """Three machines; the first and the third segment are given up, and it is time to delete them."""
    machine = synced_machine(scratch)
    quick, third = another(machine, scratch / "quick"), another(machine, scratch / "third")
    for other in (quick, third):
        other.require_synced()
    machine.prune()
    return machine, quick, third


def test_two_prunes_and_a_sync_at_any_request(scratch: Path) -> None:
    """One prune stands still; another does everything, and a sync sends anew what the first may still delete."""
    machine, _, _ = three(scratch / "count")
    machine.store.requests.clear()
    machine.prune(ALL, now_ns=RIPE_NS)
    refused = 0
    for number in range(1, len(machine.store.requests) + 1):
        slow, quick, third = three(scratch / str(number))

        def meanwhile(quick: Machine = quick, third: Machine = third) -> None:
            nonlocal refused
            try:
                quick.prune(ALL, now_ns=RIPE_NS)
            except VaultLockedError:
                refused += 1
            # On the third machine only, so that the prunes do not see it here.
            third.vault.snapshot(names(third)[0], names(third)[2])
            third.sync()

        at_request(slow, number, meanwhile)
        slow.prune(ALL, now_ns=RIPE_NS)
        at_request(slow, NEVER, killed)
        third.require_synced()
        require_newest(third)
        assert "heads/sweeping" not in kinds(slow.memory)
    assert refused > 4


def test_another_prune_is_deleting(scratch: Path) -> None:
    machine, quick, _ = three(scratch)
    at_request(machine, 11, killed)
    with pytest.raises(Killed):
        machine.prune(ALL, now_ns=RIPE_NS)
    at_request(machine, NEVER, killed)
    assert len(notes(machine.memory, "sweeping")) == 1
    before = dict(machine.memory.objects)
    for day in (0, 0.9):
        with pytest.raises(VaultLockedError, match="tomorrow"):
            quick.prune(ALL, now_ns=RIPE_NS + int(day * DAY_NS))
        with pytest.raises(VaultLockedError):
            prune_by_url(machine.memory, ALL, now_ns=RIPE_NS + int(day * DAY_NS))
        assert machine.memory.objects == before
    # Its own machine knows that it has ended, also after its ledger was written anew; others do after a day.
    with machine.target.ledger.locked(machine.store.name) as opened:
        opened.replace(opened.holdings)
    copied = dict(before)
    machine.prune(ALL, now_ns=RIPE_NS)
    assert kinds(machine.memory) == {"vault.json": 1, "segments": 3, "heads": 1, "heads/swept": 1}
    machine.memory.objects.clear()
    machine.memory.objects.update(copied)
    quick.prune(ALL, now_ns=RIPE_NS + DAY_NS)
    assert kinds(machine.memory) == {"vault.json": 1, "segments": 3, "heads": 1, "heads/swept": 1}


def test_a_claim_is_released_after_a_failure(scratch: Path) -> None:
    machine, quick, _ = three(scratch)
    segment = segment_key(names(machine)[0])
    machine.store.add(Fail(RemoteUnreachableError("the line is cut"), "delete", segment))
    with pytest.raises(RemoteUnreachableError):
        machine.prune(ALL, now_ns=RIPE_NS)
    assert not notes(machine.memory, "sweeping")
    quick.prune(ALL, now_ns=RIPE_NS)
    assert len(stored_segments(machine)) == 3


def test_claims_that_are_left_behind(scratch: Path) -> None:
    """They go although nothing is to be deleted, but for one that may be alive."""
    machine = synced_machine(scratch)
    alive, old, future = (secrets.token_hex(32) for _ in range(3))
    for token, created_ns in ((alive, START_NS), (old, START_NS - DAY_NS), (future, START_NS + 400 * DAY_NS)):
        put_claim(machine.memory, token, machine.vault.vault_id, created_ns)
    machine.prune(ALL)
    left = notes(machine.memory, "sweeping")
    assert alive in left
    assert not {old, future} & left
    machine.prune(ALL, now_ns=START_NS + DAY_NS)
    assert not notes(machine.memory, "sweeping")


def test_a_claim_that_makes_no_sense(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.prune()
    key = "heads/sweeping/" + secrets.token_hex(32)
    for data, error in ((b"{}", IntegrityError), (b'{"format":2}', FormatTooNewError), (bytes(9999), IntegrityError)):
        machine.memory.objects[key] = data
        with pytest.raises(error):
            machine.prune(ALL, now_ns=RIPE_NS)
        assert len(stored_segments(machine)) == 5


def test_a_prune_that_slept_does_not_go_on(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop was closed; another machine's prune has taken its claim for left behind meanwhile."""
    machine, _, _ = three(scratch)
    clock_ns = 0

    def sleep() -> None:
        nonlocal clock_ns
        clock_ns += 13 * 3600 * 10**9

    monkeypatch.setattr("vaultfs.sync.sweep_claim.awake_or_asleep_ns", lambda: clock_ns)
    at_request(machine, 11, sleep)
    with pytest.raises(RemoteError, match="slept"):
        machine.prune(ALL, now_ns=RIPE_NS)
    assert len(stored_segments(machine)) == 5
    at_request(machine, NEVER, killed)
    machine.prune(ALL, now_ns=RIPE_NS)
    assert len(stored_segments(machine)) == 3


def test_a_listing_without_what_was_just_stored(scratch: Path) -> None:
    """Then neither marks nor spares protect anything, and nobody relies on them."""
    machine, _, third = three(scratch)

    def late(infos: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        return [info for info in infos if "/sweeping/" not in info.key and "/spared/" not in info.key]

    machine.store.add(ChangeList(late, "heads/", times=None))
    with pytest.raises(RemoteError, match="does not list"):
        machine.prune(ALL, now_ns=RIPE_NS)
    assert len(stored_segments(machine)) == 5
    third.vault.snapshot(names(third)[0])
    third.store.add(ChangeList(late, "heads/", times=None))
    error = third.sync().error
    assert "does not list" in str(error)
    assert not notes(machine.memory, "spared")


def test_a_record_that_another_prune_has_carried_out(scratch: Path) -> None:
    """Between the look and the claim; what it named was sent again by a sync that has not put its snapshot yet."""
    machine, quick, _ = three(scratch)
    first = names(machine)[0]

    def meanwhile() -> None:
        quick.prune(ALL, now_ns=RIPE_NS)
        machine.memory.objects[segment_key(first)] = machine.vault.segments[first]

    machine.store.requests.clear()
    at_request(machine, 5, meanwhile)
    machine.prune(ALL, now_ns=RIPE_NS)
    assert [operation for operation, _ in machine.store.requests[:5]] == ["get", "list", "get", "list", "put"]
    assert first in stored_segments(machine)


# --- what is only on the remote


def test_what_is_not_on_this_disk_stays(scratch: Path) -> None:
    """A clone that is not filled: its own snapshots need what a rule drops on the remote, and nothing else has it."""
    machine = synced_machine(scratch)
    first, _, third, _, _ = names(machine)
    machine.vault.layout.sealed_path(third).unlink()
    machine.prune()
    machine.prune(ALL, now_ns=RIPE_NS)
    assert third in stored_segments(machine)
    assert first not in stored_segments(machine)
    # Once it is here, or its snapshot is deleted, it goes.
    for manifest in list_manifests(machine.vault.layout)[:-1]:
        machine.vault.path_of(manifest).unlink()
    machine.prune(ALL, now_ns=RIPE_NS)
    machine.prune(ALL, now_ns=RIPE_NS + WEEK_NS)
    assert third not in stored_segments(machine)


def test_what_goes_from_this_disk_after_it_was_given_up(scratch: Path) -> None:
    machine = synced_machine(scratch)
    third = names(machine)[2]
    machine.prune()
    machine.vault.layout.sealed_path(third).unlink()
    machine.prune(ALL, now_ns=RIPE_NS)
    assert third in stored_segments(machine)


def test_what_kept_snapshots_need_stays(scratch: Path) -> None:
    """Those of before `sync --adopt`, in a clone."""
    machine = synced_machine(scratch)
    first, _, third, _, _ = names(machine)
    layout = machine.vault.layout
    layout.kept.mkdir()
    second = list_manifests(layout)[1]
    machine.vault.path_of(second).rename(layout.kept_path(*second))
    layout.sealed_path(third).unlink()
    machine.prune()
    machine.prune(ALL, now_ns=RIPE_NS)
    assert third in stored_segments(machine)
    assert first not in stored_segments(machine)
    path = layout.kept_path(*second)
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="kept snapshot 2"):
        machine.prune(ALL, now_ns=RIPE_NS)


# --- syncs


@pytest.mark.parametrize("clock_ns", [0, RIPE_NS + 1000 * DAY_NS])
def test_a_spare_by_a_wrong_clock(scratch: Path, clock_ns: int) -> None:
    """It protects in one deletion at least, and not for ever."""
    machine = synced_machine(scratch)
    first = names(machine)[0]
    machine.prune()
    put_spare(machine.memory, machine.vault.vault_id, clock_ns, [first])
    machine.prune(ALL, now_ns=RIPE_NS)
    assert first in stored_segments(machine)
    for week in range(1, 14):
        machine.prune(ALL, now_ns=RIPE_NS + week * WEEK_NS)
    assert first not in stored_segments(machine)
    assert not notes(machine.memory, "spared")


def test_a_spare_that_makes_no_sense(scratch: Path) -> None:
    machine = synced_machine(scratch)
    machine.prune()
    machine.memory.objects["heads/spared/" + secrets.token_hex(32)] = b"?"
    with pytest.raises(IntegrityError, match="nothing was deleted; remove it"):
        machine.prune(ALL, now_ns=RIPE_NS)
    assert len(stored_segments(machine)) == 5


def test_a_deletion_that_ended_before_the_second_look_of_a_sync(scratch: Path) -> None:
    """The sync had sent the segment once before, so it believes that it is there."""
    machine, quick, third = three(scratch)
    first = names(machine)[0]
    third.vault.snapshot(first)
    # An interrupted sync has sent the segment, and its spare was forgotten.
    third.store.add(Fail(RemoteUnreachableError("the line is cut"), "put", "heads/" + bytes(range(32)).hex()))
    assert third.sync().error is not None
    third.store.heal()
    newest = list_manifests(third.vault.layout)[-1]
    path = third.vault.path_of(newest)
    aside = scratch / "aside"

    def meanwhile() -> None:
        for token in notes(machine.memory, "spared"):
            del machine.memory.objects["heads/spared/" + token]
        shutil.move(path, aside)  # the prune is on another machine
        quick.prune(ALL, now_ns=RIPE_NS)
        shutil.move(aside, path)

    third.store.requests.clear()
    at_request(third, 4, meanwhile)
    outcome = third.sync()
    assert [operation for operation, _ in third.store.requests[:4]] == ["get", "list", "get", "put"]
    assert "sync again" in str(outcome.error)
    at_request(third, NEVER, killed)
    third.require_synced()
    require_newest(third)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_prunes_during_a_sync_that_takes_weeks(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    """What it has sent is named by no snapshot yet, so a prune takes it for left behind."""
    machine = synced_machine(scratch)
    other = Machine(Fabricated(scratch / "elsewhere"), machine.memory, scratch / "other")
    shutil.copytree(machine.vault.layout.root, other.vault.layout.root, dirs_exist_ok=True)
    new = machine.vault.segment()
    manifest = machine.vault.snapshot(new)

    def meanwhile() -> None:
        other.prune(ALL)
        if is_deleted:
            other.prune(ALL, now_ns=RIPE_NS)
            assert segment_key(new) not in machine.memory.objects

    machine.store.requests.clear()
    at_request(machine, 5, meanwhile)
    monkeypatch.setattr("vaultfs.sync.prune_watch.LOOK_AGAIN_NS", 0)
    outcome = machine.sync()
    assert machine.store.requests[2][0] == "put"
    assert outcome.is_up_to_date != is_deleted
    assert ("took for days" in str(outcome.error)) == is_deleted
    assert (manifest.hash in {head.hash for head in heads(machine.memory)}) != is_deleted
    require_complete_heads(machine.memory)
    other.prune(ALL, now_ns=RIPE_NS + WEEK_NS)
    require_complete_heads(machine.memory)
    at_request(machine, NEVER, killed)
    machine.require_synced()
    require_newest(machine)


def test_a_record_that_is_gone_when_it_is_read(scratch: Path) -> None:
    machine, quick, third = three(scratch)
    at_request(third, 3, lambda: quick.prune(ALL, now_ns=RIPE_NS))
    error = third.sync().error
    assert "sync again" in str(error)
    at_request(third, NEVER, killed)
    third.require_synced()
    assert verify(machine.memory, read_share=1.0).problems == []


# --- strangers


def test_more_notes_than_anybody_leaves(scratch: Path) -> None:
    machine = synced_machine(scratch)
    for number in range(MOST_NOTES + 1):
        machine.memory.objects[f"heads/swept/{number:064x}"] = b"{}"
    with pytest.raises(RemoteError, match="notes in heads/swept/"):
        machine.prune()
    assert "notes in heads/swept/" in str(machine.sync().error)


def test_records_that_name_more_than_there_can_be(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = synced_machine(scratch)
    for number in range(3):
        segments = {SegmentName(f"{number:02x}{count:062x}"): 1 for count in range(50)}
        put_record(machine.memory, Record(machine.vault.vault_id, START_NS, (), segments))
    monkeypatch.setattr("vaultfs.sync.condemned.MOST_OBJECTS", 149)
    with pytest.raises(RemoteError, match="more than 149"):
        machine.prune()
    assert "more than 149" in str(machine.sync().error)
    monkeypatch.setattr("vaultfs.sync.condemned.MOST_OBJECTS", 150)
    machine.prune()
    machine.require_synced()


def test_what_was_given_up_by_mistake_is_taken_back(scratch: Path) -> None:
    """By deleting the note: as documented."""
    machine = synced_machine(scratch)
    machine.prune()
    for digest in notes(machine.memory, "condemned"):
        del machine.memory.objects["heads/condemned/" + digest]
    machine.require_synced()
    report = machine.prune(ALL, now_ns=RIPE_NS)
    assert (len(report.kept), report.dropped, report.condemned_segments, report.deleted_segments) == (3, [], 0, 0)
    machine.require_synced()
    require_same(machine.vault, machine.memory, scratch / "back")


def test_a_remote_that_says_that_all_was_given_up(scratch: Path) -> None:
    """The present is sent all the same, and every later one."""
    machine = synced_machine(scratch)
    found = tuple(heads(machine.memory))
    invented = tuple(RemoteHead("ab" * 32, number, f"{number:064x}") for number in range(1, 50))
    put_record(machine.memory, Record(machine.vault.vault_id, START_NS, found + invented, {}))
    machine.sync()
    for key in [key for key in machine.memory.objects if key != "vault.json"]:
        del machine.memory.objects[key]
    machine.require_synced()
    require_newest(machine)
    machine.vault.snapshot(*names(machine))
    machine.require_synced()
    assert [head.seq for head in heads(machine.memory)] == [3, 4]


def test_a_listing_that_hides_records(scratch: Path) -> None:
    """A prune that sees no record gives up nothing twice that it needs, and deletes nothing."""
    machine, quick, _ = three(scratch)
    keys = ["heads/condemned/" + digest for digest in notes(machine.memory, "condemned")]
    quick.store.add(ChangeList(omit(*keys), "heads/", times=None))
    before = dict(machine.memory.objects)
    quick.prune(ALL, now_ns=RIPE_NS)
    assert {key: machine.memory.objects[key] for key in before} == before


def test_what_is_taken_back_while_a_prune_begins(scratch: Path) -> None:
    """Of two records one names a snapshot, the other one a segment that it needs; the first goes after the look."""
    machine = synced_machine(scratch)
    first, vault_id = names(machine)[0], machine.vault.vault_id
    given_up = tuple(head for head in heads(machine.memory) if head.seq < 3)
    record = put_record(machine.memory, Record(vault_id, START_NS, given_up, {}))
    put_record(machine.memory, Record(vault_id, START_NS, (), {first: 1}))

    def meanwhile() -> None:
        del machine.memory.objects["heads/condemned/" + record]

    machine.store.requests.clear()
    at_request(machine, 7, meanwhile)
    machine.prune(ALL, now_ns=RIPE_NS)
    assert machine.store.requests[6][1].startswith("heads/sweeping/")
    assert first in stored_segments(machine)
    assert [head.seq for head in heads(machine.memory)] == [1, 2, 3]


def test_a_mark_that_came_after_the_first_look_stays(scratch: Path) -> None:
    """It tells of a deletion that may still go on, and no record may be seen with it yet."""
    machine, _, third = three(scratch)
    token = secrets.token_hex(32)

    def meanwhile() -> None:
        machine.memory.objects["heads/swept/" + token] = b"{}"

    at_request(machine, 7, meanwhile)
    machine.prune(ALL, now_ns=RIPE_NS)
    assert machine.store.requests[-1][0] == "delete"
    assert token in notes(machine.memory, "swept")
    assert len(notes(machine.memory, "swept")) == 2
    at_request(third, NEVER, killed)
    third.require_synced()
    third.vault.snapshot(names(third)[1])
    third.require_synced()
    machine.prune(grace_ns=0, now_ns=RIPE_NS)
    assert len(notes(machine.memory, "swept")) == 1


def test_a_snapshot_from_the_future_does_not_make_others_old(scratch: Path) -> None:
    machine = synced_machine(scratch)
    report = machine.prune(KeepPolicy(within_ns=0), now_ns=2 * 10**9, dry_run=True)  # they are 1, 2 and 3 seconds old
    assert [each.head.seq for each in report.kept] == [3, 2]


def test_a_prune_that_ends_between_the_list_and_the_record(scratch: Path) -> None:
    """What it gave up was listed, and is there no more; a record that a listing invents does not matter either."""
    machine, quick, _ = three(scratch)
    for manifest in list_manifests(machine.vault.layout)[:-1]:
        machine.vault.path_of(manifest).unlink()
    at_request(machine, 3, lambda: quick.prune(ALL, now_ns=RIPE_NS))
    report = machine.prune(ALL, now_ns=RIPE_NS)
    assert ([each.head.seq for each in report.kept], report.deleted_segments) == ([3], 0)
    at_request(machine, NEVER, killed)
    machine.store.add(ChangeList(invent(ObjectInfo("heads/condemned/" + "ab" * 32, 5)), "heads/", times=None))
    assert machine.prune(ALL, now_ns=RIPE_NS).deleted_segments == 0
