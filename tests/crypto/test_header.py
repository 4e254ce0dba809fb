"""vault.json as a format: what it is, what opens it, and what is no header."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto.header import LARGEST_HEADER_BYTES, MOST_SLOTS, WRONG_PASSWORD, VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import (
    ExitCode,
    FormatTooNewError,
    NotAVaultError,
    VaultError,
    WrongPasswordError,
)
from vaultfs.ids import VaultId

from . import longhand
from .headers import WEAKEST, edited, keys_of, new_secret

GOLDEN = Path(__file__).parent / "golden" / "vault-format-1.json"
GOLDEN_RECOVERY = "0410-6105-0R3G-G28A-1C60-T3GF-208H-44RM-FFFA"
GOLDEN_SLOTS = [
    ("0798558faf516c9d", "on the laptop", "password", 1700000000),
    ("818b2d464b65e89c", "stick é", "keyfile", 1700000001),
    ("ec3f32ba2f97a64e", "on paper", "recovery", 1700000002),
]

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


def test_a_good_header_of_more_than_a_mebibyte_is_not_parsed(vault: tuple[VaultHeader, Keyring]) -> None:
    data = vault[0].encode()
    assert VaultHeader.decode(data.ljust(LARGEST_HEADER_BYTES)) == vault[0]
    with pytest.raises(NotAVaultError):
        VaultHeader.decode(data.ljust(LARGEST_HEADER_BYTES + 1))


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
