"""Derivation, the keyring, and that keys do not show."""

from __future__ import annotations

import copy
import os
import pickle

import pytest

from vaultfs.crypto.aead import SegmentCipher
from vaultfs.crypto.device import DeviceKey
from vaultfs.crypto.keys import Keyring, MasterKey, Subkeys, derive_key, fingerprint
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import KeyEpoch, VaultId

from . import longhand

PURPOSES = ("chunk", "fingerprint", "metadata", "manifest", "record", "header_mac", "device")
VAULT = VaultId(bytes(range(16)))
KEY = bytes(range(32, 64))


def test_hkdf_gives_the_first_vector_of_rfc_5869() -> None:
    okm = derive_key(b"\x0b" * 22, salt=bytes(range(13)), info=bytes(range(0xF0, 0xFA)), length=42)
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )  # fmt: skip


@pytest.mark.parametrize("purpose", PURPOSES)
def test_subkeys_are_derived_as_documented(purpose: str) -> None:
    subkeys = Subkeys(MasterKey(KEY, KeyEpoch(1)), VAULT)
    assert getattr(subkeys, purpose) == longhand.hkdf(KEY, VAULT, b"vaultfs 1 " + purpose.encode())


def test_subkeys_never_change() -> None:
    """A change here locks every vault there is."""
    subkeys = Subkeys(MasterKey(KEY, KeyEpoch(1)), VAULT)
    assert fingerprint(KEY, b"".join(getattr(subkeys, purpose) for purpose in PURPOSES)).hex() == (
        "c1b95164e5f7ccc0c4ee22766c53d1a8baf4f402c504e960d9d0b72b70ab0a4d"
    )


def test_subkeys_differ_by_purpose_master_key_and_vault() -> None:
    keys = [
        getattr(Subkeys(MasterKey(key, KeyEpoch(1)), vault), purpose)
        for purpose in PURPOSES
        for key in (KEY, bytes(32))
        for vault in (VAULT, VaultId(bytes(16)))
    ]
    assert len(set(keys)) == len(PURPOSES) * 4
    assert {len(key) for key in keys} == {32}


def test_the_fingerprint_is_keyed_blake3() -> None:
    """The first two vectors of BLAKE3's own keyed_hash."""
    key = b"whats the Elvish word for friend"
    assert fingerprint(key, b"").hex() == "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"
    assert fingerprint(key, b"\0").hex() == "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"
    assert fingerprint(key, memoryview(b"\0")) == fingerprint(key, bytearray(1))


def test_equal_plaintext_has_another_fingerprint_in_another_vault_or_epoch() -> None:
    rings = [Subkeys(MasterKey.generate(KeyEpoch(1)), VAULT) for _ in range(2)]
    assert fingerprint(rings[0].fingerprint, b"x") != fingerprint(rings[1].fingerprint, b"x")


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_master_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(UsageError):
        MasterKey(bytes(size), KeyEpoch(1))
    with pytest.raises(UsageError):
        DeviceKey(bytes(size))


@pytest.mark.parametrize("epoch", [-1, 0, 2**32])
def test_an_epoch_out_of_range_is_refused(epoch: int) -> None:
    with pytest.raises(UsageError):
        MasterKey(KEY, KeyEpoch(epoch))


def test_a_vault_id_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError):
        Subkeys(MasterKey(KEY, KeyEpoch(1)), VaultId(bytes(15)))


def test_master_keys_are_random() -> None:
    assert len({MasterKey.generate(KeyEpoch(1)).key for _ in range(20)}) == 20


def test_an_encoded_master_key_is_epoch_and_key() -> None:
    encoded = MasterKey(KEY, KeyEpoch(0x01020304)).encode()
    assert encoded == b"\x04\x03\x02\x01" + KEY
    decoded = MasterKey.decode(encoded)
    assert (decoded.key, decoded.epoch) == (KEY, 0x01020304)


@pytest.mark.parametrize("data", [b"", bytes(4) + KEY, b"\1\0\0\0" + KEY[:-1], b"\1\0\0\0\0" + KEY + b"\0" * 40])
def test_what_is_no_master_key_does_not_decode(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        MasterKey.decode(data)


def test_a_keyring_orders_its_epochs_and_the_newest_rules() -> None:
    masters = {epoch: MasterKey.generate(KeyEpoch(epoch)) for epoch in (3, 1, 2)}
    ring = Keyring(VAULT, masters.values())
    assert ring.epochs == (1, 2, 3)
    assert ring.epoch == 3
    assert ring.master is masters[3]
    assert ring.current is ring.subkeys(KeyEpoch(3))
    assert ring.subkeys(KeyEpoch(1)).chunk == Subkeys(masters[1], VAULT).chunk
    assert [master.epoch for master in ring.masters] == [1, 2, 3]
    assert [ring.subkeys(epoch).epoch for epoch in ring.epochs] == [1, 2, 3]


def test_a_keyring_refuses_an_epoch_it_does_not_have() -> None:
    with pytest.raises(IntegrityError, match="epoch 7"):
        Keyring(VAULT, [MasterKey(KEY, KeyEpoch(1))]).subkeys(KeyEpoch(7))


def test_a_keyring_needs_keys_of_different_epochs() -> None:
    with pytest.raises(UsageError):
        Keyring(VAULT, [])
    with pytest.raises(UsageError):
        Keyring(VAULT, [MasterKey.generate(KeyEpoch(1)), MasterKey.generate(KeyEpoch(1))])


def holders() -> list[object]:
    master = MasterKey(KEY, KeyEpoch(1))
    return [
        master,
        Subkeys(master, VAULT),
        Keyring(VAULT, [master]),
        SegmentCipher(KEY, VAULT, bytes(32)),
        DeviceKey(KEY),
        Secret.password("correct horse"),
    ]


@pytest.mark.parametrize("holder", holders(), ids=lambda holder: type(holder).__name__)
def test_what_holds_keys_shows_none_and_cannot_be_copied(holder: object) -> None:
    shown = f"{holder!r} {holder!s} {holder}"
    assert "hidden" in shown
    for secret in (KEY.hex(), repr(KEY), "correct horse"):
        assert secret not in shown
    assert not hasattr(holder, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(holder, protocol)
    with pytest.raises(TypeError):
        copy.copy(holder)
    with pytest.raises(TypeError):
        copy.deepcopy(holder)


def test_the_fingerprint_of_much_data_is_of_all_of_it() -> None:
    data = bytearray(os.urandom(1 << 17))
    before = fingerprint(KEY, data)
    data[-1] ^= 1
    assert fingerprint(KEY, data) != before
