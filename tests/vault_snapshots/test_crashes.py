"""Crashes and failures between any two steps of making and deleting a snapshot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from vault_snapshots.checking import problems
from vault_snapshots.sample import Sample, Stepper, contents, crash_after, write
from vaultfs.errors import NoSpaceError, StorageError, VaultLockedError
from vaultfs.vault import snapshot_deleting, snapshot_making, snapshot_recovery
from vaultfs.vault.api import Vault
from vaultfs.vault.snapshot_deleting import deleting
from vaultfs.vault.snapshot_making import creating
from vaultfs.vault.snapshot_manifest import manifest_files
from vaultfs.vault.steps import Step, Steps

MOST_HALF_STEPS = 500


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several reads of the image, and several sweeps."""
    monkeypatch.setattr(snapshot_making, "READ_BYTES", 40 << 10)
    monkeypatch.setattr(snapshot_deleting, "SWEEP_CHUNKS", 20)


def begin_creating(vault: Vault) -> Steps[object]:
    return creating(vault.filesystem, "label")


def begin_deleting(vault: Vault) -> Steps[object]:
    return deleting(vault.filesystem, 2)


def prepare(vault: Vault) -> None:
    """Two snapshots, and changes before, between and after."""
    write(vault, b"/a", os.urandom(60_000))
    vault.create_snapshot()
    write(vault, b"/a", os.urandom(60_000))
    vault.create_snapshot()
    write(vault, b"/a", os.urandom(60_000))
    vault.remove(b"/d/own")


def test_a_crash_anywhere_in_making_one(sample: Sample, tmp_path: object) -> None:
    with sample.open() as vault:
        prepare(vault)
        then = contents(vault)
    outcomes = []
    for half_steps in range(MOST_HALF_STEPS):
        case = sample.copy(sample.path.parent / f"case {half_steps}")
        _forget_witness(case)
        is_over = crash_after(case, half_steps, begin_creating)
        with case.open() as vault:
            assert problems(vault.filesystem) == [], half_steps
            assert contents(vault) == then
            made = len(vault.snapshots()) == 3
            outcomes.append(made)
            if made:
                assert vault.snapshots()[-1].label == "label"
                assert case.snapshot_contents(3) == then
            # Whatever happened, the next one works, and the chain of manifests goes on.
            number = vault.create_snapshot().seq
            assert case.snapshot_contents(number) == then
            vault.delete_snapshot(number)
            vault.delete_snapshot(1)
        with case.open() as vault:
            assert problems(vault.filesystem) == [], half_steps
        if is_over:
            break
    assert outcomes == sorted(outcomes), "once it is made it stays made"
    assert not outcomes[0]
    assert outcomes[-1]
    assert len(outcomes) > 20


