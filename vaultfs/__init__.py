"""vaultfs: an encrypted vault that mounts as a normal folder.

The Python API: :func:`create_vault`, :func:`open_vault` and what they return.  Imported at first use, so that the
command line starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vaultfs.crypto.kdf import KdfParameters
    from vaultfs.crypto.slots import Secret
    from vaultfs.vault.api import Vault, open_vault
    from vaultfs.vault.opening import create_vault
    from vaultfs.vault.vault_file import VaultFile

_PLACES: Final = {
    "KdfParameters": "vaultfs.crypto.kdf",
    "Secret": "vaultfs.crypto.slots",
    "Vault": "vaultfs.vault.api",
    "VaultFile": "vaultfs.vault.vault_file",
    "create_vault": "vaultfs.vault.opening",
    "open_vault": "vaultfs.vault.api",
}

__all__ = ["KdfParameters", "Secret", "Vault", "VaultFile", "create_vault", "open_vault"]


def __getattr__(name: str) -> Any:
    """Import a public name at first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'vaultfs' has no attribute {name!r}")
    import importlib  # noqa: PLC0415  # only here

    return getattr(importlib.import_module(_PLACES[name]), name)
