"""The Ed25519 key that signs a vault's manifests, and the check of such a signature."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vaultfs.crypto.keys import Hidden, require_key
from vaultfs.errors import IntegrityError


class DeviceKey(Hidden):
    """Signs.

    Args:
        seed: 32 bytes, :attr:`vaultfs.crypto.keys.Subkeys.device`.

    Attributes:
        public: the 32 bytes that verify its signatures.

    Raises:
        UsageError: the seed has another length.
    """

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        require_key(seed, "signing key's seed")
        self._private: Final = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: Final = self._private.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Sign data.

        Args:
            data: of any length.

        Returns:
            64 bytes, always the same for the same data (RFC 8032).
        """
        return self._private.sign(data)


def verify(public: bytes, data: bytes, signature: bytes) -> None:
    """Check a signature.

    Args:
        public: 32 bytes.
        data: what was signed.
        signature: 64 bytes.

    Raises:
        IntegrityError: the key did not sign this data, or key or signature are none.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise IntegrityError("a signature is wrong: what it signs was changed, or another key signed it") from None
