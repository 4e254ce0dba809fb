"""``vaultfs status``: what is mounted where, what the daemons say, and what remotes lack."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from vaultfs.cli.backup_state import backup_rows, backup_state
from vaultfs.cli.live import daemon_of, is_alive, request
from vaultfs.cli.mounts import LiveMount, live_mounts, mount_at, vault_at
from vaultfs.cli.output import emit_json, fields, name_text, say
from vaultfs.cli.sizes import format_duration, format_size
from vaultfs.errors import ExitCode, VaultError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder


def run(path: Path | None = None, /, *, json: bool = False) -> int:
    """Show what is mounted, what a vault is doing, and what its remotes lack. No password is needed.

    The exit code is 3 while a remote lacks something, as far as this machine knows: no remote is asked.

    Args:
        path: A vault or a mounted folder; every mounted vault if not given.
        json: Print JSON.
    """
    if path is None:
        found = [mounted_state(mount) for mount in live_mounts()]
        if json:
            emit_json({"mounts": found})
        elif not found:
            say("No vault is mounted.")
        for number, state in enumerate([] if json else found):
            if number:
                say()
            _show(state)
        return _exit_code(*found)
    mount = mount_at(path)
    state = mounted_state(mount) if mount is not None else vault_state(path)
    if json:
        emit_json(state)
    else:
        _show(state)
    return _exit_code(state)


def _exit_code(*states: dict[str, Any]) -> int:
    """3 while a remote lacks something."""
    backups = [state["backup"] for state in states if state.get("backup") is not None]
    return ExitCode.OK if all(backup["is_complete"] for backup in backups) else ExitCode.PARTIAL


def mounted_state(mount: LiveMount) -> dict[str, Any]:
    """What can be said about a live mount: ``state`` is ``mounted``, or ``dead`` if its daemon is gone."""
    base: dict[str, Any] = {
        "state": "mounted",
        "mountpoint": str(mount.mountpoint),
        "source": mount.source,
        "options": list(mount.options),
    }
    try:
        said = request(mount, "status")
    except VaultError as error:
        if is_alive(mount):
            return {**base, "note": "mounted by another user, or with another state directory: it tells us no more"}
        return {**base, "state": "dead", "error": f"{error}; 'vaultfs umount' clears it away"}
    is_present = said.get("snapshot") is None
    return {**base, **said, "backup": backup_state(VaultLayout(Path(said["vault"])), said) if is_present else None}


def vault_state(path: Path) -> dict[str, Any]:
    """What can be said about a vault from its directory: ``state`` is ``in use`` or ``not mounted``."""
    vault = vault_at(path)
    holder = read_holder(VaultLayout(vault))
    stored = sum(_stored_bytes(file) for file in vault.rglob("*"))
    state: dict[str, Any] = {
        "state": "not mounted" if holder is None else "in use",
        "vault": str(vault),
        "stored_bytes": stored,
    }
    if holder is not None:
        state |= {"pid": holder.pid, "purpose": holder.purpose}
    daemon = daemon_of(path)
    said = None if daemon is None else request(daemon, "status")
    fill = None if said is None else said.get("fill")
    return {**state, "fill": fill, "backup": backup_state(VaultLayout(vault), said)}


def _stored_bytes(file: Path) -> int:
    """What a file takes on the disk; segments have holes where something was deleted."""
    try:
        status = file.lstat()
    except FileNotFoundError:  # a daemon at work
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0


def _show(state: dict[str, Any]) -> None:
    """The state as ``name: value`` lines."""
    rows = []
    for name, value in state.items():
        if name == "backup":
            rows += [] if value is None else backup_rows(value)
        elif name == "fill":
            rows += [] if value is None else [("fill", _fill_text(value))]
        elif name.endswith("_bytes"):
            rows.append((name.removesuffix("_bytes").replace("_", " "), format_size(value)))
        elif isinstance(value, bool):
            rows.append((name.removeprefix("is_").replace("_", " "), "yes" if value else "no"))
        elif isinstance(value, list):
            rows.append((name, ",".join(str(item) for item in value)))
        elif value is not None:
            rows.append((name.replace("_", " "), name_text(str(value).encode(errors="surrogateescape"))))
    fields(rows)


def _fill_text(fill: dict[str, Any]) -> str:
    """How far the fill of a clone is."""
    amount = f"{format_size(fill['done_bytes'])} of {format_size(fill['total_bytes'])}"
    error = name_text(str(fill["error"] or "").encode(errors="surrogateescape"))
    match fill["state"]:
        case "looking":
            return "looks for what is missing"
        case "filling":
            rate = f", {format_size(fill['rate_bytes'])}/s" if fill["rate_bytes"] else ""
            left = "" if fill["left_s"] is None else f", {format_duration(fill['left_s'])} left"
            return amount + rate + left
        case "waiting":
            return f"{amount}; waits, and tries again: {error}"
        case "done":
            return "done; everything is here"
        case _:
            return f"{amount}; ended: {error}"
