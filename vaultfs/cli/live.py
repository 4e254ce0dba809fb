"""Talk to the daemon of a mounted vault through its control socket."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from vaultfs.cli.mounts import LiveMount, live_mounts, mount_at, vault_at
from vaultfs.errors import VaultError
from vaultfs.fuse import control
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder


def request(mount: LiveMount, verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the daemon and wait for its answer.

    Args:
        mount: which daemon.
        verb: ``status``, ``commit``, ``snapshot-create``, ``snapshot-list``, ``snapshot-delete``, ``sync-prepare`` or
            ``scrub``.
        arguments: of the verb.

    Raises:
        VaultError: the daemon does not answer, or what it answered.
    """
    return control.request(mount.mountpoint, verb, **arguments)


def answers(mount: LiveMount) -> bool:
    """Whether the daemon talks to us; that of another user does not."""
    try:
        request(mount, "status")
    except VaultError:
        return False
    return True


def daemon_of(path: Path) -> LiveMount | None:
    """The live mount that a path means: a mounted folder, or a vault whose present is mounted somewhere.

    Args:
        path: as the person wrote it.

    Raises:
        NotAVaultError: it is neither a mounted folder nor a vault.
    """
    mount = mount_at(path)
    if mount is not None:
        return mount
    vault = vault_at(path)
    if read_holder(VaultLayout(vault)) is None:
        return None
    for each in live_mounts():
        try:
            state = request(each, "status")
        except VaultError:  # another user's, or its daemon is gone: not one that can be asked
            continue
        if state.get("snapshot") is None and Path(state["vault"]) == vault:
            return each
    return None


def is_alive(mount: LiveMount) -> bool:
    """Whether a mount has a daemon, although it may not talk to us."""
    try:
        os.statvfs(mount.mountpoint)
    except OSError as error:
        return error.errno == errno.EACCES  # another user's
    return True


def daemon_pid(mount: LiveMount) -> int | None:
    """The process id of the daemon that serves a mount; None if there is none any more, or it cannot be found out."""
    try:
        return int(request(mount, "status")["pid"])
    except VaultError:
        if not is_alive(mount):
            return None
    # Another user's, or one with another state directory: the vault's lock names it, if we find the vault.
    try:
        holder = read_holder(VaultLayout(Path(mount.source)))
    except VaultError:
        return None
    return holder.pid if holder is not None and holder.purpose.startswith("mounted") else None
