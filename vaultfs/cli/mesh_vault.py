"""Which vault a verb about peers means: one on this machine, or only its id, where there is none yet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from vaultfs.cli.targets import vault_of
from vaultfs.errors import UsageError
from vaultfs.ids import VaultId
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.public_header import read_header

_VAULT_ID: Final = re.compile(r"[0-9a-fA-F]{32}")


class MeshVault(NamedTuple):
    """A vault that peers hold.

    Attributes:
        vault_id: 16 bytes.
        layout: where it is; None: not on this machine, as far as was said.
    """

    vault_id: VaultId
    layout: VaultLayout | None


def mesh_vault(word: str) -> MeshVault:
    """The vault that is meant.

    Args:
        word: a vault's directory, a folder where one is mounted, or a vault's id in 32 hexadecimal digits.

    Raises:
        NotAVaultError: it is none of these.
        VaultError: the vault cannot be looked at.
    """
    if _VAULT_ID.fullmatch(word) and not Path(word).exists():
        return MeshVault(parse_vault_id(word, "VAULT"), None)
    layout, _ = vault_of(Path(word))
    return MeshVault(read_header(layout).vault_id, layout)


def parse_vault_id(text: str, what: str) -> VaultId:
    """A vault's id.

    Args:
        text: as written.
        what: the option or argument, for the message.

    Raises:
        UsageError: it is none.
    """
    if not _VAULT_ID.fullmatch(text) or not int(text, 16):
        raise UsageError(f"{what}: {text!r} is no vault's id, which has 32 hexadecimal digits")
    return VaultId(bytes.fromhex(text))
