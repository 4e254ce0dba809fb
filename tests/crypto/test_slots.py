"""One key slot: what opens it, and what does not."""

from __future__ import annotations

import dataclasses
import hmac
import os
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from vaultfs.crypto import aead
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import MasterKey
from vaultfs.crypto.slots import KeySlot, Secret, SlotFields
from vaultfs.errors import IntegrityError, NotAVaultError, UsageError
from vaultfs.ids import KeyEpoch, VaultId

from . import longhand

VAULT = VaultId(bytes(range(16)))
MASTER = MasterKey(bytes(range(50, 82)), KeyEpoch(3))


def slot_for(secret: Secret) -> KeySlot:
    return KeySlot.create(secret, MASTER, VAULT, label="a label", kdf=KdfParameters.weakest(), created_s=1_700_000_000)


def wrapping_keys(root: bytes, salt: bytes, kind: str) -> tuple[bytes, bytes]:
    keys = longhand.hkdf(root, salt, b"vaultfs 1 slot " + kind.encode(), 64)
    return keys[:32], keys[32:]


@pytest.mark.parametrize("kind", ["password", "keyfile"])
def test_passwords_and_key_files_wrap_the_master_key_as_documented(kind: str, dead_random: None) -> None:
    secret = {"password": Secret.password, "keyfile": Secret.keyfile}[kind](b"correct horse")
    slot = slot_for(secret)
    salt = b"\x5a" * 32
    argon2 = Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=65536)
    wrapping_key, mac_key = wrapping_keys(argon2.derive(b"correct horse"), salt, kind)
    public = longhand.slot_public(
        VAULT, b"\x5a" * 8, "a label", kind, 1_700_000_000, (65536, 3, 4), salt
    )  # fmt: skip
    sealed = longhand.seal_record(wrapping_key, public, struct.pack("<I", 3) + MASTER.key, b"\x5a" * 16)
    assert slot.sealed == sealed
    assert slot.mac == hmac.digest(mac_key, longhand.frame(public, sealed), "sha256")
    opened = slot.open(secret, VAULT)
    assert opened is not None
    assert (opened.key, opened.epoch) == (MASTER.key, 3)


def test_recovery_keys_wrap_the_master_key_as_documented(recovery: Secret, dead_random: None) -> None:
    slot = slot_for(recovery)
    salt = b"\x5a" * 32
    wrapping_key, mac_key = wrapping_keys(recovery.value, salt, "recovery")
    public = longhand.slot_public(VAULT, b"\x5a" * 8, "a label", "recovery", 1_700_000_000, (0, 0, 0), salt)
    sealed = longhand.seal_record(wrapping_key, public, struct.pack("<I", 3) + MASTER.key, b"\x5a" * 16)
    assert slot.kdf is None
    assert slot.sealed == sealed
    assert slot.mac == hmac.digest(mac_key, longhand.frame(public, sealed), "sha256")


def test_another_secret_does_not_open_the_slot(recovery: Secret) -> None:
    slot = slot_for(recovery)
    assert slot.open(Secret.generate_recovery()[0], VAULT) is None
    assert slot.open(recovery, VaultId(bytes(16))) is None


