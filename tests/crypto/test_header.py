"""The header: unlocking, changing slots, rotating; and what an attacker does to the file."""

from __future__ import annotations

import dataclasses
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto.header import LARGEST_HEADER_BYTES, MOST_SLOTS, WRONG_PASSWORD, VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring, MasterKey
from vaultfs.crypto.slots import KeySlot, Secret
from vaultfs.errors import (
    ExitCode,
    FormatTooNewError,
    IntegrityError,
    NotAVaultError,
    UsageError,
    VaultError,
    WrongPasswordError,
)
from vaultfs.ids import KeyEpoch, VaultId

from . import longhand

GOLDEN = Path(__file__).parent / "golden" / "vault-format-1.json"
GOLDEN_RECOVERY = "0410-6105-0R3G-G28A-1C60-T3GF-208H-44RM-FFFA"
GOLDEN_SLOTS = [
    ("0798558faf516c9d", "on the laptop", "password", 1700000000),
    ("818b2d464b65e89c", "stick é", "keyfile", 1700000001),
    ("ec3f32ba2f97a64e", "on paper", "recovery", 1700000002),
]
WEAKEST = KdfParameters.weakest()


def new_secret() -> Secret:
    return Secret.generate_recovery()[0]


@pytest.fixture(scope="module")
def vault(recovery: Secret) -> tuple[VaultHeader, Keyring]:
    return VaultHeader.create(recovery, label="first", kdf=WEAKEST)


def keys_of(ring: Keyring) -> list[tuple[int, bytes]]:
    return [(master.epoch, master.key) for master in ring.masters]


def edited(header: VaultHeader, **changes: Any) -> bytes:
    """vault.json with fields changed by hand."""
    fields = json.loads(header.encode())
    fields.update(changes)
    return json.dumps(fields).encode()


# ------------------------------------------------------------------------------------------------ the format


def test_a_header_of_format_1_opens_for_ever() -> None:
    header = VaultHeader.decode(GOLDEN.read_bytes())
    assert [(slot.id, slot.label, slot.kind, slot.created_s) for slot in header.slots] == GOLDEN_SLOTS
    assert (header.format, header.epoch, header.vault_id) == (1, 3, VaultId(bytes(range(16))))
    expected = [(epoch, bytes([epoch]) * 32) for epoch in (1, 2, 3)]
    secrets = [
        Secret.password("cafe\u0301 au lait"),
        Secret.keyfile(b"the contents of a key file"),
        Secret.recovery(GOLDEN_RECOVERY),
    ]
    for secret in secrets:
        assert keys_of(header.unlock(secret)) == expected
    assert header.encode() == GOLDEN.read_bytes()


def test_the_mac_is_made_as_documented(vault: tuple[VaultHeader, Keyring]) -> None:
    header, ring = vault
    (slot,) = header.key_slots
    public = longhand.slot_public(
        header.vault_id,
        bytes.fromhex(slot.slot_id),
        slot.label,
        "recovery",
        slot.created_s,
        (0, 0, 0),
        slot.salt,
    )
    one = (1).to_bytes(4, "little")
    framed = longhand.frame(
        b"vaultfs 1 header", header.vault_id, one, one, public, slot.sealed, slot.mac, header.sealed_keyring
    )
    key = longhand.hkdf(ring.master.key, header.vault_id, b"vaultfs 1 header_mac")
    assert header.mac == hmac.digest(key, framed, "sha256")


def test_older_master_keys_are_sealed_as_documented(
    vault: tuple[VaultHeader, Keyring], recovery: Secret, dead_random: None
) -> None:
    header, ring = vault
    rotated, both = header.rotate(ring, [("first", recovery)], WEAKEST)
    key = longhand.hkdf(both.master.key, header.vault_id, b"vaultfs 1 record")
    plain = b"\1\0\0\0" + ring.master.key
    assert rotated.sealed_keyring == longhand.seal_record(key, b"keyring" + header.vault_id, plain, b"\x5a" * 16)


def test_a_decoded_header_is_the_encoded_one(vault: tuple[VaultHeader, Keyring], recovery: Secret) -> None:
    header, ring = vault
    again = VaultHeader.decode(header.encode())
    assert again == header
    assert keys_of(again.unlock(recovery)) == keys_of(ring)
    assert (ring.epoch, ring.epochs, ring.vault_id) == (1, (1,), header.vault_id)


def test_no_key_is_in_the_file(vault: tuple[VaultHeader, Keyring], recovery: Secret) -> None:
    header, ring = vault
    rotated, both = header.rotate(ring, [("first", recovery)], WEAKEST)
    for data in (header.encode(), rotated.encode()):
        raw = b"".join(bytes.fromhex(text) for text in hex_strings(json.loads(data)))
        for master in both.masters:
            assert master.key not in raw
        assert recovery.value not in raw


def hex_strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in hex_strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in hex_strings(item)]
    is_hex = isinstance(value, str) and len(value) % 2 == 0 and set(value) <= set("0123456789abcdef")
    return [value] if is_hex else []


def test_two_vaults_share_nothing(recovery: Secret) -> None:
    first, second = (VaultHeader.create(recovery, label="first", kdf=WEAKEST) for _ in range(2))
    assert first[0].vault_id != second[0].vault_id
    assert first[1].master.key != second[1].master.key


