"""``vault.json`` when the other device has another one: the vault never ends as one that the person cannot open."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import vaultfs
from vault_adopting.copies import (
    KEY,
    Copies,
    adopt,
    contents,
    fetch,
    of_all_snapshots,
    offered,
    require_sound,
    snapshots,
)
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, StorageError, UsageError, WrongPasswordError
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault import adopting as module
from vaultfs.vault.adopting import Adopting
from vaultfs.vault.compaction import compact
from vaultfs.vault.fsck import check
from vaultfs.vault.keyslots import add_slot, change_password, list_slots
from vaultfs.vault.opening import load_header
from vaultfs.vault.rotation import rotate
from vaultfs.vault.snapshot_manifest import manifest_files

OTHER, _ = Secret.generate_recovery()
THIRD, _ = Secret.generate_recovery()
WEAK = KdfParameters.weakest()


@pytest.fixture
def elsewhere(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What is done to theirs is done on their machine."""
    monkeypatch.setenv("XDG_STATE_HOME", str(copies.theirs.parent / "their state"))
    return monkeypatch


def header_of(path: Path) -> bytes:
    return VaultLayout(path).header.read_bytes()


def back_here(monkeypatch: pytest.MonkeyPatch, copies: Copies) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(copies.ours.parent / "state"))


