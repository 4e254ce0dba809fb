"""An adoption that is killed anywhere leaves the vault as it was, or as it shall be; the next one does the rest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from vault_keys.crashing import survives_every_crash

import vaultfs
from vault_adopting.copies import (
    KEY,
    Copies,
    adopt,
    contents,
    of_all_snapshots,
    require_sound,
    segment_names,
    snapshots,
)
from vaultfs.errors import IntegrityError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.snapshot_history import read_history
from vaultfs.vault import adopting, adoption_record
from vaultfs.vault.adoption_staging import remove_staging
from vaultfs.vault.fsck import check as fsck
from vaultfs.vault.head import Head
from vaultfs.vault.keyslots import add_slot
from vaultfs.vault.opening import load_header
from vaultfs.vault.snapshot_manifest import manifest_files

LABELS = ["before adopt", "by hand", "by hand", "common", "newest"]


class Outcome:
    """What the vault must be like after a crash.

    Args:
        copies: before anything happened.
    """

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self.ours = contents(copies.ours)
        self.theirs = contents(copies.theirs)
        self.past = of_all_snapshots(copies.ours)
        self.adopted = list(snapshots(copies.theirs))[-1]
        self.segments = segment_names(copies.ours)
        self.outcomes: list[bool] = []

    def check(self, path: Path) -> None:
        """After a crash: one of the two states, complete, without a manual step; and the adoption can be finished."""
        vaultfs.open_vault(path, KEY).close()
        now = contents(path)
        assert now in (self.ours, self.theirs)
        is_adopted = now == self.theirs
        self.outcomes.append(is_adopted)
        listed = snapshots(path)
        assert self.past.keys() <= listed.keys()
        assert (self.adopted in listed) == is_adopted
        history = {snapshot for _, snapshot in read_history(VaultLayout(path))}
        assert (self.adopted in history) == is_adopted, "or a sync would take theirs for ours"
        kept = {snapshot for snapshot, info in listed.items() if info.is_kept}
        assert kept == (listed.keys() - {self.adopted} if is_adopted else set())
        layout = VaultLayout(path)
        assert len(os.listdir(layout.kept) if layout.kept.exists() else []) == len(kept)
        require_sound(path)
        if not is_adopted:
            adopt(path, self.copies.theirs)
            require_sound(path)
        self.require_adopted(path)

    def require_adopted(self, path: Path) -> None:
        """All of theirs is the present, and all of ours is kept."""
        assert contents(path) == self.theirs
        listed = snapshots(path)
        assert sorted(info.label for info in listed.values()) == LABELS
        assert {info.id: info.is_kept for info in listed.values()} == {
            snapshot: snapshot != self.adopted for snapshot in listed
        }
        for snapshot, then in self.past.items():
            assert contents(path, snapshot) == then
        assert not (path / ".adopting").exists()


@pytest.fixture
def outcome(copies: Copies) -> Outcome:
    return Outcome(copies)


def test_killed_before_any_call_that_changes_the_disk(outcome: Outcome, tmp_path: Path, long_run: bool) -> None:
    def work(path: Path) -> None:
        adopt(path, outcome.copies.theirs)

    step = 1 if long_run else 19
    count = survives_every_crash(outcome.copies.ours, tmp_path, work, outcome.check, step)
    assert count > 200
    assert outcome.outcomes == sorted(outcome.outcomes)
    assert not outcome.outcomes[0]
    assert sum(outcome.outcomes) > 2


def _stop(*_: object, **__: object) -> None:
    raise StorageError("stopped on purpose")


def stopped_before(name: str, copies: Copies) -> None:
    """Adopt, but fail where a function of the module is called."""
    with pytest.MonkeyPatch.context() as patch:
        where: object = adopting.Adopting if hasattr(adopting.Adopting, name) else adopting
        patch.setattr(where, name, _stop)
        with pytest.raises(StorageError, match="on purpose"):
            adopt(copies.ours, copies.theirs)


def _names_in(vault: Path) -> list[Path]:
    """Everything but what SQLite keeps beside an open database."""
    return sorted(path for path in vault.rglob("*") if not path.name.startswith("metadata.db-"))


STEPS = ["complete", "keep_manifests", "move_segments", "make_database", "only_known_before", "switch", "_open_adopted"]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails(outcome: Outcome, step: str) -> None:
    stopped_before(step, outcome.copies)
    names = {snapshot for _, snapshot in manifest_files(VaultLayout(outcome.copies.ours))}
    assert outcome.adopted not in names, "a sync that comes now would take theirs for ours"
    # A check finds nothing wrong, whether it comes before the next mount or after it.
    require_sound(outcome.copies.ours)
    outcome.check(outcome.copies.ours)
    assert outcome.outcomes == [step == "_open_adopted"]


def test_between_head_and_the_new_database(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD accepts the old one, which is still there."""
    real = Head.write_open

    def write_and_stop(self: Head, generation: int, base: int, *, manifest_hash: bytes | None) -> None:
        real(self, generation, base, manifest_hash=manifest_hash)
        if (outcome.copies.ours / ".adopting" / "metadata.db").exists():
            _stop()

    with monkeypatch.context() as patch:
        patch.setattr(Head, "write_open", write_and_stop)
        with pytest.raises(StorageError, match="on purpose"):
            adopt(outcome.copies.ours, outcome.copies.theirs)
    require_sound(outcome.copies.ours)
    outcome.check(outcome.copies.ours)
    assert outcome.outcomes == [False]


