"""Secrets that people hold, and the key slots that wrap the master key with them.

**Derivation.**  A password or key file goes through Argon2id with the slot's salt.  A recovery key is 160 random bits
and needs no slow hash.  The result, HKDF-SHA256 with the slot's salt and info ``vaultfs 1 slot <kind>``, gives 64
bytes: the wrapping key and the slot's MAC key.

**A slot commits to its key.**  AES-GCM alone would let someone craft one ciphertext that two passwords open.  So
HMAC-SHA256 over every public field and the ciphertext is checked first, in constant time: two keys with one MAC would
be a collision of SHA-256.

**Inside** are the epoch (u32 LE) and the master key, sealed by :func:`vaultfs.crypto.aead.seal_record`, whose purpose
is the slot's public fields.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from vaultfs.crypto.aead import OVERHEAD_BYTES, SALT_BYTES, open_record, seal_record
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import KEY_BYTES, MASTER_BYTES, Hidden, MasterKey, derive_key
from vaultfs.errors import IntegrityError, NotAVaultError, UsageError
from vaultfs.ids import VaultId

SecretKind = Literal["password", "recovery", "keyfile"]

LARGEST_SECRET_BYTES: Final = 1 << 20
SLOT_ID_BYTES: Final = 8
LONGEST_LABEL: Final = 64
"""Characters."""

_SEALED_BYTES: Final = MASTER_BYTES + OVERHEAD_BYTES
_MAC_BYTES: Final = 32

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no I, L, O, U.  The first three are read as 1, 1 and 0."""
_RECOVERY_BYTES: Final = 20
_RECOVERY_DIGITS: Final = 32
_CHECK_DIGITS: Final = 4
_GROUP_DIGITS: Final = 4
_SHORT_PASSWORD: Final = 10
"""Characters; a random password of fewer is guessed in months even at a second per guess, given enough machines."""
_SHORT_KEYFILE_BYTES: Final = 16


class Secret(Hidden):
    """A password, recovery key or key file.  Hidden in its repr; cannot be pickled or copied.

    Attributes:
        kind: which of the three; a slot opens with its own kind only.
        value: the bytes that are derived from; never printed.
    """

    __slots__ = ("kind", "value")

    def __init__(self, kind: SecretKind, value: bytes) -> None:
        self.kind: Final[SecretKind] = kind
        self.value: Final = value

    def __repr__(self) -> str:
        return f"<Secret, {self.kind}, hidden>"

    @classmethod
    def password(cls, value: bytes | str) -> Secret:
        """A password.

        Args:
            value: as typed or read.  Valid UTF-8 is normalised to NFC, because one keyboard types ``é`` as one
                character and another as two; other bytes are taken as they are.

        Raises:
            UsageError: it is empty, larger than 1 MiB, or has half a surrogate pair.
        """
        try:
            # Bytes that are no UTF-8 come from a terminal or the environment as the surrogates of PEP 383.
            raw = value.encode(errors="surrogateescape") if isinstance(value, str) else bytes(value)
        except UnicodeEncodeError:
            raise UsageError("the password has a character that no encoding has") from None
        _check_size(raw, "the password")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return cls("password", raw)
        return cls("password", unicodedata.normalize("NFC", text).encode())

    @classmethod
    def keyfile(cls, data: bytes) -> Secret:
        """The contents of a key file, to the byte.

        Args:
            data: all of them.

        Raises:
            UsageError: they are empty, or larger than 1 MiB.
        """
        _check_size(data, "the key file")
        return cls("keyfile", bytes(data))

    @classmethod
    def recovery(cls, text: str) -> Secret:
        """A recovery key as it was printed.

        Args:
            text: 36 letters and digits; case, spaces and hyphens do not matter.

        Raises:
            UsageError: it has another length, a character that none has, or a wrong check sum: a typing error.
        """
        if len(text) > 1000:
            raise UsageError("this is no recovery key: it is far too long")
        digits = "".join(text.split()).replace("-", "").upper().replace("O", "0").replace("I", "1").replace("L", "1")
        if len(digits) != _RECOVERY_DIGITS + _CHECK_DIGITS:
            raise UsageError(
                f"a recovery key has {_RECOVERY_DIGITS + _CHECK_DIGITS} letters and digits; this has {len(digits)}"
            )
        if not set(digits) <= set(_ALPHABET):
            raise UsageError("the recovery key has a character that no recovery key has; look for a typing error")
        number = 0
        for digit in digits[:_RECOVERY_DIGITS]:
            number = number << 5 | _ALPHABET.index(digit)
        value = number.to_bytes(_RECOVERY_BYTES, "big")
        if not hmac.compare_digest(_check_digits(value), digits[_RECOVERY_DIGITS:]):
            raise UsageError("the recovery key's check sum is wrong; look for a typing error")
        return cls("recovery", value)

    @classmethod
    def generate_recovery(cls) -> tuple[Secret, str]:
        """A new recovery key of 160 random bits.

        Returns:
            The secret, and the text to print: nine groups of four, joined by hyphens.
        """
        value = os.urandom(_RECOVERY_BYTES)
        digits = _base32(int.from_bytes(value, "big"), _RECOVERY_DIGITS) + _check_digits(value)
        groups = (digits[start : start + _GROUP_DIGITS] for start in range(0, len(digits), _GROUP_DIGITS))
        return cls("recovery", value), "-".join(groups)

    def weakness(self) -> str | None:
        """A hint for the person who chooses the secret; it does not show the secret.

        Returns:
            What is weak about it, or None if nothing is obvious.
        """
        if self.kind == "recovery":
            return None
        if self.kind == "keyfile":
            short = len(self.value) < _SHORT_KEYFILE_BYTES
            return f"the key file has fewer than {_SHORT_KEYFILE_BYTES} bytes" if short else None
        text = self.value.decode(errors="replace")
        if len(text) < _SHORT_PASSWORD:
            return f"the password has fewer than {_SHORT_PASSWORD} characters"
        if len(set(text)) < _SHORT_PASSWORD // 2:
            return f"the password has fewer than {_SHORT_PASSWORD // 2} different characters"
        if text.isdigit() and len(text) < 2 * _SHORT_PASSWORD:
            return "the password is a short number"
        return None


class SlotFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A slot as it stands in ``vault.json``; binary fields are hexadecimal."""

    id: str
    label: str
    kind: SecretKind
    created_s: int
    salt: str
    sealed: str
    mac: str
    argon2id: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class KeySlot:
    """One wrapped copy of the master key.

    Args:
        slot_id: 16 hexadecimal digits.
        label: a person's name for it; public.
        kind: of the secret that opens it.
        created_s: seconds since 1970, by the clock of whoever made it.
        kdf: None for a recovery key.
        salt: 32 random bytes.
        sealed: the epoch and the master key, encrypted.
        mac: HMAC-SHA256 over all of the above.
    """

    slot_id: str
    label: str
    kind: SecretKind
    created_s: int
    kdf: KdfParameters | None
    salt: bytes
    sealed: bytes
    mac: bytes

    @classmethod
    def create(
        cls,
        secret: Secret,
        master: MasterKey,
        vault_id: VaultId,
        *,
        label: str,
        kdf: KdfParameters,
        created_s: int | None = None,
    ) -> KeySlot:
        """Wrap a master key.

        Args:
            secret: what shall open the slot.
            master: what is wrapped.
            vault_id: bound into the slot.
            label: 1 to 64 printable characters.
            kdf: what a guess shall cost; not used for a recovery key.
            created_s: seconds since 1970; now if None.

        Raises:
            UsageError: the label is empty, too long, or has characters that do not print.
        """
        if not 1 <= len(label) <= LONGEST_LABEL or not label.isprintable():
            raise UsageError(f"a label has 1 to {LONGEST_LABEL} printable characters")
        slot_id = os.urandom(SLOT_ID_BYTES).hex()
        salt = os.urandom(SALT_BYTES)
        used_kdf = None if secret.kind == "recovery" else kdf
        moment_s = max(0, int(time.time())) if created_s is None else created_s
        public = _public_bytes(vault_id, slot_id, label, secret.kind, moment_s, used_kdf, salt)
        wrapping_key, mac_key = _slot_keys(secret, used_kdf, salt)
        sealed = seal_record(wrapping_key, public, master.encode())
        mac = hmac.digest(mac_key, frame(public, sealed), "sha256")
        return cls(slot_id, label, secret.kind, moment_s, used_kdf, salt, sealed, mac)

    def open(self, secret: Secret, vault_id: VaultId) -> MasterKey | None:
        """Unwrap the master key.

        Args:
            secret: what may open the slot.
            vault_id: the vault's.

        Returns:
            The master key; None if this secret does not open this slot.

        Raises:
            IntegrityError: a holder of the secret put something else in it.
        """
        if secret.kind != self.kind:
            return None
        public = self.public_bytes(vault_id)
        wrapping_key, mac_key = _slot_keys(secret, self.kdf, self.salt)
        if not hmac.compare_digest(hmac.digest(mac_key, frame(public, self.sealed), "sha256"), self.mac):
            return None
        return MasterKey.decode(open_record(wrapping_key, public, self.sealed))

    def public_bytes(self, vault_id: VaultId) -> bytes:
        """What of the slot everyone may read, without a second way to read it.

        Args:
            vault_id: the vault's.
        """
        return _public_bytes(vault_id, self.slot_id, self.label, self.kind, self.created_s, self.kdf, self.salt)

    def encode(self) -> SlotFields:
        """The slot as it is written to ``vault.json``."""
        kdf = None if self.kdf is None else (self.kdf.memory_kib, self.kdf.iterations, self.kdf.lanes)
        return SlotFields(
            id=self.slot_id,
            label=self.label,
            kind=self.kind,
            created_s=self.created_s,
            argon2id=kdf,
            salt=self.salt.hex(),
            sealed=self.sealed.hex(),
            mac=self.mac.hex(),
        )

    @classmethod
    def decode(cls, fields: SlotFields) -> KeySlot:
        """A slot as it was read from ``vault.json``.

        Args:
            fields: of the right types, not yet checked otherwise.

        Raises:
            NotAVaultError: a field has a wrong length or is not hexadecimal.
            IntegrityError: what Argon2id is asked for is out of bounds, or missing.
        """
        if (fields.argon2id is None) != (fields.kind == "recovery"):
            raise IntegrityError(
                f"vault.json is damaged or forged: a {fields.kind} slot with the parameters of another"
            )
        slot = cls(
            slot_id=unhex(fields.id, SLOT_ID_BYTES).hex(),
            label=fields.label,
            kind=fields.kind,
            created_s=fields.created_s,
            kdf=None if fields.argon2id is None else KdfParameters.from_header(*fields.argon2id),
            salt=unhex(fields.salt, SALT_BYTES),
            sealed=unhex(fields.sealed, _SEALED_BYTES),
            mac=unhex(fields.mac, _MAC_BYTES),
        )
        if not 1 <= len(slot.label) <= LONGEST_LABEL or not slot.label.isprintable() or not 0 <= slot.created_s < 2**63:
            raise NotAVaultError("vault.json cannot be read: a key slot's label or date is none")
        return slot


def frame(*parts: bytes) -> bytes:
    """Join byte strings so that no other list of them gives the same: each after its length, u32 LE.

    Args:
        parts: in an order that is part of the format.
    """
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def unhex(text: str, size_bytes: int) -> bytes:
    """Bytes from lower-case hexadecimal digits.

    Args:
        text: the digits.
        size_bytes: how many bytes they must give.

    Raises:
        NotAVaultError: they do not.
    """
    if len(text) != 2 * size_bytes or not set(text) <= set("0123456789abcdef"):
        raise NotAVaultError(f"vault.json cannot be read: a field is not {2 * size_bytes} hexadecimal digits")
    return bytes.fromhex(text)


def _public_bytes(
    vault_id: VaultId,
    slot_id: str,
    label: str,
    kind: SecretKind,
    created_s: int,
    kdf: KdfParameters | None,
    salt: bytes,
) -> bytes:
    """The public fields of a slot; the cost of a password's guess is among them."""
    costs = (0, 0, 0) if kdf is None else (kdf.memory_kib, kdf.iterations, kdf.lanes)
    return frame(
        b"vaultfs 1 slot",
        vault_id,
        bytes.fromhex(slot_id),
        label.encode(),
        kind.encode(),
        created_s.to_bytes(8, "little"),
        b"".join(cost.to_bytes(4, "little") for cost in costs),
        salt,
    )


def _slot_keys(secret: Secret, kdf: KdfParameters | None, salt: bytes) -> tuple[bytes, bytes]:
    """The wrapping key and the MAC key."""
    root = secret.value if kdf is None else kdf.derive(secret.value, salt)
    keys = derive_key(root, salt=salt, info=b"vaultfs 1 slot " + secret.kind.encode(), length=2 * KEY_BYTES)
    return keys[:KEY_BYTES], keys[KEY_BYTES:]


def _check_size(value: bytes, what: str) -> None:
    if not value:
        raise UsageError(f"{what} is empty")
    if len(value) > LARGEST_SECRET_BYTES:
        raise UsageError(f"{what} is larger than {LARGEST_SECRET_BYTES} bytes")


def _check_digits(value: bytes) -> str:
    """The first 20 bits of a hash: a typing error goes unseen once in a million."""
    digest = hashlib.sha256(b"vaultfs recovery key" + value).digest()
    return _base32(int.from_bytes(digest[:3], "big") >> 4, _CHECK_DIGITS)


def _base32(number: int, digits: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(digits)))
