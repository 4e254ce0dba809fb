"""The master key of each epoch, the subkeys derived from it by purpose, and the keyed fingerprint of plaintext.

A master key is 32 random bytes and never encrypts anything itself: HKDF-SHA256 (RFC 5869) with the vault's id as salt
and one ``info`` string per purpose gives the keys that do.  Nothing here prints a key: every class that holds one hides
it in its repr and refuses to be pickled.
"""

from __future__ import annotations

import dataclasses
import hmac
import os
from collections.abc import Buffer, Mapping
from typing import Final, NoReturn

import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vaultfs.errors import IntegrityError
from vaultfs.ids import KeyEpoch, VaultId

KEY_BYTES: Final = 32
VAULT_ID_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 32