@pytest.mark.parametrize("step", STEPS)
def test_read_only_after_a_step_that_failed(outcome: Outcome, step: str) -> None:
    """Nothing is changed, everything can be read."""
    stopped_before(step, outcome.copies)
    is_adopted = step == "_open_adopted"
    files = _names_in(outcome.copies.ours)
    assert contents(outcome.copies.ours) == (outcome.theirs if is_adopted else outcome.ours)
    for snapshot, then in outcome.past.items():
        assert contents(outcome.copies.ours, snapshot) == then
    assert _names_in(outcome.copies.ours) == files


@pytest.mark.parametrize("step", ["only_known_before", "_open_adopted"])
def test_killed_while_the_next_mount_recovers(outcome: Outcome, step: str, tmp_path: Path, long_run: bool) -> None:
    stopped_before(step, outcome.copies)

    def work(path: Path) -> None:
        vaultfs.open_vault(path, KEY).close()

    count = survives_every_crash(outcome.copies.ours, tmp_path, work, outcome.check, 1 if long_run else 13)
    assert count > 40
    assert set(outcome.outcomes) == {step == "_open_adopted"}


@pytest.mark.parametrize("step", ["only_known_before", "_open_adopted"])
def test_repaired_after_a_step_that_failed(outcome: Outcome, step: str) -> None:
    stopped_before(step, outcome.copies)
    report = fsck(outcome.copies.ours, KEY, repair=True)
    assert {each.severity for each in report.findings} <= {"note"}, report.findings
    outcome.check(outcome.copies.ours)
    assert outcome.outcomes == [step == "_open_adopted"]


def test_what_was_fetched_is_not_fetched_again(copies: Copies) -> None:
    before = segment_names(copies.ours)
    stopped_before("make_database", copies)
    vaultfs.open_vault(copies.ours, KEY).close()
    assert segment_names(copies.ours) >= before
    fetched = segment_names(VaultLayout(copies.ours).adopting)
    assert len(fetched) >= 3
    assert not fetched & segment_names(copies.ours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adopting.Adopting, "missing", lambda _: [])  # nothing is fetched
        adopt(copies.ours, copies.theirs)
    assert fetched <= segment_names(copies.ours)


