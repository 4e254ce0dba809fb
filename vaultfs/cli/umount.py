"""``vaultfs umount``: make everything durable, unmount, and wait until the daemon is gone."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from vaultfs.cli.live import answers, daemon_pid, is_alive, request
from vaultfs.cli.mounts import LiveMount, mount_at
from vaultfs.cli.output import note
from vaultfs.errors import MountError, VaultError
from vaultfs.fuse import kernel_mount

_PATIENCE_MS: Final = 10_000
_BUSY_TRIES: Final = 5
_BUSY_PAUSE_S: Final = 0.1


def run(directory: Annotated[Path, Parameter(name="DIR")], /, *, lazy: bool = False) -> int:
    """Unmount a vault; returns when everything is durable and the daemon gone.

    Args:
        directory: The mounted folder.
        lazy: Detach the folder at once although programs have files open in it, and wait for them.
    """
    mount = mount_at(directory)
    if mount is None:
        raise MountError(f"{directory}: no vault is mounted there")
    pid = daemon_pid(mount)
    if pid is None:
        return _unmount_unknown(mount, lazy=lazy) if is_alive(mount) else _clear_dead(mount)
    try:
        daemon = os.pidfd_open(pid)
    except ProcessLookupError:
        return _clear_dead(mount)
    try:
        _make_durable(mount)
        _unmount(mount, lazy=lazy)
        _wait(daemon, mount)
    except kernel_mount.MountBusyError as error:
        raise MountError(f"{error}{_users(mount.mountpoint, pid)}") from None
    finally:
        os.close(daemon)
    return 0


def _make_durable(mount: LiveMount) -> None:
    """Commit while an error can still be told; the daemon's own last commit then has little left to do."""
    try:
        _sync(mount)
        if answers(mount):
            request(mount, "commit")
    except (OSError, VaultError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VaultError(
            f"{mount.mountpoint} stays mounted: what was written cannot be made durable: {reason}"
        ) from error


def _sync(mount: LiveMount) -> None:
    """Have the kernel write its dirty pages.

    The first syncfs(2) also reports errors of writes long ago that nobody asked about; only one that comes back means
    that data is still at stake.
    """
    try:
        kernel_mount.sync_filesystem(mount.mountpoint)
    except OSError as error:
        kernel_mount.sync_filesystem(mount.mountpoint)
        note(f"{mount.mountpoint}: something written earlier was lost, as its program was told: {error.strerror}")


def _unmount(mount: LiveMount, *, lazy: bool) -> None:
    """Unmount; the daemon's own regular sync may have the folder open for a moment."""
    for _ in range(_BUSY_TRIES):
        try:
            kernel_mount.unmount(mount.mountpoint, lazy=lazy)
        except kernel_mount.MountBusyError:
            time.sleep(_BUSY_PAUSE_S)
        else:
            return
    kernel_mount.unmount(mount.mountpoint, lazy=lazy)


def _wait(daemon: int, mount: LiveMount) -> None:
    """Wait for the daemon's end, however long it takes: a lazy unmount waits for other programs."""
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    while not poll.poll(_PATIENCE_MS):
        note(f"waiting for the daemon of {mount.mountpoint} to end")


def _unmount_unknown(mount: LiveMount, *, lazy: bool) -> int:
    """Unmount what another user, or a daemon with another state directory, serves."""
    try:
        kernel_mount.unmount(mount.mountpoint, lazy=lazy)
    except kernel_mount.MountBusyError as error:
        raise MountError(f"{error}{_users(mount.mountpoint, 0)}") from None
    note(f"{mount.mountpoint}: unmounted; its daemon cannot be seen from here, and may still be writing")
    return 0


def _clear_dead(mount: LiveMount) -> int:
    """Remove a mount whose daemon is gone, and say what that means."""
    kernel_mount.unmount(mount.mountpoint, lazy=True)
    raise VaultError(
        f"{mount.mountpoint}: cleared away, but its daemon had died before; "
        "the next mount has the state of its last commit"
    )


def _users(mountpoint: Path, daemon: int) -> str:
    """The programs that keep a folder busy, as far as this user may see them: ``: bash (1234), vim (1240)``."""
    try:
        device = mountpoint.stat().st_dev
    except OSError:
        return ""
    found = [
        f"{_program(process)} ({process.name})"
        for process in Path("/proc").iterdir()
        if process.name.isdecimal() and int(process.name) != daemon and _uses(process, device)
    ]
    return f": {', '.join(found[:5])}{' and others' if len(found) > 5 else ''}" if found else ""


def _uses(process: Path, device: int) -> bool:
    """Whether a process has its working directory, root or an open file on a device."""
    try:
        links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
    except OSError:  # it ended, or belongs to another user
        return False
    return any(_device_of(link) == device for link in links)


def _device_of(link: Path) -> int | None:
    try:
        return link.stat().st_dev
    except OSError:  # closed meanwhile
        return None


def _program(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
