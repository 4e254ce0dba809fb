"""What anybody may read in ``vault.json``: the format, whose vault it is, and the epoch of its key.

The header's own module needs ciphers and so is not for the sidecar.  Nothing here is authenticated: the sidecar only
uses it to keep vaults apart.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Final

import blake3
import msgspec

from vaultfs.errors import FormatTooNewError, NotAVaultError
from vaultfs.ids import VaultId
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout

NEWEST_FORMAT: Final = 1
LARGEST_HEADER_BYTES: Final = 1 << 20

_TYPE: Final = "vaultfs vault"
_VAULT_ID: Final = re.compile(r"[0-9a-f]{32}")
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Format(msgspec.Struct, frozen=True):
    """What every format, however new, has."""

    type: str
    format: int


class _Fields(msgspec.Struct, frozen=True):
    """What the sidecar wants of format 1."""

    vault_id: str
    epoch: int


@dataclass(frozen=True)
class PublicHeader:
    """The public part of a header.

    Attributes:
        vault_id: 16 bytes.
        epoch: of the current master key; it only rises.
        data: the whole file.
    """

    vault_id: VaultId
    epoch: int
    data: bytes

    @property
    def hash(self) -> str:
        """The BLAKE3 of the file, in hexadecimal."""
        return blake3.blake3(self.data).hexdigest()

    @classmethod
    def decode(cls, data: bytes, what: str) -> PublicHeader:
        """Read a header.

        Args:
            data: the whole file.
            what: to call it in messages.

        Raises:
            FormatTooNewError: a newer vaultfs wrote it.
            NotAVaultError: it is no header, or damaged.
        """
        if len(data) > LARGEST_HEADER_BYTES:
            raise NotAVaultError(f"{what} has more than {LARGEST_HEADER_BYTES} bytes: it is no vault's header")
        try:
            version = msgspec.json.decode(data, type=_Format)
            if version.type != _TYPE or version.format < 1:
                raise NotAVaultError(f"{what} is no vault's header")
            if version.format > NEWEST_FORMAT:
                raise FormatTooNewError(
                    f"{what} has format {version.format}, and this vaultfs knows formats up to {NEWEST_FORMAT}: "
                    "use a newer vaultfs"
                )
            fields = msgspec.json.decode(data, type=_Fields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise NotAVaultError(f"{what} is damaged, or no vault's header") from None
        if not _VAULT_ID.fullmatch(fields.vault_id) or not 0 < fields.epoch < 1 << 32:
            raise NotAVaultError(f"{what} is damaged, or no vault's header")
        return cls(VaultId(bytes.fromhex(fields.vault_id)), fields.epoch, data)


def read_header(layout: VaultLayout) -> PublicHeader:
    """The header of a vault on this machine.

    Raises:
        NotAVaultError: there is none, or it cannot be read.
        FormatTooNewError: a newer vaultfs wrote it.
        StorageError: the disk failed.
    """
    layout.require_vault()
    with storage_errors(f"cannot read {layout.header}"):
        descriptor = os.open(layout.header, _FLAGS)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotAVaultError(f"{layout.root} is not a vault: its vault.json is not a regular file")
            data = file.read(LARGEST_HEADER_BYTES + 1)
    return PublicHeader.decode(data, str(layout.header))