def test_a_secret_of_another_kind_is_not_even_tried(recovery: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes as a password neither open the slot, nor cost an Argon2id."""

    def derive(self: KdfParameters, secret: bytes, salt: bytes) -> bytes:
        raise AssertionError

    monkeypatch.setattr(KdfParameters, "derive", derive)
    slot = slot_for(recovery)
    for kind in ("password", "keyfile"):
        assert slot.open(Secret(kind, recovery.value), VAULT) is None
        other = dataclasses.replace(slot, kind=kind, kdf=KdfParameters.weakest())
        assert other.open(recovery, VAULT) is None


def test_a_changed_field_closes_the_slot(recovery: Secret) -> None:
    slot = slot_for(recovery)
    changes: dict[str, Any] = {
        "slot_id": "00" * 8,
        "label": "another",
        "created_s": 1,
        "kdf": KdfParameters.weakest(),
        "salt": bytes(32),
    }
    for name, value in changes.items():
        changed = dataclasses.replace(slot, **{name: value})
        assert changed.open(recovery, VAULT) is None, name


def test_any_flipped_bit_of_salt_ciphertext_or_mac_closes_the_slot(recovery: Secret) -> None:
    slot = slot_for(recovery)
    for name in ("salt", "sealed", "mac"):
        value = getattr(slot, name)
        for bit in range(8 * len(value)):
            changed = bytearray(value)
            changed[bit // 8] ^= 1 << bit % 8
            changes: dict[str, Any] = {name: bytes(changed)}
            assert dataclasses.replace(slot, **changes).open(recovery, VAULT) is None, (name, bit)


def test_the_mac_is_checked_before_the_ciphertext(recovery: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = slot_for(recovery)
    monkeypatch.setattr("vaultfs.crypto.slots.open_record", lambda *arguments: pytest.fail("opened unchecked"))
    assert dataclasses.replace(slot, mac=bytes(32)).open(recovery, VAULT) is None


def test_a_ciphertext_that_two_secrets_open_opens_with_one() -> None:
    """GCM does not commit to its key.  The second block is solved so that one tag is right under both keys."""
    secrets = [Secret.generate_recovery()[0] for _ in range(2)]
    slot = slot_for(secrets[0])
    public = slot.public_bytes(VAULT)
    pairs = [wrapping_keys(secret.value, slot.salt, "recovery") for secret in secrets]
    keys = [longhand.hkdf(wrapping_key, b"", b"vaultfs 1 record", 64)[:32] for wrapping_key, _ in pairs]
    nonce = os.urandom(12)
    plain = MASTER.encode()
    ciphertext = bytearray(longhand.gcm_crypt(keys[0], nonce, plain))
    ciphertext[16:32] = bytes(16)
    tags = [int.from_bytes(longhand.gcm_tag(key, nonce, public, bytes(ciphertext)), "big") for key in keys]
    # Blocks after the associated data: two whole ones, a short one, the lengths; so the second one's power is 3.
    powers = []
    for key in keys:
        power = longhand.gcm_hash_key(key)
        powers.append(longhand.gf_multiply(longhand.gf_multiply(power, power), power))
    block = longhand.gf_multiply(tags[0] ^ tags[1], longhand.gf_inverse(powers[0] ^ powers[1]))
    ciphertext[16:32] = block.to_bytes(16, "big")
    tag = longhand.gcm_tag(keys[0], nonce, public, bytes(ciphertext))
    sealed = nonce + bytes(ciphertext) + tag
    assert [len(aead.open_record(wrapping_key, public, sealed)) for wrapping_key, _ in pairs] == [36, 36]
    mac = hmac.digest(pairs[0][1], longhand.frame(public, sealed), "sha256")
    crafted = dataclasses.replace(slot, sealed=sealed, mac=mac)
    assert crafted.open(secrets[0], VAULT) is not None
    assert crafted.open(secrets[1], VAULT) is None


def test_a_slot_with_something_else_inside_is_noticed(recovery: Secret) -> None:
    """Only someone who knows the secret can make it; it must not look like a usage error."""
    slot = slot_for(recovery)
    public = slot.public_bytes(VAULT)
    wrapping_key, mac_key = wrapping_keys(recovery.value, slot.salt, "recovery")
    sealed = aead.seal_record(wrapping_key, public, bytes(36))
    crafted = dataclasses.replace(
        slot, sealed=sealed, mac=hmac.digest(mac_key, longhand.frame(public, sealed), "sha256")
    )
    with pytest.raises(IntegrityError):
        crafted.open(recovery, VAULT)


@pytest.mark.parametrize("label", ["", "x" * 65, "two\nlines", "\x1b[31m", "bell\a", "\ud800", "\u202eright to left"])
def test_labels_that_do_not_print_are_refused(label: str, recovery: Secret, kdf: KdfParameters) -> None:
    with pytest.raises(UsageError, match="label"):
        KeySlot.create(recovery, MASTER, VAULT, label=label, kdf=kdf)
    with pytest.raises(NotAVaultError):
        KeySlot.decode(SlotFields("00" * 8, label, "recovery", 1, "00" * 32, "00" * 64, "00" * 32))


def test_a_clock_before_1970_does_not_matter(
    recovery: Secret, kdf: KdfParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: -1e9)
    slot = KeySlot.create(recovery, MASTER, VAULT, label="a", kdf=kdf)
    assert slot.created_s == 0
    assert slot.open(recovery, VAULT) is not None


def test_slots_share_nothing(recovery: Secret) -> None:
    first, second = slot_for(recovery), slot_for(recovery)
    for name in ("slot_id", "salt", "sealed", "mac"):
        assert getattr(first, name) != getattr(second, name)


def test_a_decoded_slot_is_the_encoded_one(recovery: Secret) -> None:
    slot = slot_for(recovery)
    assert KeySlot.decode(slot.encode()) == slot


@pytest.mark.parametrize(
    "fields",
    [
        SlotFields("00" * 8, "a", "password", 1, "00" * 32, "00" * 64, "00" * 32),
        SlotFields("00" * 8, "a", "recovery", 1, "00" * 32, "00" * 64, "00" * 32, (65536, 3, 4)),
        SlotFields("00" * 8, "a", "password", 1, "00" * 32, "00" * 64, "00" * 32, (65535, 3, 4)),
        SlotFields("00" * 8, "a", "keyfile", 1, "00" * 32, "00" * 64, "00" * 32, (1 << 30, 3, 4)),
    ],
)
def test_a_slot_with_parameters_of_another_is_refused(fields: SlotFields) -> None:
    with pytest.raises(IntegrityError):
        KeySlot.decode(fields)


@pytest.mark.parametrize(
    "fields",
    [
        SlotFields("00" * 7, "a", "recovery", 1, "00" * 32, "00" * 64, "00" * 32),
        SlotFields("0G" * 8, "a", "recovery", 1, "00" * 32, "00" * 64, "00" * 32),
        SlotFields("AA" * 8, "a", "recovery", 1, "00" * 32, "00" * 64, "00" * 32),
        SlotFields("00" * 8, "a", "recovery", 1, "00" * 16, "00" * 64, "00" * 32),
        SlotFields("00" * 8, "a", "recovery", 1, "00" * 32, "00" * 60, "00" * 32),
        SlotFields("00" * 8, "a", "recovery", 1, "00" * 32, "00" * 64, ""),
        SlotFields("00" * 8, "a", "recovery", -1, "00" * 32, "00" * 64, "00" * 32),
        SlotFields("00" * 8, "a", "recovery", 2**63, "00" * 32, "00" * 64, "00" * 32),
    ],
)
def test_a_slot_with_fields_of_another_length_is_refused(fields: SlotFields) -> None:
    with pytest.raises(NotAVaultError):
        KeySlot.decode(fields)
