from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import vaultfs
from vault_keys.sample import KEY, OTHER, OTHER_PASSWORD, PASSWORD, THIRD, other, require_files, secret
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import KeySlot, Secret
from vaultfs.errors import (
    ExitCode,
    IntegrityError,
    NoSpaceError,
    NotAVaultError,
    StorageError,
    UsageError,
    VaultLockedError,
    WrongPasswordError,
)
from vaultfs.storage import durable
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.keyslots import add_slot, change_password, list_slots, remove_slot
from vaultfs.vault.opening import load_header


def opens(path: Path, key: Secret) -> bool:
    try:
        load_header(VaultLayout(path)).unlock(key)
    except WrongPasswordError:
        return False
    return True


def test_a_slot_is_added_listed_and_removed(vault_path: Path) -> None:
    recovery, text = Secret.generate_recovery()
    added = add_slot(vault_path, secret(), recovery, label="paper")
    assert [(slot.label, slot.kind) for slot in list_slots(vault_path)] == [
        ("password", "password"),
        ("paper", "recovery"),
    ]
    assert list_slots(vault_path)[1] == added
    require_files(vault_path, Secret.recovery(text))
    assert remove_slot(vault_path, secret(), "paper") == added
    assert not opens(vault_path, recovery)
    require_files(vault_path, secret())


def test_a_slot_can_be_removed_by_its_id(path: Path) -> None:
    added = add_slot(path, KEY, THIRD, label="stick")
    assert remove_slot(path, KEY, added.id) == added
    assert len(list_slots(path)) == 2


def test_a_new_slot_costs_as_much_as_the_costliest(vault_path: Path) -> None:
    dear = KdfParameters(80 << 10, 4, 4)
    add_slot(vault_path, secret(), other(), label="dear", kdf=dear)
    add_slot(vault_path, secret(), Secret.keyfile(b"k" * 40), label="stick")
    assert load_header(VaultLayout(vault_path)).key_slots[2].kdf == dear


def test_a_password_is_changed_without_writing_data_again(vault_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in vault_path.rglob("*") if path.is_file()}
    changed = change_password(vault_path, secret(), other())
    assert (changed.label, changed.kind) == ("password", "password")
    after = {path: path.stat().st_mtime_ns for path in vault_path.rglob("*") if path.is_file()}
    assert {path.name for path in after if before.get(path) != after[path]} <= {"vault.json", "lock"}
    assert not opens(vault_path, secret())
    require_files(vault_path, other())


def test_a_forgotten_password_is_replaced_by_means_of_another_slot(vault_path: Path) -> None:
    recovery, _ = Secret.generate_recovery()
    add_slot(vault_path, secret(), recovery, label="paper")
    change_password(vault_path, recovery, other(), label="password")
    assert {slot.label: slot.kind for slot in list_slots(vault_path)} == {"password": "password", "paper": "recovery"}
    assert opens(vault_path, other())
    assert opens(vault_path, recovery)
    assert not opens(vault_path, secret())


def test_who_removes_a_slot_must_get_in_afterwards(path: Path) -> None:
    before = (path / "vault.json").read_bytes()
    with pytest.raises(UsageError, match="a secret that stays"):
        remove_slot(path, OTHER, "second")
    with pytest.raises(UsageError, match="no key slot is called"):
        remove_slot(path, OTHER, "third")
    with pytest.raises(WrongPasswordError):
        remove_slot(path, THIRD, "second")
    assert (path / "vault.json").read_bytes() == before


def test_the_last_slot_stays(path: Path) -> None:
    remove_slot(path, KEY, "second")
    with pytest.raises(UsageError, match="last key slot"):
        remove_slot(path, KEY, "paper")
    assert opens(path, KEY)


