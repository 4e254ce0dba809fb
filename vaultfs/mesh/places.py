"""Where the mesh keeps what belongs to this user and machine, by the XDG base directory specification."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path, user_state_path

from vaultfs.ids import VaultId


def identity_path() -> Path:
    """The key of this machine: ``$XDG_CONFIG_HOME/vaultfs/mesh/identity.pem``."""
    return _config() / "identity.pem"


def grants_path() -> Path:
    """Whom this machine stores for: ``$XDG_CONFIG_HOME/vaultfs/mesh/grants.json``."""
    return _config() / "grants.json"


def pairing_path() -> Path:
    """Which pairing codes count: ``$XDG_CONFIG_HOME/vaultfs/mesh/pairing.json``."""
    return _config() / "pairing.json"


def confirmations_path() -> Path:
    """Which devices a person has confirmed: ``$XDG_CONFIG_HOME/vaultfs/mesh/confirmed.json``."""
    return _config() / "confirmed.json"


def book_path() -> Path:
    """Who stores for this machine: ``$XDG_CONFIG_HOME/vaultfs/mesh/peers.json``."""
    return _config() / "peers.json"


def default_store() -> Path:
    """What is stored for others, unless they say otherwise: ``$XDG_DATA_HOME/vaultfs/peer``."""
    return user_data_path("vaultfs", appauthor=False) / "peer"


def vault_state_path(vault_id: VaultId) -> Path:
    """What is known of the peers of a vault: ``$XDG_STATE_HOME/vaultfs/mesh/<vault id>.json``.

    Args:
        vault_id: 16 bytes.
    """
    return user_state_path("vaultfs", appauthor=False) / "mesh" / f"{vault_id.hex()}.json"


def manifests_path(vault_id: VaultId) -> Path:
    """The manifests of a vault that peers have and this machine has not: ``$XDG_CACHE_HOME/vaultfs/mesh/<vault id>``.

    Args:
        vault_id: 16 bytes.
    """
    return user_cache_path("vaultfs", appauthor=False) / "mesh" / vault_id.hex()


def _config() -> Path:
    return user_config_path("vaultfs", appauthor=False) / "mesh"
