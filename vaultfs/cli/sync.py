"""``vaultfs sync``: copy a vault to its remotes.

What is copied is ciphertext that never changes, so this needs no key.  A key is needed only to make a snapshot, which
says what belongs together: the daemon of a mounted vault makes it; without one, ``--snapshot`` asks for the password.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vaultfs.cli.live import request
from vaultfs.cli.mounts import LiveMount
from vaultfs.cli.opened import changing, show_warnings
from vaultfs.cli.output import counted, emit_json, error_line, note, printable, say
from vaultfs.cli.progress import Progress, progress
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sizes import format_age, format_size
from vaultfs.cli.targets import Stores, check_connections, chosen_remotes, parse_rate, vault_of
from vaultfs.errors import ExitCode, UsageError, VaultError
from vaultfs.remotes.configured import Remote
from vaultfs.remotes.counting import CountingStore, Counts
from vaultfs.remotes.urls import redacted
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.public_header import read_header
from vaultfs.sync.upload import Target, TargetOutcome, sync


def run(
    path: Path,
    /,
    *remotes: str,
    snapshot: bool = False,
    check: bool = False,
    dry_run: bool = False,
    bwlimit: str | None = None,
    connections: int = 4,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Copy a vault to its remotes: only what they lack.

    The daemon of a mounted vault makes a snapshot first, if something has changed since the last one; programs go on
    meanwhile, and no password is needed. Of a vault that is not mounted the snapshots that are there are copied. What
    an interrupted run has copied stays; the next one does the rest.

    Args:
        path: A vault, or a folder where one is mounted.
        remotes: Names of remotes; all that the vault has if none is given.
        snapshot: If the vault is not mounted, open it with its password, and make a snapshot first.
        check: Ask the remotes what they have, instead of trusting what this machine remembers.
        dry_run: Copy nothing and make no snapshot; tell what would be copied.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        connections: So many objects at once.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from, with --snapshot.
    """
    show_warnings()
    check_connections(connections)
    rate = parse_rate(bwlimit)
    if snapshot and dry_run:
        raise UsageError("--snapshot and --dry-run exclude each other: a dry run makes no snapshot")
    layout, mount = vault_of(path)
    chosen = chosen_remotes(layout, remotes)
    made = None if dry_run else _make_snapshot(path, mount, wants_one=snapshot, secret=secret)
    if made is None:
        _tell_age(path, layout, mount, is_dry=dry_run)
    bar = progress(f"sync {path}", "none" if quiet or dry_run else "json" if json else "auto", resumable=True)
    with Stores(rate) as stores:
        work = _Work(layout, chosen, stores)
        work.copy(bar, check=check, dry_run=dry_run, connections=connections)
    if json:
        document = {"vault": str(layout.root), "snapshot": made, "dry_run": dry_run, "remotes": work.as_json()}
        emit_json(document)
    else:
        work.show(is_dry=dry_run)
    return work.exit_code(is_dry=dry_run)


def _make_snapshot(
    path: Path, mount: LiveMount | None, *, wants_one: bool, secret: SecretOption | None
) -> dict[str, Any] | None:
    """What there is to copy, complete: a new snapshot if something has changed; None if nobody was asked for one."""
    if mount is not None and "ro" not in mount.options:
        return request(mount, "sync-prepare")
    if not wants_one:
        return None
    from vaultfs.vault.shipping import prepare  # noqa: PLC0415  # the way without a key shall not need it

    with changing(path, secret, "sync") as (vault, _):
        info, is_new = prepare(vault.filesystem)
    return {**asdict(info), "is_new": is_new}


def _tell_age(path: Path, layout: VaultLayout, mount: LiveMount | None, *, is_dry: bool) -> None:
    """Tell how old the newest snapshot is, because what was written later is not copied.

    Raises:
        UsageError: there is none.
    """
    how = "run 'vaultfs sync' without --dry-run" if is_dry else "mount the vault, or use --snapshot"
    manifests = list_manifests(layout)
    if not manifests:
        raise UsageError(f"{path} has no snapshot yet, so there is nothing to copy; {how}")
    hold = ManifestHold.take(layout, manifests[-1])
    if hold is None:  # it is being deleted
        return
    try:
        created_ns = hold.content(read_header(layout).vault_id).created_ns
    except VaultError as error:  # the sync says more
        note(f"the newest snapshot of {path}: {printable(str(error))}")
        return
    finally:
        hold.release()
    state = "a dry run makes no snapshot" if is_dry else "not mounted" if mount is None else "mounted read-only"
    advice = "" if is_dry else "; --snapshot makes a new one first, with the password"
    age = format_age(max(0.0, time.time() - created_ns / 1e9))
    note(
        f"{printable(str(path))}: {state}, so nothing newer than snapshot {manifests[-1].seq} is copied, which is "
        f"{age} old{advice}"
    )


