"""Passwords, recovery keys and key files as people give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto.slots import LARGEST_SECRET_BYTES, Secret
from vaultfs.errors import UsageError

RECOVERY_TEXT = "0410-6105-0R3G-G28A-1C60-T3GF-208H-44RM-FFFA"
RECOVERY_VALUE = bytes(range(1, 21))
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_nfc_and_nfd_of_a_password_are_one() -> None:
    composed, decomposed = "caf\u00e9 \u1e69", "cafe\u0301 s\u0323\u0307"
    values = {Secret.password(text).value for text in (composed, decomposed)}
    values |= {Secret.password(text.encode()).value for text in (composed, decomposed)}
    assert values == {composed.encode()}


def test_compatible_characters_stay_different() -> None:
    """NFKC would make these equal, and a password weaker than it looks."""
    assert Secret.password("\ufb01sh").value != Secret.password("fish").value


def test_a_password_that_is_no_utf8_is_taken_as_it_is() -> None:
    raw = b"caf\xe9\xff\x00"
    assert Secret.password(raw).value == raw
    assert Secret.password(raw.decode(errors="surrogateescape")).value == raw


@given(st.binary(min_size=1, max_size=30))
def test_bytes_and_their_text_are_one_password(raw: bytes) -> None:
    assert Secret.password(raw).value == Secret.password(raw.decode(errors="surrogateescape")).value


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UsageError):
        Secret.password("x\ud800")


@pytest.mark.parametrize("value", [b"", ""])
def test_an_empty_password_is_refused(value: bytes | str) -> None:
    with pytest.raises(UsageError, match="empty"):
        Secret.password(value)


def test_a_password_of_a_mebibyte_is_the_largest() -> None:
    assert len(Secret.password(b"x" * LARGEST_SECRET_BYTES).value) == 1 << 20
    with pytest.raises(UsageError, match="larger"):
        Secret.password(b"x" * (LARGEST_SECRET_BYTES + 1))


def test_white_space_of_a_password_counts() -> None:
    assert Secret.password(" a\n").value == b" a\n"


def test_a_key_file_is_taken_to_the_byte() -> None:
    decomposed = "e\u0301".encode()
    assert Secret.keyfile(decomposed).value == decomposed
    with pytest.raises(UsageError):
        Secret.keyfile(b"")
    with pytest.raises(UsageError):
        Secret.keyfile(bytes(LARGEST_SECRET_BYTES + 1))


# ------------------------------------------------------------------------------------------------ recovery keys


def test_the_text_of_a_recovery_key_never_changes() -> None:
    """It stands on paper."""
    assert Secret.recovery(RECOVERY_TEXT).value == RECOVERY_VALUE


def test_a_generated_recovery_key_reads_back() -> None:
    for _ in range(50):
        secret, text = Secret.generate_recovery()
        assert [len(group) for group in text.split("-")] == [4] * 9
        assert set(text) <= set(ALPHABET + "-")
        assert len(secret.value) == 20
        again = Secret.recovery(text)
        assert (again.kind, again.value) == ("recovery", secret.value)


def test_recovery_keys_are_random() -> None:
    assert len({Secret.generate_recovery()[1] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "change",
    [
        str.lower,
        lambda text: text.replace("-", ""),
        lambda text: text.replace("-", " "),
        lambda text: f"\n  {text.replace('-', ' - ')}\r\n",
        lambda text: text.replace("0", "O").replace("1", "I"),
        lambda text: text.replace("0", "o").replace("1", "l"),
    ],
)
def test_how_a_recovery_key_is_typed_does_not_matter(change: object) -> None:
    assert callable(change)
    assert Secret.recovery(change(RECOVERY_TEXT)).value == RECOVERY_VALUE


def test_every_wrong_character_is_noticed() -> None:
    digits = RECOVERY_TEXT.replace("-", "")
    for place, right in enumerate(digits):
        for wrong in ALPHABET + "U$\u00e9\U0001f600":
            if wrong != right:
                with pytest.raises(UsageError):
                    Secret.recovery(digits[:place] + wrong + digits[place + 1 :])


def test_swapped_missing_and_doubled_characters_are_noticed() -> None:
    digits = RECOVERY_TEXT.replace("-", "")
    for place in range(len(digits) - 1):
        swapped = digits[:place] + digits[place + 1] + digits[place] + digits[place + 2 :]
        wrong = [digits[:place] + digits[place + 1 :], digits[:place] + digits[place] + digits[place:]]
        for text in wrong + ([swapped] if swapped != digits else []):
            with pytest.raises(UsageError):
                Secret.recovery(text)


@given(st.text(max_size=60))
def test_other_text_is_no_recovery_key(text: str) -> None:
    with pytest.raises(UsageError):
        Secret.recovery(text)


@pytest.mark.parametrize("text", ["", "0" * 36, "0" * 10**6])
def test_empty_constant_and_endless_text_is_no_recovery_key(text: str) -> None:
    with pytest.raises(UsageError):
        Secret.recovery(text)


def test_errors_do_not_repeat_the_secret() -> None:
    for text in (RECOVERY_TEXT[:-1], RECOVERY_TEXT[:-1] + "$", RECOVERY_TEXT[:-1] + "0"):
        with pytest.raises(UsageError) as caught:
            Secret.recovery(text)
        assert RECOVERY_TEXT[:4] not in str(caught.value)


# ------------------------------------------------------------------------------------------------ weakness


@pytest.mark.parametrize("value", ["x", "a" * 100, "123456789012", "short", "\u00e9\u00e8" * 4, b"\xff" * 20])
def test_weak_passwords_are_pointed_out(value: str | bytes) -> None:
    hint = Secret.password(value).weakness()
    assert hint is not None
    assert str(value) not in hint


@pytest.mark.parametrize(
    "value", ["correct horse battery staple", "kR7#vq2!Lw", "8675309 8675309 12345", b"\xff\xfe" * 9]
)
def test_other_passwords_are_not(value: str | bytes) -> None:
    weak = isinstance(value, bytes)
    assert (Secret.password(value).weakness() is not None) is weak


def test_a_short_key_file_is_weak_and_a_recovery_key_never() -> None:
    assert Secret.keyfile(bytes(15)).weakness() is not None
    assert Secret.keyfile(bytes(16)).weakness() is None
    assert Secret.generate_recovery()[0].weakness() is None
