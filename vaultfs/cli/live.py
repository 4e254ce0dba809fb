"""Talk to the daemon of a mounted vault through its control socket."""

from __future__ import annotations

from typing import Any

from vaultfs.cli.mounts import LiveMount
from vaultfs.errors import VaultError
from vaultfs.fuse import control


def request(mount: LiveMount, verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the daemon and wait for its answer.

    Args:
        mount: which daemon.
        verb: ``status``, ``commit``, ``snapshot-create``, ``snapshot-list``, ``snapshot-delete`` or ``scrub``.
        arguments: of the verb.

    Raises:
        VaultError: the daemon does not answer, or what it answered.
    """
    return control.request(mount.mountpoint, verb, **arguments)


def daemon_pid(mount: LiveMount) -> int | None:
    """The process id of the daemon that serves a mount; None if there is none any more."""
    try:
        return int(request(mount, "status")["pid"])
    except VaultError:
        return None
