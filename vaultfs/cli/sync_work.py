"""Copying a vault to remotes, for the verbs that do it: the snapshot before, the run, what is told of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vaultfs.cli.backup_state import short_segments
from vaultfs.cli.live import request
from vaultfs.cli.mounts import LiveMount
from vaultfs.cli.output import counted, error_line, note, printable, say
from vaultfs.cli.progress import Progress
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sizes import format_age, format_size
from vaultfs.cli.targets import Stores
from vaultfs.errors import (
    ExitCode,
    ForkedError,
    FormatTooNewError,
    IntegrityError,
    StorageError,
    UsageError,
    VaultError,
)
from vaultfs.remotes.configured import Remote
from vaultfs.remotes.counting import CountingStore, Counts
from vaultfs.remotes.locations import Location
from vaultfs.remotes.store import Store
from vaultfs.remotes.urls import redacted
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.public_header import read_header
from vaultfs.sync.remote_layout import HEADER_KEY
from vaultfs.sync.upload import Target, TargetOutcome, sync

if TYPE_CHECKING:
    from vaultfs.mesh.store import MeshStore

_OF_SNAPSHOTS: Final = (IntegrityError, FormatTooNewError, StorageError)
"""Errors that may be those of single snapshots here, which cannot be sent while others can."""


def make_snapshot(
    path: Path, mount: LiveMount | None, *, wants_one: bool, secret: SecretOption | None
) -> dict[str, Any] | None:
    """What there is to copy, complete: a new snapshot if something has changed; None if nobody was asked for one."""
    if mount is not None and "ro" not in mount.options:
        return request(mount, "sync-prepare")
    if not wants_one:
        return None
    from vaultfs.cli.opened import changing  # noqa: PLC0415  # the way without a key shall not need it
    from vaultfs.vault.shipping import prepare  # noqa: PLC0415

    with changing(path, secret, "sync") as (vault, _):
        info, is_new = prepare(vault.filesystem)
    return {**asdict(info), "is_new": is_new}


def tell_age(path: Path, layout: VaultLayout, mount: LiveMount | None, *, is_dry: bool) -> None:
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


def _peers(opened: list[MeshStore], location: Location, options: Mapping[str, str]) -> Store:
    """Peers as a store, which is kept: it can tell what they have lost."""
    from vaultfs.mesh.store import MeshStore  # noqa: PLC0415  # loads an event loop and TLS

    opened.append(MeshStore.of_url(location, options))
    return opened[-1]


class _NotAllError(Exception):
    """Some remote failed; the outcomes tell."""


class SyncWork:
    """One run: its remotes, and what became of them.

    Args:
        layout: the vault.
        remotes: to copy to.
        stores: opens them.
        others: further remotes, which may have what is not on this disk.
    """

    def __init__(
        self, layout: VaultLayout, remotes: list[Remote], stores: Stores, others: Sequence[Remote] = ()
    ) -> None:
        self._layout = layout
        self._stores = stores
        self._remotes = {remote.name: remote for remote in remotes}
        self._urls = {remote.name: redacted(remote.url) for remote in remotes}
        self._counting: dict[str, CountingStore] = {}
        self._targets: list[Target] = []
        self._outcomes: list[TargetOutcome] = []
        vault_id = read_header(layout).vault_id
        for remote in remotes:
            peers: list[MeshStore] = []
            try:
                store = stores.open(remote.url, remote.options, {"mesh": partial(_peers, peers)})
                lost = peers[0].lost if peers else None
                self._targets.append(Target(remote.name, store, Ledger.of(vault_id, remote.name), lost))
            except VaultError as error:  # the others go on
                self._outcomes.append(TargetOutcome(remote.name, 0, 0, 0, is_up_to_date=False, error=error))
            else:
                self._counting[remote.name] = store
        self._spares: list[Store] = []
        for remote in others:
            try:
                self._spares.append(stores.open(remote.url, remote.options))
            except VaultError as error:
                note(f"{remote.name} cannot be asked for what is not on this disk: {printable(str(error))}")

    def copy(self, bar: Progress, *, check: bool, dry_run: bool, fork: bool, connections: int) -> None:
        """Do it.

        Raises:
            KeyboardInterrupt, Terminated: a signal came; what was copied stays.
            VaultError: the vault cannot be read.
        """
        if not self._targets:
            return
        with suppress(_NotAllError), bar:
            with self._stores.interruptible() as is_stopped:
                self._outcomes += sync(
                    self._layout,
                    self._targets,
                    check=check,
                    dry_run=dry_run,
                    fork=fork,
                    connections=connections,
                    progress=lambda state: bar(state.done_bytes, state.total_bytes),
                    is_stopped=is_stopped,
                    spares=self._spares,
                )
            if any(each.error is not None for each in self._outcomes):
                raise _NotAllError  # so that the bar does not say that it is done
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

    def show(self, *, is_dry: bool, is_short_allowed: bool = False) -> None:
        """The outcomes, for people: a line for each; errors on standard error.

        Args:
            is_dry: as for `exit_code`.
            is_short_allowed: as for `exit_code`.
        """
        for each in self._outcomes:
            if not is_dry and not is_short_allowed and (short := self._short(each)):
                note(f"{each.name}: {counted(short, 'segment')} with too few copies; 'vaultfs mesh status' tells why")
            contents = f"{counted(each.segments, 'segment')} and {counted(each.manifests, 'snapshot')}"
            amount = f"{contents}, {format_size(each.bytes)}"
            is_something = bool(each.segments or each.manifests)
            if each.error is not None:
                error_line(f"{each.name}: {each.error}")
                if self._is_doubtful_header(each):
                    note(
                        "if no device of yours changed it, somebody has put a false one on a peer: 'vaultfs mesh "
                        "status' names that; remove vault.json from the vault's directory there, and sync again"
                    )
            if is_something and is_dry:
                say(f"{each.name}: lacks {amount}")
            elif is_something:
                say(f"{each.name}: sent {amount}; {'up to date' if each.is_up_to_date else 'not up to date'}")
            elif each.is_up_to_date:
                say(f"{each.name}: up to date")
            elif each.error is None:
                say(f"{each.name}: not up to date" if not is_dry else f"{each.name}: lacks a current vault.json")

    def exit_code(self, *, is_dry: bool, is_short_allowed: bool = False) -> int:
        """Of the whole command: that of all remotes if all failed, 3 if some did or if anything is still missing.

        Args:
            is_dry: it was a dry run.
            is_short_allowed: whether peers have enough copies of everything is looked at later.
        """
        codes = [ExitCode.OK if is_dry and each.error is None else self._code(each) for each in self._outcomes]
        if not is_dry and not is_short_allowed and any(self._short(each) for each in self._outcomes):
            codes.append(ExitCode.PARTIAL)
        if ExitCode.OK in codes:
            return ExitCode.OK if set(codes) == {ExitCode.OK} else ExitCode.PARTIAL
        return max(codes)

    def _is_doubtful_header(self, outcome: TargetOutcome) -> bool:
        """Whether it failed by a ``vault.json`` that whoever may store on a peer can have put there."""
        is_mesh = self._remotes[outcome.name].url.startswith("mesh:")
        return is_mesh and isinstance(outcome.error, ForkedError) and HEADER_KEY in str(outcome.error)

    def _short(self, outcome: TargetOutcome) -> int:
        """How many segments have too few copies, if the remote is peers; known once the stores are closed."""
        return 0 if outcome.error is not None else short_segments(self._layout, self._remotes[outcome.name]) or 0

    def _code(self, outcome: TargetOutcome) -> ExitCode:
        """Of one remote; 3 if it has the newest snapshot and only lacks older ones, which maybe nobody can send."""
        if outcome.error is None:
            return ExitCode.OK if outcome.is_up_to_date else ExitCode.PARTIAL
        if not isinstance(outcome.error, _OF_SNAPSHOTS):  # the remote cannot be used, whatever it has
            return outcome.error.exit_code
        newest = list_manifests(self._layout)[-1:]
        for target in self._targets:
            if target.name == outcome.name and any(
                each.hash in target.ledger.read(target.store.name).whole for each in newest
            ):
                return ExitCode.PARTIAL
        return outcome.error.exit_code