def test_one_secret_does_not_get_two_slots(path: Path) -> None:
    """Or else removing one of them would seem to revoke the secret."""
    with pytest.raises(UsageError, match="'paper' already"):
        add_slot(path, KEY, KEY, label="again")
    add_slot(path, KEY, THIRD, label="third")
    with pytest.raises(UsageError, match="'third' already"):
        change_password(path, KEY, THIRD)
    with pytest.raises(UsageError, match="is the old one"):
        change_password(path, KEY, KEY)
    assert opens(path, KEY)


def test_a_label_must_be_free_and_known(path: Path) -> None:
    with pytest.raises(UsageError, match="label 'paper' already"):
        add_slot(path, KEY, THIRD, label="paper")
    with pytest.raises(UsageError, match="no key slot is called"):
        change_password(path, KEY, THIRD, label="passwort")
    assert len(list_slots(path)) == 2


@pytest.mark.parametrize("password", [Secret.password("x"), Secret.keyfile(PASSWORD.encode())])
def test_a_wrong_secret_changes_nothing(vault_path: Path, password: Secret) -> None:
    before = (vault_path / "vault.json").read_bytes()
    changes: list[Callable[[], object]] = [
        lambda: add_slot(vault_path, password, other(), label="new"),
        lambda: change_password(vault_path, password, other()),
    ]
    for change in changes:
        with pytest.raises(WrongPasswordError):
            change()
    assert (vault_path / "vault.json").read_bytes() == before


def test_a_vault_in_use_is_refused(path: Path) -> None:
    with vaultfs.open_vault(path, KEY):
        changes: list[Callable[[], object]] = [
            lambda: add_slot(path, KEY, THIRD, label="new"),
            lambda: remove_slot(path, KEY, "second"),
            lambda: change_password(path, KEY, THIRD),
        ]
        for change in changes:
            with pytest.raises(VaultLockedError) as caught:
                change()
            assert caught.value.exit_code == ExitCode.LOCKED
        assert len(list_slots(path)) == 2


def test_a_directory_that_is_no_vault_stays_untouched(tmp_path: Path) -> None:
    with pytest.raises(NotAVaultError):
        add_slot(tmp_path, secret(), other(), label="new")
    with pytest.raises(NotAVaultError):
        list_slots(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_disk_that_fails_leaves_a_vault_that_opens(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """At every call of the replacement; the header on disk is one that the old or the new password opens."""
    before = (path / "vault.json").read_bytes()
    real = getattr(os, call)
    is_failing = False

    def fail(*arguments: object, **options: object) -> object:
        if is_failing:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    whole = durable.atomic_replace

    def replace(target: Path, data: bytes) -> None:
        nonlocal is_failing
        is_failing = True
        try:
            whole(target, data)
        finally:
            is_failing = False

    monkeypatch.setattr(os, call, fail)
    monkeypatch.setattr("vaultfs.vault.keyslots.atomic_replace", replace)
    with pytest.raises(NoSpaceError):
        change_password(path, KEY, THIRD)
    monkeypatch.undo()
    assert (path / "vault.json").read_bytes() == before
    assert not list(path.glob(".vault.json*"))


def test_a_slot_that_does_not_open_is_never_stored(vault_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As faulty memory would make it: the password is derived to something else than it will be next time."""
    before = (vault_path / "vault.json").read_bytes()
    create = KeySlot.create

    def miscreate(key: Secret, *arguments: object, **options: object) -> KeySlot:
        return create(Secret.password(OTHER_PASSWORD + "?"), *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(KeySlot, "create", miscreate)
    changes: list[Callable[[], object]] = [
        lambda: add_slot(vault_path, secret(), other(), label="new"),
        lambda: change_password(vault_path, secret(), other()),
    ]
    for change in changes:
        with pytest.raises(IntegrityError, match="does not open"):
            change()
    assert (vault_path / "vault.json").read_bytes() == before


def test_a_header_that_cannot_be_read_is_an_error_of_the_disk(
    vault_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("vaultfs.vault.opening.os.read", fail)
    with pytest.raises(StorageError):
        add_slot(vault_path, secret(), other(), label="new")