def test_a_password_that_was_changed_there(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    change_password(copies.theirs, KEY, OTHER, kdf=WEAK)
    back_here(elsewhere, copies)
    before = header_of(copies.ours)
    with pytest.raises(WrongPasswordError, match="changed; nothing was changed here"):
        Adopting.begin(copies.ours, KEY, offered(copies.theirs))
    assert header_of(copies.ours) == before
    assert contents(copies.ours)["unsaved"] == b"ours"
    past = of_all_snapshots(copies.ours)
    with Adopting.begin(copies.ours, OTHER, offered(copies.theirs)) as adopting:
        assert adopting.has_new_header
        adopting.keep_present()
        fetch(adopting, copies.theirs)
        adopting.complete((), 0)
    assert header_of(copies.ours) == header_of(copies.theirs)
    with vaultfs.open_vault(copies.ours, OTHER, read_only=True) as vault:
        assert "theirs 2" in {name.decode() for name in vault.listdir("/")}
    for snapshot in past:
        vaultfs.open_vault(copies.ours, OTHER, read_only=True, snapshot=snapshot).close()
    with pytest.raises(WrongPasswordError):
        vaultfs.open_vault(copies.ours, KEY)


def test_a_slot_that_was_added_there(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    add_slot(copies.theirs, KEY, OTHER, label="other", kdf=WEAK)
    back_here(elsewhere, copies)
    adopt(copies.ours, copies.theirs)
    assert {slot.label for slot in list_slots(copies.ours)} == {"password", "other"}
    require_sound(copies.ours)


def test_a_header_that_is_older_there_is_left_alone(copies: Copies) -> None:
    """The caller knows that this machine has put it there."""
    change_password(copies.ours, KEY, OTHER, kdf=WEAK)
    before = header_of(copies.ours)
    theirs = replace(offered(copies.theirs), header=None)
    with Adopting.begin(copies.ours, OTHER, theirs) as adopting:
        assert not adopting.has_new_header
        adopting.keep_present()
        fetch(adopting, copies.theirs)
        adopting.complete((), 0)
    assert header_of(copies.ours) == before
    vaultfs.open_vault(copies.ours, OTHER).close()


def test_a_key_that_was_rotated_here(copies: Copies) -> None:
    theirs = contents(copies.theirs)
    rotate(copies.ours, KEY)
    before = header_of(copies.ours)
    adopt(copies.ours, copies.theirs)
    assert header_of(copies.ours) == before
    assert contents(copies.ours) == theirs
    require_sound(copies.ours)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        assert vault.filesystem.keyring.epoch == 2


@pytest.mark.parametrize("stopped", [False, True])
def test_a_key_whose_rotation_there_goes_on(copies: Copies, elsewhere: pytest.MonkeyPatch, stopped: bool) -> None:
    """Their keys open what is here as well."""
    rotate(copies.theirs, KEY, kdf=WEAK)
    with vaultfs.open_vault(copies.theirs, KEY) as vault:
        vault.create_snapshot("rotated")
    theirs = contents(copies.theirs)
    back_here(elsewhere, copies)
    past = of_all_snapshots(copies.ours)
    if stopped:
        with elsewhere.context() as patch:
            patch.setattr(module, "make_database", _stop)
            with pytest.raises(StorageError, match="on purpose"):
                adopt(copies.ours, copies.theirs)
        assert contents(copies.ours)["unsaved"] == b"ours"
        require_sound(copies.ours)
    adopt(copies.ours, copies.theirs)
    assert header_of(copies.ours) == header_of(copies.theirs)
    assert contents(copies.ours) == theirs
    for snapshot, then in past.items():
        assert contents(copies.ours, snapshot) == then
    require_sound(copies.ours)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        compact(vault.filesystem)
    for snapshot, then in past.items():
        assert contents(copies.ours, snapshot) == then


def _stop(*_: object, **__: object) -> None:
    raise StorageError("stopped on purpose")


# --- keys that were thrown away there


def finish_rotation(path: Path, epoch: int = 2) -> None:
    """Rotate, write everything again, delete what needs the old key, and keep the result as a snapshot."""
    rotate(path, KEY, kdf=WEAK)
    with vaultfs.open_vault(path, KEY) as vault:
        for info in vault.snapshots():
            vault.delete_snapshot(info.id)
        compact(vault.filesystem)
        vault.create_snapshot("rotated")
    assert load_header(VaultLayout(path)).unlock(KEY).epochs == (epoch,)


@pytest.mark.parametrize("stopped", ["", "make_database", "open_unlocked"])
def test_a_key_that_was_thrown_away_there(copies: Copies, elsewhere: pytest.MonkeyPatch, stopped: str) -> None:
    """What is kept here stays readable; the header is the same on both."""
    finish_rotation(copies.theirs)
    theirs = contents(copies.theirs)
    back_here(elsewhere, copies)
    past = of_all_snapshots(copies.ours)
    if stopped:
        with elsewhere.context() as patch:
            real, calls = getattr(module, stopped), []

            def second_fails(*arguments: object, **options: object) -> object:
                calls.append(1)
                if stopped == "open_unlocked" and len(calls) == 1:
                    return real(*arguments, **options)
                raise StorageError("stopped on purpose")

            patch.setattr(module, stopped, second_fails)
            with pytest.raises(StorageError, match="on purpose"):
                adopt(copies.ours, copies.theirs)
        require_sound(copies.ours)
        vaultfs.open_vault(copies.ours, KEY).close()
        require_sound(copies.ours)
    if stopped != "open_unlocked":
        adopt(copies.ours, copies.theirs)
    assert header_of(copies.ours) == header_of(copies.theirs)
    assert contents(copies.ours) == theirs
    layout = VaultLayout(copies.ours)
    assert load_header(layout).unlock(KEY).epochs == (2,)
    assert (layout.kept / "keys").stat().st_mode & 0o777 == 0o600
    for snapshot, then in past.items():
        assert contents(copies.ours, snapshot) == then
    require_sound(copies.ours)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        compact(vault.filesystem)
        ids = [info.id for info in vault.snapshots() if info.is_kept]
        assert "damaged" not in "".join(info.label for info in vault.snapshots())
    # Another rotation keeps the key that seals the older ones, as long as there is anything to open with them.
    rotate(copies.ours, KEY, kdf=WEAK, rewrite=lambda *_: None)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        for info in vault.snapshots():
            if not info.is_kept or info.label == "before adopt":  # which has keys of epoch 2, too
                vault.delete_snapshot(info.id)
                ids = [snapshot for snapshot in ids if snapshot != info.id]
        compact(vault.filesystem)
    assert load_header(layout).unlock(KEY).epochs == (2, 3)
    for snapshot, then in past.items():
        assert contents(copies.ours, snapshot) == then
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        for snapshot in ids:
            vault.delete_snapshot(snapshot)
        compact(vault.filesystem)
    assert not (layout.kept / "keys").exists()
    assert load_header(layout).unlock(KEY).epochs == (3,)
    assert contents(copies.ours) == theirs
    require_sound(copies.ours)


def test_an_older_snapshot_that_needs_a_key_thrown_away_there(
    copies: Copies, elsewhere: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then the header has to have it again."""
    shutil.copytree(copies.theirs, tmp_path / "before")
    theirs = contents(copies.theirs)
    finish_rotation(copies.theirs)
    new = load_header(VaultLayout(copies.theirs))
    back_here(elsewhere, copies)
    past = of_all_snapshots(copies.ours)
    with Adopting.begin(copies.ours, KEY, replace(offered(tmp_path / "before"), header=new)) as adopting:
        adopting.keep_present()
        fetch(adopting, tmp_path / "before")
        adopting.complete((), 0)
    assert load_header(VaultLayout(copies.ours)).unlock(KEY).epochs == (1, 2)
    assert contents(copies.ours) == theirs
    for snapshot, then in past.items():
        assert contents(copies.ours, snapshot) == then
    require_sound(copies.ours)


def test_keys_without_a_kept_snapshot_go(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    """As when a repair has moved the last manifest aside."""
    finish_rotation(copies.theirs)
    back_here(elsewhere, copies)
    adopt(copies.ours, copies.theirs)
    kept = VaultLayout(copies.ours).kept
    assert (kept / "keys").exists()
    for path in kept.glob("*.manifest"):
        path.unlink()
    vaultfs.open_vault(copies.ours, KEY).close()
    assert list(kept.iterdir()) == []
    require_sound(copies.ours)


def test_damaged_keys_of_kept_snapshots(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    """Only snapshots that need them cannot be opened, and no repair gives those up: the file may come back."""
    finish_rotation(copies.theirs)
    back_here(elsewhere, copies)
    adopt(copies.ours, copies.theirs)
    past = of_all_snapshots(copies.ours)
    own = [info.id for info in snapshots(copies.ours).values() if not info.is_kept]
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        own.append(vault.create_snapshot("later").id)
    past[own[-1]] = contents(copies.ours)
    keys = VaultLayout(copies.ours).kept / "keys"
    good = keys.read_bytes()
    keys.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert {snapshot: contents(copies.ours, snapshot) for snapshot in own} == {each: past[each] for each in own}
    for snapshot in past.keys() - set(own):
        with pytest.raises(IntegrityError, match="keys is not the one that was written"):
            contents(copies.ours, snapshot)
    report = check(copies.ours, KEY, repair=True)
    assert {each.code for each in report.findings} == {"kept-data"}
    vaultfs.open_vault(copies.ours, KEY).close()
    keys.write_bytes(good)
    assert of_all_snapshots(copies.ours) == past
    require_sound(copies.ours)


def test_one_that_does_not_need_the_damaged_keys(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    finish_rotation(copies.theirs)
    back_here(elsewhere, copies)
    adopt(copies.ours, copies.theirs)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        vault.commit()
    layout = VaultLayout(copies.ours)
    newest = max(manifest_files(layout))
    # As a later adoption keeps it.
    layout.manifest_path(*newest).rename(layout.kept_path(*newest))
    then = contents(copies.ours, newest[1])
    (layout.kept / "keys").write_bytes(bytes(100))
    assert contents(copies.ours, newest[1]) == then
    codes = [each.message for each in check(copies.ours, KEY).findings if newest[1][:12] in each.message]
    assert codes == []


def test_damaged_keys_do_not_lock_the_vault(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    """What they cannot take up stays in the header."""
    finish_rotation(copies.theirs)
    back_here(elsewhere, copies)
    adopt(copies.ours, copies.theirs)
    elsewhere.setenv("XDG_STATE_HOME", str(copies.theirs.parent / "their state"))
    finish_rotation(copies.theirs, epoch=3)
    theirs = contents(copies.theirs)
    back_here(elsewhere, copies)
    past = of_all_snapshots(copies.ours)
    keys = VaultLayout(copies.ours).kept / "keys"
    good = keys.read_bytes()
    keys.write_bytes(bytes(100))
    adopt(copies.ours, copies.theirs)
    vaultfs.open_vault(copies.ours, KEY).close()
    assert contents(copies.ours) == theirs
    assert load_header(VaultLayout(copies.ours)).unlock(KEY).epochs == (2, 3)
    keys.write_bytes(good)
    assert of_all_snapshots(copies.ours).items() >= past.items()
    require_sound(copies.ours)


def test_a_rotation_ends_in_the_process_that_ends_the_adoption(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    """It has keys that are not in the header, and throws another one away."""
    finish_rotation(copies.theirs)
    rotate(copies.theirs, KEY, kdf=WEAK)
    back_here(elsewhere, copies)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        vault.create_snapshot("under the first key")
    past = of_all_snapshots(copies.ours)

    def stop(*_: object) -> None:
        raise StorageError("stopped on purpose")

    with elsewhere.context() as patch:
        patch.setattr(Adopting, "_open_adopted", stop)
        with pytest.raises(StorageError, match="on purpose"):
            adopt(copies.ours, copies.theirs)
    with vaultfs.open_vault(copies.ours, KEY) as vault:
        vault.delete_snapshot(next(info.id for info in vault.snapshots() if not info.is_kept))
        compact(vault.filesystem, old_keys_only=True)
    assert load_header(VaultLayout(copies.ours)).unlock(KEY).epochs == (3,)
    assert of_all_snapshots(copies.ours) == past
    require_sound(copies.ours)


def test_the_password_was_changed_with_the_rotation(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    change_password(copies.theirs, KEY, OTHER, kdf=WEAK)
    rotate(copies.theirs, OTHER, kdf=WEAK)
    with vaultfs.open_vault(copies.theirs, OTHER) as vault:
        for info in vault.snapshots():
            vault.delete_snapshot(info.id)
        compact(vault.filesystem)
        vault.create_snapshot("rotated")
    back_here(elsewhere, copies)
    before = header_of(copies.ours)
    with pytest.raises(UsageError, match="Change the password here"):
        Adopting.begin(copies.ours, OTHER, offered(copies.theirs))
    assert header_of(copies.ours) == before
    change_password(copies.ours, KEY, OTHER, kdf=WEAK)
    adopt(copies.ours, copies.theirs, secret=OTHER)
    assert header_of(copies.ours) == header_of(copies.theirs)
    vaultfs.open_vault(copies.ours, OTHER).close()


def test_both_have_rotated(copies: Copies, elsewhere: pytest.MonkeyPatch) -> None:
    rotate(copies.theirs, KEY, kdf=WEAK)
    with vaultfs.open_vault(copies.theirs, KEY) as vault:
        vault.create_snapshot("rotated")
    back_here(elsewhere, copies)
    rotate(copies.ours, KEY, kdf=WEAK)
    before = header_of(copies.ours)
    with pytest.raises(UsageError, match="both this device and the other one have rotated"):
        Adopting.begin(copies.ours, KEY, offered(copies.theirs))
    assert header_of(copies.ours) == before
    require_sound(copies.ours)