# ------------------------------------------------------------------------------------------------ wrong secrets


def test_a_wrong_secret_has_one_message_and_exit_code(vault: tuple[VaultHeader, Keyring]) -> None:
    """Whatever is wrong about it, and whatever slots there are."""
    header, _ = vault
    for secret in (new_secret(), Secret.password("wrong"), Secret.keyfile(b"wrong")):
        with pytest.raises(WrongPasswordError) as caught:
            header.unlock(secret)
        assert str(caught.value) == WRONG_PASSWORD
        assert caught.value.exit_code is ExitCode.WRONG_PASSWORD
        assert int(caught.value.exit_code) == 12


def test_a_wrong_password_does_not_open_a_password_slot() -> None:
    header, ring = VaultHeader.create(Secret.password("caf\u00e9"), label="p", kdf=WEAKEST)
    with pytest.raises(WrongPasswordError):
        header.unlock(Secret.password("cafe"))
    assert keys_of(header.unlock(Secret.password("cafe\u0301"))) == keys_of(ring)


# ------------------------------------------------------------------------------------------------ tampering


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


@pytest.fixture(scope="module")
def three(recovery: Secret) -> tuple[VaultHeader, Keyring, list[Secret]]:
    header, ring = VaultHeader.create(recovery, label="first", kdf=WEAKEST)
    secrets = [recovery, new_secret(), new_secret()]
    for label, secret in zip(("second", "third"), secrets[1:], strict=True):
        header = header.add_slot(ring, secret, label=label, kdf=WEAKEST)
    return header, ring, secrets


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


class _Forged(Keyring):
    """A keyring that puts a key of the attacker's before the genuine one, whatever its epoch."""

    __slots__ = ("_forged",)

    def __init__(self, vault_id: VaultId, his: MasterKey, genuine: MasterKey) -> None:
        super().__init__(vault_id, [genuine])
        self._forged = (his, genuine)

    @property
    def masters(self) -> tuple[MasterKey, ...]:
        return self._forged


# ------------------------------------------------------------------------------------------------ what is no header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"type": "vaultfs vault", "format": 1}',
        b'{"type": "vaultfs vault", "format": 0}',
        b'{"type": "vaultfs vault", "format": "1"}',
        b'{"type": "another vault", "format": 1}',
        b'{"type": "another vault", "format": 2}',
        b"[" * 100_000,
        b'{"type": "vaultfs vault", "format": 1, "slots": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": ' * 100_000,
        b'{"type": "vaultfs vault", "format": ' + b"9" * 10_000 + b"}",
        b'{"type": "\\ud800", "format": 1}',
        b'{"type": "vaultfs vault", "format": 1}' + b" " * LARGEST_HEADER_BYTES,
    ],
    ids=range(18),
)
def test_garbage_is_no_vault(data: bytes) -> None:
    with pytest.raises(NotAVaultError):
        VaultHeader.decode(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_vault(data: bytes) -> None:
    with pytest.raises(NotAVaultError):
        VaultHeader.decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
def test_a_header_with_any_field_replaced_raises_our_errors_only(
    vault: tuple[VaultHeader, Keyring], recovery: Secret, data: st.DataObject
) -> None:
    fields = json.loads(vault[0].encode())
    place = data.draw(st.sampled_from(["top", "slot"]))
    target = fields if place == "top" else fields["slots"][0]
    name = data.draw(st.sampled_from([*sorted(target), "argon2id", "more"]))
    value = data.draw(JSON)
    if target.get(name) == value and type(target.get(name)) is type(value):
        return
    if name == "argon2id" and value is None:  # the same as leaving it out
        return
    target[name] = value
    with pytest.raises(VaultError):
        VaultHeader.decode(json.dumps(fields).encode()).unlock(recovery)


@pytest.mark.parametrize("newer", [2, 3, 2**40])
def test_a_newer_format_is_told_from_garbage(newer: int) -> None:
    """Whatever else a newer format has."""
    data = json.dumps({"type": "vaultfs vault", "format": newer, "slots": "elsewhere", "more": [1, {}]}).encode()
    with pytest.raises(FormatTooNewError, match=f"format {newer}"):
        VaultHeader.decode(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"slots": []},
        {"slots": {}},
        {"epoch": 0},
        {"epoch": 2**32},
        {"vault_id": "00" * 15},
        {"vault_id": "G0" * 16},
        {"mac": "00" * 31},
        {"keyring": ""},
        {"keyring": "00" * 27},
        {"keyring": "00" * 29},
        {"keyring": "00" * (28 + 36 * 1025)},
        {"keyring": None},
    ],
)
def test_fields_out_of_bounds_are_refused(vault: tuple[VaultHeader, Keyring], changes: dict[str, Any]) -> None:
    with pytest.raises(NotAVaultError):
        VaultHeader.decode(edited(vault[0], **changes))


def test_too_many_slots_are_refused(vault: tuple[VaultHeader, Keyring]) -> None:
    header, _ = vault
    slot = json.loads(header.encode())["slots"][0]
    with pytest.raises(NotAVaultError):
        VaultHeader.decode(edited(header, slots=[slot] * (MOST_SLOTS + 1)))


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
