"""Adding, removing and replacing key slots, and rotating the master key."""

from __future__ import annotations

import dataclasses

import pytest

from vaultfs.crypto.header import MOST_SLOTS, VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import (
    IntegrityError,
    UsageError,
    WrongPasswordError,
)
from vaultfs.ids import KeyEpoch

from .headers import WEAKEST, keys_of, new_secret

# ------------------------------------------------------------------------------------------------ changing slots


def test_every_slot_opens_the_same_keys(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, ring, secrets = three
    assert [slot.label for slot in header.slots] == ["first", "second", "third"]
    assert {slot.kind for slot in header.slots} == {"recovery"}
    for secret in secrets:
        assert keys_of(VaultHeader.decode(header.encode()).unlock(secret)) == keys_of(ring)


@pytest.mark.parametrize("by_id", [False, True])
def test_a_removed_slot_opens_no_more(by_id: bool, three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, ring, secrets = three
    name = header.slots[1].id if by_id else "second"
    smaller = header.remove_slot(ring, name)
    with pytest.raises(WrongPasswordError):
        smaller.unlock(secrets[1])
    for secret in (secrets[0], secrets[2]):
        assert keys_of(smaller.unlock(secret)) == keys_of(ring)
    assert len(header.slots) == 3  # immutable


def test_the_last_slot_and_unknown_ones_are_not_removed(vault: tuple[VaultHeader, Keyring]) -> None:
    header, ring = vault
    with pytest.raises(UsageError, match="last"):
        header.remove_slot(ring, "first")
    with pytest.raises(UsageError, match="'other'"):
        header.remove_slot(ring, "other")


def test_labels_are_unique_and_slots_bounded(vault: tuple[VaultHeader, Keyring]) -> None:
    header, ring = vault
    with pytest.raises(UsageError, match="first"):
        header.add_slot(ring, new_secret(), label="first", kdf=WEAKEST)
    for number in range(MOST_SLOTS - 1):
        header = header.add_slot(ring, new_secret(), label=f"slot {number}", kdf=WEAKEST)
    with pytest.raises(UsageError, match="at most"):
        header.add_slot(ring, new_secret(), label="one more", kdf=WEAKEST)
    assert VaultHeader.decode(header.encode()) == header


def test_a_keyring_of_another_vault_changes_nothing(vault: tuple[VaultHeader, Keyring], recovery: Secret) -> None:
    header, _ = vault
    _, other = VaultHeader.create(recovery, label="first", kdf=WEAKEST)
    with pytest.raises(UsageError, match="another vault"):
        header.add_slot(other, new_secret(), label="new", kdf=WEAKEST)


def test_a_replaced_secret_opens_no_more(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, ring, secrets = three
    new = new_secret()
    changed = header.replace_secret(ring, secrets[1], new, WEAKEST)
    assert [slot.label for slot in changed.slots] == ["first", "second", "third"]
    with pytest.raises(WrongPasswordError):
        changed.unlock(secrets[1])
    for secret in (secrets[0], new, secrets[2]):
        assert keys_of(changed.unlock(secret)) == keys_of(ring)
    assert changed.slots[1].id != header.slots[1].id
    with pytest.raises(WrongPasswordError):
        changed.replace_secret(ring, secrets[1], new_secret(), WEAKEST)


def test_a_password_can_take_the_place_of_a_recovery_key(vault: tuple[VaultHeader, Keyring], recovery: Secret) -> None:
    header, ring = vault
    password = Secret.password("correct horse")
    changed = VaultHeader.decode(header.replace_secret(ring, recovery, password, WEAKEST).encode())
    assert [slot.kind for slot in changed.slots] == ["password"]
    assert keys_of(changed.unlock(password)) == keys_of(ring)


# ------------------------------------------------------------------------------------------------ rotating


def test_rotation_keeps_survivors_and_older_keys(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, ring, secrets = three
    rotated, both = header.rotate(ring, [("third", secrets[2]), ("first", secrets[0])], WEAKEST)
    assert (rotated.epoch, both.epochs) == (2, (1, 2))
    assert both.subkeys(KeyEpoch(1)).chunk == ring.current.chunk
    assert both.master.key != ring.master.key
    for secret in (secrets[0], secrets[2]):
        assert keys_of(VaultHeader.decode(rotated.encode()).unlock(secret)) == keys_of(both)
    with pytest.raises(WrongPasswordError):
        rotated.unlock(secrets[1])
    assert [(slot.label, slot.created_s) for slot in rotated.slots] == [
        ("third", header.slots[2].created_s),
        ("first", header.slots[0].created_s),
    ]


def test_the_old_master_key_does_not_open_the_new_header(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    """The old slot opens with the old secret, and what is in it is refused."""
    header, ring, secrets = three
    rotated, _ = header.rotate(ring, [("first", secrets[0])], WEAKEST)
    mixed = dataclasses.replace(rotated, key_slots=(*rotated.key_slots, header.key_slots[1]))
    for secret in secrets[:2]:
        with pytest.raises(IntegrityError):
            mixed.unlock(secret)
    with pytest.raises(IntegrityError):
        rotated.add_slot(ring, new_secret(), label="new", kdf=WEAKEST)


def test_a_survivor_must_present_its_secret(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    """A typing error here would lock the person out of the vault."""
    header, ring, secrets = three
    with pytest.raises(WrongPasswordError):
        header.rotate(ring, [("first", secrets[0]), ("second", secrets[2])], WEAKEST)
    for survivors in ([], [("other", secrets[0])], [("first", secrets[0]), ("first", secrets[0])]):
        with pytest.raises(UsageError):
            header.rotate(ring, survivors, WEAKEST)


def test_rotations_add_up_and_retired_epochs_are_gone(vault: tuple[VaultHeader, Keyring], recovery: Secret) -> None:
    header, ring = vault
    for _ in range(3):
        header, ring = header.rotate(ring, [("first", recovery)], WEAKEST)
    assert ring.epochs == (1, 2, 3, 4)
    smaller, kept = header.retire_epochs(ring, {2})
    assert kept.epochs == (2, 4)
    assert keys_of(VaultHeader.decode(smaller.encode()).unlock(recovery)) == keys_of(kept)
    with pytest.raises(IntegrityError):
        kept.subkeys(KeyEpoch(1))
    last, alone = smaller.retire_epochs(kept, set())
    assert alone.epochs == (4,)
    assert keys_of(last.unlock(recovery)) == keys_of(ring)[3:]
    with pytest.raises(UsageError, match="not in the keyring"):
        last.retire_epochs(alone, {2})


def test_a_stale_keyring_loses_and_revives_no_epoch(vault: tuple[VaultHeader, Keyring], recovery: Secret) -> None:
    """What counts is the keyring inside the header that is changed."""
    header, ring = vault
    rotated, both = header.rotate(ring, [("first", recovery)], WEAKEST)
    smaller, alone = rotated.retire_epochs(both, set())
    assert smaller.add_slot(both, new_secret(), label="new", kdf=WEAKEST).unlock(recovery).epochs == (2,)
    assert rotated.add_slot(alone, new_secret(), label="new", kdf=WEAKEST).unlock(recovery).epochs == (1, 2)


def test_unfinished_rotations_are_bounded(recovery: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.crypto.header._MOST_OLDER_EPOCHS", 2)
    header, ring = VaultHeader.create(recovery, label="first", kdf=WEAKEST)
    for _ in range(2):
        header, ring = header.rotate(ring, [("first", recovery)], WEAKEST)
    assert VaultHeader.decode(header.encode()).unlock(recovery).epochs == (1, 2, 3)
    with pytest.raises(UsageError, match="unfinished"):
        header.rotate(ring, [("first", recovery)], WEAKEST)
