"""``vaultfs snapshot``: keep, list and delete states of the whole vault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vaultfs
from vaultfs.cli.live import daemon_of, request
from vaultfs.cli.mounts import vault_at
from vaultfs.cli.output import emit_json, printable, say, table
from vaultfs.cli.secret_sources import Prompt, SecretOption, SecretOptions, obtain
from vaultfs.cli.sizes import format_size
from vaultfs.cli.spare_segments import lent_segments
from vaultfs.errors import VaultLockedError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder
from vaultfs.vault.api import Vault

_SHOWN_ID: int = 12


def create(path: Path, /, *, label: str = "", secret: SecretOption | None = None, json: bool = False) -> int:
    """Keep the state of the whole vault as it is now.

    A mounted vault stays usable meanwhile, and no password is needed for it. A snapshot costs the space of what is
    changed or deleted later. Look into it with 'vaultfs mount --snapshot ID VAULT DIR'.

    Args:
        path: A vault, or a folder where one is mounted.
        label: A name for people.
        secret: Unlocks a vault that is not mounted.
        json: Print JSON.
    """
    mount = daemon_of(path)
    if mount is not None:
        made = request(mount, "snapshot-create", label=label)
    else:
        with _opened(path, secret, read_only=False) as vault:
            made = asdict(vault.create_snapshot(label))
    if json:
        emit_json(made)
    else:
        say(f"Made snapshot {made['seq']} ({made['id'][:_SHOWN_ID]}): {_contents(made)}.")
    return 0


def list_(path: Path, /, *, secret: SecretOption | None = None, json: bool = False) -> int:
    """List the snapshots of a vault, oldest first.

    Those of a history that the vault has left by 'vaultfs sync --adopt' are marked as kept.

    Args:
        path: A vault, or a folder where one is mounted.
        secret: Unlocks a vault that is not mounted.
        json: Print JSON.
    """
    mount = daemon_of(path)
    if mount is not None:
        found: list[dict[str, Any]] = request(mount, "snapshot-list")["snapshots"]
    else:
        with _opened(path, secret, read_only=True) as vault:
            found = [asdict(info) for info in vault.snapshots()]
    if json:
        emit_json({"snapshots": found})
    elif not found:
        say("There are no snapshots.")
    else:
        headings = ("number", "id", "made", "files", "size", "label")
        has_kept = any(each["is_kept"] for each in found)
        table((*headings, "history") if has_kept else headings, [_row(each, has_kept) for each in found], (0, 3, 4))
    return 0


def delete(path: Path, snapshot: str, /, *, secret: SecretOption | None = None, json: bool = False) -> int:
    """Delete a snapshot, and give back the space that it alone needed.

    Args:
        path: A vault, or a folder where one is mounted.
        snapshot: Its number, or at least the first 4 digits of its id.
        secret: Unlocks a vault that is not mounted.
        json: Print JSON.
    """
    mount = daemon_of(path)
    if mount is not None:
        gone = request(mount, "snapshot-delete", snapshot=snapshot)
    else:
        with _opened(path, secret, read_only=False) as vault:
            gone = asdict(vault.delete_snapshot(snapshot))
    if json:
        emit_json(gone)
    else:
        say(f"Deleted snapshot {gone['seq']} ({gone['id'][:_SHOWN_ID]}).")
    return 0


@contextmanager
def _opened(path: Path, secret: SecretOptions | None, *, read_only: bool) -> Iterator[Vault]:
    """The vault, opened for this command; it is not mounted."""
    vault = vault_at(path)
    holder = read_holder(VaultLayout(vault))
    if holder is not None:  # before anybody types a password
        raise VaultLockedError(f"the vault {path} is in use by {holder}; wait until it is done")
    unlocking = obtain(secret or SecretOptions(), Prompt(f"Password for {path}"))
    with (
        lent_segments(vault) as source,
        vaultfs.open_vault(vault, unlocking, read_only=read_only, purpose="snapshot", source=source) as opened,
    ):
        yield opened


def _contents(info: Mapping[str, Any]) -> str:
    return f"{info['files']} files, {format_size(info['bytes'])}"


def _row(info: Mapping[str, Any], has_kept: bool) -> tuple[str, ...]:
    made = datetime.fromtimestamp(info["created_ns"] // 10**9, tz=UTC).astimezone()
    row = (
        str(info["seq"]),
        info["id"][:_SHOWN_ID],
        made.strftime("%Y-%m-%d %H:%M:%S"),
        str(info["files"]),
        format_size(info["bytes"]),
        printable(info["label"]),
    )
    return (*row, "kept" if info["is_kept"] else "") if has_kept else row


SUBVERBS: Mapping[str, Callable[..., int]] = {"create": create, "list": list_, "delete": delete}
