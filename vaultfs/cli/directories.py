"""Where vaultfs keeps what belongs to this user and machine, by the XDG base directory specification."""

from __future__ import annotations

import hashlib
from pathlib import Path

import platformdirs


def state_directory() -> Path:
    """Logs of daemons and the witnesses against rollback: ``$XDG_STATE_HOME/vaultfs``."""
    return platformdirs.user_state_path("vaultfs", appauthor=False)


def cache_directory() -> Path:
    """What may be lost: ``$XDG_CACHE_HOME/vaultfs``."""
    return platformdirs.user_cache_path("vaultfs", appauthor=False)


def log_path(mountpoint: Path) -> Path:
    """The log file of the daemon that serves a mount point: one per mount point, with a readable name.

    Args:
        mountpoint: absolute path.
    """
    digest = hashlib.sha256(bytes(mountpoint)).hexdigest()[:12]
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in mountpoint.name)[:40]
    return state_directory() / "log" / f"mount-{readable or 'root'}-{digest}.log"
