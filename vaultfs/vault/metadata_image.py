"""A vault's metadata as of one snapshot: a database file that nobody changes, opened with the key that fits."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError
from vaultfs.metadata.database import MetadataDatabase


def open_image(path: Path, keyring: Keyring) -> MetadataDatabase:
    """A database file that nobody changes, opened for reading with the key that fits; a WAL beside it does not count.

    Raises:
        IntegrityError: no key opens it.
    """
    for epoch in reversed(keyring.epochs[1:]):
        with contextlib.suppress(IntegrityError):
            return MetadataDatabase.open(path, keyring.subkeys(epoch).metadata, immutable=True)
    return MetadataDatabase.open(path, keyring.subkeys(keyring.epochs[0]).metadata, immutable=True)
