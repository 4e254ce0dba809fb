"""Seals small things for this user, under a random key that lies in a file of its own; no vault's key is involved."""

from __future__ import annotations

from vaultfs.crypto.aead import open_record, seal_record
from vaultfs.crypto.keys import Hidden, require_key


class UserSeal(Hidden):
    """AES-256-GCM with hedged nonces, see `vaultfs.crypto.aead`.

    Args:
        key: 32 random bytes.

    Raises:
        UsageError: the key has another length.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        require_key(key, "key of this user")
        self._key = key

    def seal(self, purpose: bytes, data: bytes) -> bytes:
        """Encrypt and authenticate.

        Args:
            purpose: public; bound into the ciphertext.
            data: of any length.
        """
        return seal_record(self._key, b"user" + purpose, data)

    def open(self, purpose: bytes, sealed: bytes) -> bytes:
        """Decrypt and check.

        Raises:
            IntegrityError: it was not sealed so with this key.
        """
        return open_record(self._key, b"user" + purpose, sealed)