def test_a_segment_that_a_power_cut_left_under_both_names(outcome: Outcome) -> None:
    """Nothing stays behind that no file needs."""
    copies = outcome.copies
    stopped_before("make_database", copies)
    layout = VaultLayout(copies.ours)
    moved = segment_names(copies.ours) & (segment_names(copies.theirs) - outcome.segments)
    assert len(moved) >= 3
    for name in moved:
        os.link(layout.sealed_path(SegmentName(name)), VaultLayout(layout.adopting).sealed_path(SegmentName(name)))
    vaultfs.open_vault(copies.ours, KEY).close()
    assert not moved & segment_names(copies.ours)
    assert moved <= segment_names(layout.adopting)
    outcome.check(copies.ours)


def test_a_damaged_record_says_nothing(outcome: Outcome) -> None:
    """Before the moment it is not needed; after it, fsck brings HEAD and the database together."""
    stopped_before("only_known_before", outcome.copies)
    record = outcome.copies.ours / ".adopting" / "record"
    record.write_bytes(bytes(100))
    assert contents(outcome.copies.ours) == outcome.ours
    shutil.rmtree(outcome.copies.ours / ".adopting")
    outcome.check(outcome.copies.ours)


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
def test_something_else_in_the_place_of_the_record(copies: Copies, what: str) -> None:
    record = copies.ours / ".adopting" / "record"
    record.parent.mkdir()
    if what == "symlink":
        record.symlink_to("/dev/zero")
    elif what == "fifo":
        os.mkfifo(record)
    else:
        record.mkdir()
    vaultfs.open_vault(copies.ours, KEY).close()
    require_sound(copies.ours)


def test_a_symlink_in_the_place_of_what_is_deleted_at_the_end(copies: Copies, tmp_path: Path) -> None:
    """Whoever can write to the vault's directory must not choose what is removed elsewhere."""
    documents = tmp_path / "documents"
    (documents / "sub").mkdir(parents=True)
    files = [documents / "thesis", documents / "sub" / "notes"]
    for path in files:
        path.write_bytes(b"precious")
    link = copies.ours / ".adopting"
    link.symlink_to(documents)
    header = VaultLayout(copies.ours).header.read_bytes()
    other, _ = vaultfs.Secret.generate_recovery()
    add_slot(copies.theirs, KEY, other, label="other")
    with pytest.raises(IntegrityError, match="symlink"):
        adopt(copies.ours, copies.theirs)
    assert VaultLayout(copies.ours).header.read_bytes() == header
    with pytest.raises(StorageError, match="cannot remove"):
        remove_staging(VaultLayout(copies.ours))
    vaultfs.open_vault(copies.ours, KEY).close()
    assert all(path.read_bytes() == b"precious" for path in files)
    assert sorted(documents.rglob("*")) == sorted([*files, documents / "sub"])
    link.unlink()
    adopt(copies.ours, copies.theirs)
    require_sound(copies.ours)


def test_a_record_behind_a_symlink_is_not_believed(copies: Copies, tmp_path: Path) -> None:
    stopped_before("_open_adopted", copies)
    adopting_directory = copies.ours / ".adopting"
    shutil.copytree(adopting_directory, tmp_path / "elsewhere")
    vaultfs.open_vault(copies.ours, KEY).close()
    adopting_directory.symlink_to(tmp_path / "elsewhere")
    layout = VaultLayout(copies.ours)
    assert adoption_record.load_adoption(layout, load_header(layout).unlock(KEY)) is None
    vaultfs.open_vault(copies.ours, KEY).close()
    assert (tmp_path / "elsewhere" / "record").exists()


def test_the_record_is_of_this_vault(copies: Copies) -> None:
    stopped_before("only_known_before", copies)
    record = copies.ours / ".adopting" / "record"
    other, _ = vaultfs.Secret.generate_recovery()
    vaultfs.create_vault(copies.ours.parent / "other", other, kdf=vaultfs.KdfParameters.weakest())
    (copies.ours.parent / "other" / ".adopting").mkdir()
    shutil.copy(record, copies.ours.parent / "other" / ".adopting" / "record")
    layout = VaultLayout(copies.ours.parent / "other")
    assert adoption_record.load_adoption(layout, load_header(layout).unlock(other)) is None
