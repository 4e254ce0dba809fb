"""Is it safe to close?  What each remote of a vault lacks, as far as this machine knows: no request, no password.

Two things can be missing: a remote may lack a snapshot, which its ledger tells; and what was written after the newest
snapshot is in none yet.  Of that a daemon knows; without one, segments younger than the snapshot's manifest tell it.
If the snapshot is from the future, as after a clock was set back, every segment counts that it does not name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vaultfs.cli.output import counted
from vaultfs.cli.sizes import format_age, format_size
from vaultfs.errors import VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.configured import Remote, load_remotes
from vaultfs.remotes.urls import open_store, redacted
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.kept_manifests import known_kept_segments
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.public_header import read_header
from vaultfs.sync.upload import Target, missing

_HEADER_BYTES: Final = 64
"""Of a segment; what has no more holds nothing."""


def backup_state(layout: VaultLayout, daemon: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the remotes of a vault lack; None if it has none.

    Args:
        layout: the vault.
        daemon: what its daemon said of itself; None if it is not mounted.
    """
    try:
        remotes = load_remotes(layout)
        if not remotes:
            return None
        unsaved = _unsaved(layout, daemon)
        states = [_remote_state(layout, remote) for remote in remotes]
    except VaultError as error:
        return {"is_complete": False, "error": str(error), "remotes": []}
    is_complete = not unsaved["is_any"] and all(state["is_complete"] for state in states)
    return {"is_complete": is_complete, "unsaved": unsaved, "remotes": states}


def _remote_state(layout: VaultLayout, remote: Remote) -> dict[str, Any]:
    state: dict[str, Any] = {"name": remote.name, "url": redacted(remote.url)}
    try:
        store = open_store(remote.url, remote.options)
        try:
            lack = missing(layout, Target(remote.name, store, Ledger.of(read_header(layout).vault_id, remote.name)))
        finally:
            store.close()
    except VaultError as error:
        return {**state, "is_complete": False, "error": str(error)}
    short = short_segments(layout, remote)
    return {
        **state,
        "is_complete": lack.is_nothing and not short,
        "segments": lack.segments,
        "bytes": lack.bytes,
        "snapshots": lack.manifests,
        "is_header_current": lack.is_header_current,
        "since_ns": lack.since_ns,
        "short_segments": short,
    }


def short_segments(layout: VaultLayout, remote: Remote) -> int | None:
    """How many segments had too few copies when peers were asked last; None: the remote is no peers.

    Args:
        layout: the vault.
        remote: one of its remotes.
    """
    if not remote.url.startswith("mesh:"):
        return None
    from vaultfs.mesh.places import vault_state_path  # noqa: PLC0415  # few vaults have peers
    from vaultfs.mesh.standing import StandingFile  # noqa: PLC0415

    return len(StandingFile(vault_state_path(read_header(layout).vault_id)).load().short)


def _unsaved(layout: VaultLayout, daemon: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is in no snapshot."""
    manifests = list_manifests(layout)
    hold = ManifestHold.take(layout, manifests[-1]) if manifests else None
    if hold is None:
        return {"is_any": True, "snapshot": None, "snapshot_created_ns": None, "segments": None, "bytes": None}
    try:
        newest = hold.content(read_header(layout).vault_id)
    finally:
        hold.release()
    created_ns = newest.created_ns if newest.created_ns <= time.time_ns() else 0
    segments, size = _younger_segments(layout, {name for name, _ in newest.segments}, created_ns)
    is_any = segments > 0
    if daemon is not None:
        is_any = bool(daemon.get("changed_since_snapshot", is_any or not daemon.get("is_durable", True)))
    return {
        "is_any": is_any,
        "snapshot": newest.seq,
        "snapshot_created_ns": newest.created_ns,
        "segments": segments,
        "bytes": size,
    }


def _younger_segments(layout: VaultLayout, known: set[SegmentName], created_ns: int) -> tuple[int, int]:
    """Number and bytes of the segments that were written after a snapshot."""
    known |= known_kept_segments(layout)
    paths = [layout.sealed_path(name) for name in layout.sealed_names() if name not in known]
    paths += [layout.open_path(token) for token in layout.open_tokens()]
    sizes = [_size_if_younger(path, created_ns) for path in paths]
    return sum(size > _HEADER_BYTES for size in sizes), sum(size for size in sizes if size > _HEADER_BYTES)


def _size_if_younger(path: Path, created_ns: int) -> int:
    with storage_errors(f"cannot look at {path}"):
        try:
            status = os.lstat(path)
        except FileNotFoundError:  # a daemon at work
            return 0
    return status.st_size if status.st_mtime_ns > created_ns else 0


def backup_rows(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people: a line for each remote, one for what is in no snapshot, and the answer.

    Args:
        state: as `backup_state` returned it.
    """
    rows = [(f"remote {each['name']}", _remote_text(each)) for each in state["remotes"]]
    if "error" in state:
        rows.append(("remotes", state["error"]))
    unsaved = state.get("unsaved", {"is_any": False})
    if unsaved["is_any"]:
        rows.append(("in no snapshot", _unsaved_text(unsaved)))
    rows.append(("safe to close", "yes" if state["is_complete"] else f"no; {_remedy(state)} copies what is missing"))
    return rows


def _remedy(state: Mapping[str, Any]) -> str:
    """The command that brings where it belongs what is not there."""
    lacking = [each for each in state["remotes"] if not each["is_complete"]]
    is_sent = not state.get("unsaved", {"is_any": False})["is_any"] and "error" not in state
    if is_sent and lacking and all(_has_all_but_copies(each) for each in lacking):
        return "'vaultfs mesh replicate'"
    return "'vaultfs sync'"


def _has_all_but_copies(state: Mapping[str, Any]) -> bool:
    return "error" not in state and not state["snapshots"] and bool(state["is_header_current"])


def _remote_text(state: Mapping[str, Any]) -> str:
    if "error" in state:
        return str(state["error"])
    if state["is_complete"]:
        return "has all snapshots"
    if _has_all_but_copies(state):
        return f"has all snapshots, but {counted(state['short_segments'], 'segment')} with too few copies"
    if not state["snapshots"]:
        return "lacks the current vault.json"
    parts = [counted(state["snapshots"], "snapshot"), counted(state["segments"], "segment")]
    age = format_age(max(0.0, time.time() - state["since_ns"] / 1e9))
    return f"lacks {' and '.join(parts)}, {format_size(state['bytes'])}, for {age}"


def _unsaved_text(unsaved: Mapping[str, Any]) -> str:
    if unsaved["snapshot"] is None:
        return "everything: there is no snapshot yet"
    age = format_age(max(0.0, time.time() - unsaved["snapshot_created_ns"] / 1e9))
    amount = f", {format_size(unsaved['bytes'])}" if unsaved["bytes"] else ""
    return f"what was written since snapshot {unsaved['snapshot']}, {age} ago{amount}"
