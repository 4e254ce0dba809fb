"""``vaultfs mount``: check what was asked, get the secret, and hand a plan to the FUSE side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vaultfs.cli.directories import log_path
from vaultfs.cli.mount_options import MountOptions, parse_mount_options
from vaultfs.cli.mount_plan import MountPlan
from vaultfs.cli.mounts import mount_at, vault_at
from vaultfs.cli.secret_sources import Prompt, SecretOption, SecretOptions, obtain
from vaultfs.cli.sizes import parse_duration
from vaultfs.cli.spare_segments import segment_filler, spare_segments
from vaultfs.errors import MountError, UsageError
from vaultfs.fuse import kernel_mount
from vaultfs.storage.layout import VaultLayout


def run(
    vault: Path,
    directory: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    foreground: Annotated[bool, Parameter(name=("--foreground", "-f"))] = False,
    read_only: bool = False,
    allow_other: bool = False,
    idle: str | None = None,
    commit_interval: str | None = None,
    snapshot: str | None = None,
    fill: bool = False,
    bwlimit: str | None = None,
    option: Annotated[list[str] | None, Parameter(name=("--option", "-o"))] = None,
    secret: SecretOption | None = None,
) -> int:
    """Mount a vault as a folder.

    Returns with 0 only when programs can use the folder; a daemon then serves it and logs to the state directory
    ('vaultfs status' names the file). Without --allow-other the folder is open to you alone.

    Args:
        vault: The vault's directory.
        directory: An empty directory to mount on.
        foreground: Serve in this process until Ctrl-C or umount, and log to standard error.
        read_only: Refuse every change.
        allow_other: Let other users in, as permissions allow. Users other than root need user_allow_other in
            /etc/fuse.conf.
        idle: Unmount after so long without use, as in 30m.
        commit_interval: Everything written is durable after so long, as in 5 or 0.5s. 5 if not given.
        snapshot: Mount this snapshot, read-only, instead of the present.
        fill: Fetch all that is missing here from the vault's remotes, in the background.
        bwlimit: With --fill: bytes per second at most, as in 500K or 10M.
        option: Mount options, separated by commas: ro, noatime, noexec, fsname=NAME, passfile=FILE and others.
        secret: Where the password comes from.
    """
    words = parse_mount_options(option or [])
    plan = make_plan(
        vault,
        directory,
        words=words,
        foreground=foreground,
        read_only=read_only,
        allow_other=allow_other,
        idle_s=words.idle_s if idle is None else parse_duration(idle, "--idle"),
        commit_interval_s=(
            words.commit_interval_s if commit_interval is None else parse_duration(commit_interval, "--commit-interval")
        ),
        snapshot=snapshot or words.snapshot,
        fill=fill,
        bwlimit=bwlimit,
        secret_options=secret or SecretOptions(),
    )
    return execute(plan)


def make_plan(
    vault: Path,
    directory: Path,
    *,
    words: MountOptions,
    secret_options: SecretOptions,
    foreground: bool = False,
    read_only: bool = False,
    allow_other: bool = False,
    idle_s: float | None = None,
    commit_interval_s: float | None = None,
    snapshot: str | None = None,
    fill: bool = False,
    bwlimit: str | None = None,
) -> MountPlan:
    """Check everything that can be checked without the secret, and then get the secret.

    Args:
        vault: as written.
        directory: as written.
        words: the ``-o`` options, for what no other argument says.
        secret_options: where the secret comes from; ``passfile=`` and its like in ``words`` if this says nothing.
        foreground: as in :class:`MountPlan`, like all that follow.
        read_only: likewise.
        allow_other: likewise.
        idle_s: likewise.
        commit_interval_s: likewise; None is the default.
        snapshot: likewise.
        fill: likewise.
        bwlimit: of the fill, as written.

    Raises:
        NotAVaultError: ``vault`` is none.
        MountError: ``directory`` cannot be mounted on.
        UsageError: arguments make no sense together.
    """
    if idle_s is not None and idle_s <= 0:
        raise UsageError("--idle: must be more than 0")
    if commit_interval_s is not None and not 0.05 <= commit_interval_s <= 3600:
        raise UsageError("--commit-interval: must be from 0.05 to 3600 seconds")
    read_only = read_only or words.read_only or snapshot is not None
    fill = fill or words.fill
    limit = bwlimit or words.bwlimit
    if fill and read_only:
        raise UsageError("--fill: a read-only mount adds nothing to the vault; leave one of the two out")
    if limit is not None and not fill:
        raise UsageError("--bwlimit: limits --fill, which is missing")
    rate = None
    if limit is not None:
        from vaultfs.cli.targets import parse_rate  # noqa: PLC0415  # brings what talks to remotes

        rate = parse_rate(limit)
    vault_path = vault_at(vault)
    if fill and not VaultLayout(vault_path).remotes.exists():
        raise UsageError(f"--fill: {vault} has no remote that could have what is not here")
    mountpoint = usable_mountpoint(directory, vault_path, nonempty=words.nonempty)
    unlocking = obtain(secret_options if secret_options.given() else words.secret, Prompt(f"Password for {vault}"))
    return MountPlan(
        vault_path=vault_path,
        mountpoint=mountpoint,
        source=words.source or os.fspath(vault),
        secret=unlocking,
        read_only=read_only,
        allow_other=allow_other or words.allow_other,
        idle_s=idle_s,
        commit_interval_s=5.0 if commit_interval_s is None else commit_interval_s,
        snapshot=snapshot,
        fill=fill,
        fill_bytes_per_s=rate,
        options=words.kernel,
        foreground=foreground,
        log_path=log_path(mountpoint),
    )


def usable_mountpoint(directory: Path, vault_path: Path, *, nonempty: bool) -> Path:
    """The folder's absolute path, if a mount there makes sense.

    Args:
        directory: as written.
        vault_path: absolute; neither may lie in the other.
        nonempty: hide what is in the folder.

    Raises:
        MountError: it is missing, in use, not empty, or entangled with the vault.
    """
    kernel_mount.check_mountpoint(directory)
    mountpoint = Path(os.path.realpath(directory))
    if mount_at(directory) is not None:
        raise MountError(f"{directory}: a vault is mounted there already")
    if mountpoint == vault_path or mountpoint in vault_path.parents or vault_path in mountpoint.parents:
        raise MountError(f"{directory}: the folder and the vault must not lie in one another")
    if not nonempty and any(mountpoint.iterdir()):
        raise MountError(f"{directory}: not empty; the mount would hide what is in it ('-o nonempty' allows that)")
    return mountpoint


def execute(plan: MountPlan) -> int:
    """Mount as planned; returns when the mount is live, or with ``foreground`` when it has ended."""
    from vaultfs.fuse.mounted import mount_vault  # noqa: PLC0415  # trio and pyfuse3 come after all checks

    plan.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = spare_segments(plan.vault_path)
    mount_vault(
        vault_path=plan.vault_path,
        mountpoint=plan.mountpoint,
        source=plan.source,
        secret=plan.secret,
        read_only=plan.read_only,
        allow_other=plan.allow_other,
        idle_s=plan.idle_s,
        commit_interval_s=plan.commit_interval_s,
        snapshot=plan.snapshot,
        options=plan.options,
        foreground=plan.foreground,
        log_path=plan.log_path,
        source_of_segments=source,
        filler=segment_filler(plan.vault_path, source, plan.fill_bytes_per_s) if plan.fill else None,
    )
    return 0