class _Work:
    """One run: its remotes, and what became of them.

    Args:
        layout: the vault.
        remotes: to copy to.
        stores: opens them.
    """

    def __init__(self, layout: VaultLayout, remotes: list[Remote], stores: Stores) -> None:
        self._layout = layout
        self._stores = stores
        self._urls = {remote.name: redacted(remote.url) for remote in remotes}
        self._counting: dict[str, CountingStore] = {}
        self._targets: list[Target] = []
        self._outcomes: list[TargetOutcome] = []
        vault_id = read_header(layout).vault_id
        for remote in remotes:
            try:
                store = stores.open(remote.url, remote.options)
                self._targets.append(Target(remote.name, store, Ledger.of(vault_id, remote.name)))
            except VaultError as error:  # the others go on
                self._outcomes.append(TargetOutcome(remote.name, 0, 0, 0, is_up_to_date=False, error=error))
            else:
                self._counting[remote.name] = store

    def copy(self, bar: Progress, *, check: bool, dry_run: bool, connections: int) -> None:
        """Do it.

        Raises:
            KeyboardInterrupt, Terminated: a signal came; what was copied stays.
            VaultError: the vault cannot be read.
        """
        if not self._targets:
            return
        with bar, self._stores.interruptible() as is_stopped:
            self._outcomes += sync(
                self._layout,
                self._targets,
                check=check,
                dry_run=dry_run,
                connections=connections,
                progress=lambda state: bar(state.done_bytes, state.total_bytes),
                is_stopped=is_stopped,
            )
        order = list(self._urls)
        self._outcomes.sort(key=lambda each: order.index(each.name))

    def as_json(self) -> list[dict[str, Any]]:
        """The outcomes, for machines."""
        return [
            {
                "name": each.name,
                "url": self._urls[each.name],
                "segments": each.segments,
                "bytes": each.bytes,
                "snapshots": each.manifests,
                "is_up_to_date": each.is_up_to_date,
                **asdict(self._counting[each.name].counts if each.name in self._counting else Counts()),
                "error": None if each.error is None else str(each.error),
                "exit_code": int(self._code(each)),
            }
            for each in self._outcomes
        ]

    def show(self, *, is_dry: bool) -> None:
        """The outcomes, for people: a line for each; errors on standard error."""
        for each in self._outcomes:
            contents = f"{counted(each.segments, 'segment')} and {counted(each.manifests, 'snapshot')}"
            amount = f"{contents}, {format_size(each.bytes)}"
            is_something = bool(each.segments or each.manifests)
            if each.error is not None:
                error_line(f"{each.name}: {each.error}")
            if is_something and is_dry:
                say(f"{each.name}: lacks {amount}")
            elif is_something:
                say(f"{each.name}: sent {amount}; {'up to date' if each.is_up_to_date else 'not up to date'}")
            elif each.is_up_to_date:
                say(f"{each.name}: up to date")
            elif each.error is None:
                say(f"{each.name}: not up to date" if not is_dry else f"{each.name}: lacks a current vault.json")

    def exit_code(self, *, is_dry: bool) -> int:
        """Of the whole command: that of all remotes if all failed, 3 if some did or if anything is still missing."""
        codes = [ExitCode.OK if is_dry and each.error is None else self._code(each) for each in self._outcomes]
        if ExitCode.OK in codes:
            return ExitCode.OK if set(codes) == {ExitCode.OK} else ExitCode.PARTIAL
        return max(codes)

    def _code(self, outcome: TargetOutcome) -> ExitCode:
        """Of one remote; 3 if it has the newest snapshot and only lacks older ones, which maybe nobody can send."""
        if outcome.error is None:
            return ExitCode.OK if outcome.is_up_to_date else ExitCode.PARTIAL
        newest = list_manifests(self._layout)[-1:]
        for target in self._targets:
            if target.name == outcome.name and any(
                each.hash in target.ledger.read(target.store.name).whole for each in newest
            ):
                return ExitCode.PARTIAL
        return outcome.error.exit_code
