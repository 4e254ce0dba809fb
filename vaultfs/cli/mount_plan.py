"""What ``vaultfs mount`` was asked for, checked and complete: the arguments of ``vaultfs.fuse.mounted.mount_vault``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vaultfs.crypto.slots import Secret


@dataclass(frozen=True, kw_only=True)
class MountPlan:
    """One mount.

    Attributes:
        vault_path: the vault's directory, absolute.
        mountpoint: the folder, absolute, symlinks resolved.
        source: what ``mount`` shows as the device: VAULT as it was written, unless ``-o fsname=`` says otherwise.
        secret: unlocks the vault; never shown.
        read_only: refuse every change.
        allow_other: let other users in.
        idle_s: unmount after so many seconds without a request; None: never.
        commit_interval_s: everything is durable after at most so many seconds.
        snapshot: mount this snapshot, read-only, instead of the present.
        fill: fetch what is missing here from the vault's remotes, meanwhile.
        fill_bytes_per_s: at most; None: no limit.
        options: words of ``-o`` for the kernel, in order.
        foreground: serve in this process, logging to standard error.
        log_path: where the daemon logs.
    """

    vault_path: Path
    mountpoint: Path
    source: str
    secret: Secret = field(repr=False)
    read_only: bool = False
    allow_other: bool = False
    idle_s: float | None = None
    commit_interval_s: float = 5.0
    snapshot: str | None = None
    fill: bool = False
    fill_bytes_per_s: int | None = None
    options: tuple[str, ...] = ()
    foreground: bool = False
    log_path: Path
