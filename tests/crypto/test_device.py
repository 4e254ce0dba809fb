"""Ed25519 signatures of manifests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto.device import DeviceKey, verify
from vaultfs.errors import IntegrityError

# RFC 8032, section 7.1, test 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signatures_are_those_of_rfc_8032() -> None:
    key = DeviceKey(SEED)
    assert key.public == PUBLIC
    assert key.sign(b"\x72") == SIGNATURE
    verify(PUBLIC, b"\x72", SIGNATURE)


def test_any_flipped_bit_is_noticed() -> None:
    for what in range(3):
        parts = [bytearray(PUBLIC), bytearray(b"\x72"), bytearray(SIGNATURE)]
        for bit in range(8 * len(parts[what])):
            parts[what][bit // 8] ^= 1 << bit % 8
            with pytest.raises(IntegrityError):
                verify(*(bytes(part) for part in parts))
            parts[what][bit // 8] ^= 1 << bit % 8


@given(st.binary(max_size=70), st.binary(max_size=10), st.binary(max_size=70))
def test_garbage_raises_one_error(public: bytes, data: bytes, signature: bytes) -> None:
    with pytest.raises(IntegrityError):
        verify(public, data, signature)
    with pytest.raises(IntegrityError):
        verify(PUBLIC, data, signature)
