"""What an attacker does to vault.json, and that it is noticed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring, MasterKey
from vaultfs.crypto.slots import KeySlot, Secret
from vaultfs.errors import (
    IntegrityError,
    VaultError,
    WrongPasswordError,
)
from vaultfs.ids import KeyEpoch, VaultId

from .headers import WEAKEST, edited, new_secret


def test_any_flipped_bit_of_the_file_is_noticed(vault: tuple[VaultHeader, Keyring], recovery: Secret) -> None:
    data = vault[0].encode()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VaultError):
            VaultHeader.decode(bytes(changed)).unlock(recovery)


def test_any_flipped_bit_of_mac_or_keyring_is_an_integrity_error(
    vault: tuple[VaultHeader, Keyring], recovery: Secret
) -> None:
    header, ring = vault
    rotated, _ = header.rotate(ring, [("first", recovery)], WEAKEST)
    for name in ("mac", "sealed_keyring"):
        value = getattr(rotated, name)
        for bit in range(8 * len(value)):
            changed = bytearray(value)
            changed[bit // 8] ^= 1 << bit % 8
            changes: dict[str, Any] = {name: bytes(changed)}
            with pytest.raises(IntegrityError):
                dataclasses.replace(rotated, **changes).unlock(recovery)


def test_a_removed_slot_is_noticed(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, _, secrets = three
    for removed in (1, 2):
        slots = tuple(slot for index, slot in enumerate(header.key_slots) if index != removed)
        with pytest.raises(IntegrityError, match="removed"):
            dataclasses.replace(header, key_slots=slots).unlock(secrets[0])


def test_a_slot_put_back_is_noticed(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, ring, secrets = three
    smaller = header.remove_slot(ring, "third")
    with pytest.raises(WrongPasswordError):
        smaller.unlock(secrets[2])
    back = dataclasses.replace(smaller, key_slots=header.key_slots)
    for secret in secrets:
        with pytest.raises(IntegrityError):
            back.unlock(secret)


def test_slots_in_another_order_or_twice_are_noticed(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, _, secrets = three
    for slots in (header.key_slots[::-1], header.key_slots + header.key_slots[:1]):
        with pytest.raises(IntegrityError):
            dataclasses.replace(header, key_slots=slots).unlock(secrets[0])


def test_a_slot_added_by_someone_else_is_noticed(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    """The attacker's slot wraps a master key of his own, and he makes everything else to fit."""
    header, _, secrets = three
    his = new_secret()
    his_header, his_ring = VaultHeader.create(his, label="his", kdf=WEAKEST)
    slot = KeySlot.create(his, his_ring.master, header.vault_id, label="his", kdf=WEAKEST)
    forged = dataclasses.replace(header, key_slots=(slot, *header.key_slots))
    for secret in (his, secrets[0]):
        with pytest.raises(IntegrityError):
            forged.unlock(secret)
    with pytest.raises(WrongPasswordError):
        dataclasses.replace(his_header, vault_id=header.vault_id).unlock(his)


def test_another_epoch_is_noticed(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    header, _, secrets = three
    with pytest.raises(IntegrityError):
        dataclasses.replace(header, epoch=KeyEpoch(2)).unlock(secrets[0])


def test_weaker_parameters_are_noticed_or_refused() -> None:
    """Within the bounds the slot does not open, so nothing is ever derived that would help a guesser."""
    password = Secret.password("correct horse")
    header, _ = VaultHeader.create(password, label="p", kdf=KdfParameters(64 << 10, 4, 4))
    slot = json.loads(header.encode())["slots"][0]
    with pytest.raises(WrongPasswordError):
        VaultHeader.decode(edited(header, slots=[slot | {"argon2id": [64 << 10, 3, 4]}])).unlock(password)
    for costs in ([1024, 3, 4], [64 << 10, 1, 4], [64 << 10, 3, 0]):
        with pytest.raises(IntegrityError):
            VaultHeader.decode(edited(header, slots=[slot | {"argon2id": costs}]))


def test_absurd_parameters_are_refused_before_argon2_runs(
    vault: tuple[VaultHeader, Keyring], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.crypto.kdf.Argon2id", lambda **options: pytest.fail("allocated"))
    slot = json.loads(vault[0].encode())["slots"][0] | {"kind": "password"}
    for costs in ([1 << 30, 3, 4], [2**80, 3, 4], [64 << 10, 10**9, 4], [64 << 10, 3, 10**9], [-1, 3, 4]):
        with pytest.raises(IntegrityError):
            VaultHeader.decode(edited(vault[0], slots=[slot | {"argon2id": costs}]))


def test_a_slot_of_another_vault_does_not_open(recovery: Secret, vault: tuple[VaultHeader, Keyring]) -> None:
    other, _ = VaultHeader.create(recovery, label="first", kdf=WEAKEST)
    with pytest.raises(WrongPasswordError):
        dataclasses.replace(vault[0], key_slots=other.key_slots).unlock(recovery)


def test_a_forged_header_is_not_signed_again(three: tuple[VaultHeader, Keyring, list[Secret]]) -> None:
    """Someone changes the file between unlocking and the change of a slot."""
    header, ring, secrets = three
    forged = dataclasses.replace(header, key_slots=header.key_slots[:2])
    with pytest.raises(IntegrityError):
        forged.add_slot(ring, new_secret(), label="new", kdf=WEAKEST)
    with pytest.raises(IntegrityError):
        forged.remove_slot(ring, "second")
    with pytest.raises(IntegrityError):
        forged.replace_secret(ring, secrets[0], new_secret(), WEAKEST)
    with pytest.raises(IntegrityError):
        forged.rotate(ring, [("first", secrets[0])], WEAKEST)
    with pytest.raises(IntegrityError):
        forged.retire_epochs(ring, set())


def test_who_was_revoked_cannot_name_a_current_key(recovery: Secret, vault: tuple[VaultHeader, Keyring]) -> None:
    """He knows master key 1, keeps the survivors' old slots, and hides a key 2 of his own among the older ones."""
    header, ring = vault
    for epoch in (1, 2):
        his = MasterKey.generate(KeyEpoch(epoch))
        forging = _Forged(ring.vault_id, his, ring.master)
        forged = VaultHeader._build(forging, header.key_slots)
        with pytest.raises(IntegrityError, match="out of order"):
            forged.unlock(recovery)


def test_who_was_revoked_cannot_claim_a_later_epoch(recovery: Secret, vault: tuple[VaultHeader, Keyring]) -> None:
    """He knows master key 1, and signs with it that the header is of epoch 2."""
    header, ring = vault
    claimed = dataclasses.replace(header, epoch=KeyEpoch(2))
    forged = dataclasses.replace(claimed, mac=claimed._signed(ring.current))
    with pytest.raises(IntegrityError):
        forged.unlock(recovery)


class _Forged(Keyring):
    """A keyring that puts a key of the attacker's before the genuine one, whatever its epoch."""

    __slots__ = ("_forged",)

    def __init__(self, vault_id: VaultId, his: MasterKey, genuine: MasterKey) -> None:
        super().__init__(vault_id, [genuine])
        self._forged = (his, genuine)

    @property
    def masters(self) -> tuple[MasterKey, ...]:
        return self._forged
