from __future__ import annotations

import pickle

import pytest

from vaultfs.crypto.user_seal import UserSeal
from vaultfs.errors import IntegrityError, UsageError

KEY = bytes(range(32))


def test_what_is_sealed_opens() -> None:
    for data in (b"", b"data", bytes(100_000)):
        sealed = UserSeal(KEY).seal(b"purpose", data)
        assert UserSeal(KEY).open(b"purpose", sealed) == data
        assert len(sealed) == len(data) + 28


def test_the_same_twice_looks_different() -> None:
    seal = UserSeal(KEY)
    assert seal.seal(b"purpose", b"data") != seal.seal(b"purpose", b"data")


def test_every_bit_counts() -> None:
    seal = UserSeal(KEY)
    sealed = seal.seal(b"purpose", b"data")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            seal.open(b"purpose", bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(IntegrityError):
            seal.open(b"purpose", sealed[:length])


def test_it_opens_for_its_purpose_and_with_its_key_alone() -> None:
    sealed = UserSeal(KEY).seal(b"purpose", b"data")
    for key, purpose in ((KEY, b"other"), (KEY, b""), (KEY[::-1], b"purpose")):
        with pytest.raises(IntegrityError):
            UserSeal(key).open(purpose, sealed)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_that_are_none(size: int) -> None:
    with pytest.raises(UsageError, match="must have 32"):
        UserSeal(bytes(size))


def test_the_key_does_not_show() -> None:
    seal = UserSeal(KEY)
    assert KEY.hex() not in repr(seal)
    with pytest.raises(TypeError):
        pickle.dumps(seal)