def test_a_snapshot_whose_manifest_is_on_the_disk_is_finished(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very same manifest, as somebody may have copied it already."""
    with sample.open() as vault:
        then = contents(vault)
    for half_steps in range(MOST_HALF_STEPS):
        case = sample.copy(sample.path.parent / f"case {half_steps}")
        _forget_witness(case)
        crash_after(case, half_steps, begin_creating)
        manifests = manifest_files(case.layout)
        if manifests:
            break
    assert len(manifests) == 1
    database = case.path.parent / "before the mount"
    shutil.copytree(case.path, database)
    for attempt in range(2):
        with case.open() as vault:
            assert [(info.seq, info.id) for info in vault.snapshots()] == manifests
            assert vault.filesystem.head.record is not None
            assert vault.filesystem.head.record.manifest_hash == bytes.fromhex(manifests[0][1])
            # It keeps what it needs from the start.
            vault.remove([b"/twin", b"/d/own"][attempt])
            while vault.filesystem.files.sweep():
                pass
            vault.commit()
            assert problems(vault.filesystem) == [], attempt
        assert case.snapshot_contents(1) == then
    # A second crash, right after HEAD was written for it.
    shutil.rmtree(case.path)
    shutil.copytree(database, case.path)
    _forget_witness(case)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_recovery, "add_row", _fail)
        with pytest.raises(StorageError, match="on purpose"):
            case.open()
    with case.open() as vault:
        assert [(info.seq, info.id) for info in vault.snapshots()] == manifests
        assert problems(vault.filesystem) == []
    # Without the manifest there is nothing to finish.
    shutil.rmtree(case.path)
    shutil.copytree(database, case.path)
    _forget_witness(case)
    case.layout.manifest_path(*manifests[0]).unlink()
    with case.open() as vault:
        assert vault.snapshots() == []
        assert problems(vault.filesystem) == []


def test_a_crash_anywhere_in_deleting_one(sample: Sample) -> None:
    with sample.open() as vault:
        prepare(vault)
        then = contents(vault)
    first = sample.snapshot_contents(1)
    second = sample.snapshot_contents(2)
    outcomes = []
    for half_steps in range(MOST_HALF_STEPS):
        case = sample.copy(sample.path.parent / f"case {half_steps}")
        _forget_witness(case)
        is_over = crash_after(case, half_steps, begin_deleting)
        with case.open() as vault:
            assert problems(vault.filesystem) == [], half_steps
            assert contents(vault) == then
            gone = [info.seq for info in vault.snapshots()] == [1]
            outcomes.append(gone)
            assert case.snapshot_contents(1) == first
            if not gone:
                assert case.snapshot_contents(2) == second
        if is_over:
            break
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
    assert outcomes[-1]
    assert len(outcomes) > 10


def test_a_vault_that_changes_on(sample: Sample) -> None:
    """Something is written, deleted and committed between any two steps; then a crash; the snapshot is as it was."""
    for half_steps in range(MOST_HALF_STEPS):
        case = sample.copy(sample.path.parent / f"case {half_steps}")
        _forget_witness(case)
        vault = case.open()
        write(vault, b"/a", os.urandom(60_000))
        write(vault, b"/b", os.urandom(60_000))
        stepper = Stepper(vault.filesystem, creating(vault.filesystem, ""))
        states = []
        for number, _ in zip(range(half_steps), stepper.half_steps(), strict=False):
            if stepper.is_held:
                continue  # as the gate of a mounted vault
            states.append(contents(vault))
            write(vault, b"/a", bytes([number % 250 + 1]) * 5_000)
            if vault.exists(b"/b"):
                vault.remove(b"/b")
            while vault.filesystem.files.sweep():
                pass
            vault.commit()
        last = contents(vault)
        vault.filesystem.abandon()
        with case.open() as vault:
            assert problems(vault.filesystem) == [], half_steps
            if states:
                assert contents(vault) == last
            if vault.snapshots():
                assert case.snapshot_contents(1) in states
        if stepper.is_over:
            assert case.snapshot_contents(1) in states
            return
    pytest.fail("it never ended")


@pytest.mark.parametrize(("begin", "error"), [(begin_creating, NoSpaceError), (begin_deleting, StorageError)])
def test_a_failure_of_any_step(
    sample: Sample, begin: Callable[[Vault], Steps[object]], error: type[NoSpaceError | StorageError]
) -> None:
    """It is reported, leaves nothing behind that the next mount does not clean up, and the next one works."""
    with sample.open() as vault:
        prepare(vault)
        then = contents(vault)
    for step in range(MOST_HALF_STEPS):
        case = sample.copy(sample.path.parent / f"case {step}")
        _forget_witness(case)
        with case.open() as vault:
            stepper = Stepper(vault.filesystem, begin(vault))
            for _ in range(step):
                if not stepper.run_core():
                    break
                stepper.carry_out()
            if stepper.is_over or not stepper.run_core():
                return
            if not isinstance(stepper.wanted, Step) or stepper.wanted is Step.COMMIT:
                with pytest.raises(error, match="on purpose"):
                    stepper.fail(error("on purpose"))
                assert not vault.filesystem.is_snapshot_busy
                write(vault, b"/after", b"x" * 10_000)
                vault.create_snapshot("next")
                vault.remove(b"/after")
            vault.commit()
            assert contents(vault) == then
        with case.open() as vault:
            assert problems(vault.filesystem) == [], step
            for info in vault.snapshots():
                case.snapshot_contents(info.seq)
    pytest.fail("it never ended")


def test_a_cancelled_one_is_cleaned_up_by_the_next(sample: Sample) -> None:
    class CancelledError(BaseException):
        pass

    for step in range(MOST_HALF_STEPS):
        case = sample.copy(sample.path.parent / f"case {step}")
        _forget_witness(case)
        with case.open() as vault:
            stepper = Stepper(vault.filesystem, creating(vault.filesystem, ""))
            for _ in range(step):
                if not stepper.run_core():
                    return
                stepper.carry_out()
            if not stepper.run_core():
                return
            with pytest.raises(CancelledError):
                stepper.fail(CancelledError())
            vault.commit()
            vault.create_snapshot()
            assert problems(vault.filesystem) == []
    pytest.fail("it never ended")


def test_two_at_once_are_refused(sample: Sample) -> None:
    with sample.open() as vault:
        stepper = Stepper(vault.filesystem, creating(vault.filesystem, ""))
        assert stepper.run_core()
        with pytest.raises(VaultLockedError, match="being made"):
            vault.create_snapshot()
        with pytest.raises(VaultLockedError, match="being made"):
            vault.delete_snapshot(1)
        stepper.carry_out()
        while stepper.run_core():
            stepper.carry_out()
        assert len(vault.snapshots()) == 1


def test_the_wal_is_not_written_into_the_file_while_it_is_read(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.vault.commit.CHECKPOINT_BYTES", 0)
    with sample.open() as vault:
        write(vault, b"/a", b"as it was")
        stepper = Stepper(vault.filesystem, creating(vault.filesystem, ""))
        for _ in stepper.half_steps():
            if not stepper.is_held:
                write(vault, b"/a", b"changed")
                for number in range(50):
                    vault.symlink(os.urandom(50).hex(), b"/%s" % os.urandom(8).hex().encode())
                    assert number >= 0
                vault.commit()
        assert len(vault.snapshots()) == 1
    sample.open_snapshot(1).close()


def _fail(*_: object) -> None:
    raise StorageError("on purpose")


def _forget_witness(case: Sample) -> None:
    """A copy is a rollback of the one before, as far as the witness can tell."""
    witness = case.path.parent / "state" / "vaultfs" / "witness"
    for file in witness.glob("*"):
        file.unlink()
