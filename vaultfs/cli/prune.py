"""``vaultfs prune``: give up snapshots of a remote by rules, and delete what nothing needs any more.

No password, but for peers: they delete only what the vault's key has signed.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from vaultfs.cli.dates import format_moment
from vaultfs.cli.output import counted, emit_json, note, printable, say, table
from vaultfs.cli.progress import progress
from vaultfs.cli.remote_place import RemotePlace
from vaultfs.cli.secret_sources import SecretOption, SecretOptions
from vaultfs.cli.sizes import format_size, parse_duration
from vaultfs.cli.targets import OptionWords, Stores, check_connections, parse_options
from vaultfs.errors import UsageError
from vaultfs.remotes.locations import parse
from vaultfs.remotes.urls import redacted
from vaultfs.sync.keep_policy import KeepPolicy, parse_duration_ns
from vaultfs.sync.prune import PruneReport, prune

if TYPE_CHECKING:
    from vaultfs.cli.delete_orders import SignedOrders

DropWords = Annotated[list[str] | None, Parameter(name="--drop")]
"""``--drop ID``, as often as need be."""

_MESH: Final = "mesh"
_SHOWN_ID: Final = 12
_MOST: Final = 100_000


def run(
    vault: str,
    remote: str | None = None,
    /,
    *,
    keep_last: int = 0,
    keep_hourly: int = 0,
    keep_daily: int = 0,
    keep_weekly: int = 0,
    keep_monthly: int = 0,
    keep_yearly: int = 0,
    keep_within: str | None = None,
    drop: DropWords = None,
    grace: str = "7d",
    dry_run: bool = False,
    option: OptionWords = None,
    connections: int = 4,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Give up old snapshots of a remote, and delete what none of the others needs.

    What is given up is deleted by the first prune after a week, see --grace; until then it can still be restored. The
    newest snapshot always stays. Without a rule all snapshots stay, and only what was given up before is deleted.

    Args:
        vault: A vault, or a folder where one is mounted; or the URL of a remote, and nothing else.
        remote: The name of a remote of the vault.
        keep_last: Keep so many of the newest.
        keep_hourly: Keep the newest of each hour, for so many hours that have any.
        keep_daily: Likewise of each day.
        keep_weekly: Likewise of each week.
        keep_monthly: Likewise of each month.
        keep_yearly: Likewise of each year.
        keep_within: Keep all that were made so long before the newest, as in 36h, 7d, 2w, 6mo, 1y.
        drop: A snapshot to give up whatever the rules say, by number or id; may be given several times.
        grace: How long what is given up stays. With 0 no other machine may sync with the remote at the same time.
        dry_run: Change nothing; tell what would be done.
        option: With a URL: a setting of the store, as KEY=VALUE; may be given several times.
        connections: So many requests at once.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from, for peers (mesh://); others need none.
    """
    counts = (keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly)
    if not all(0 <= count <= _MOST for count in counts):
        raise UsageError(f"the numbers of --keep-... are from 0 to {_MOST}")
    within_ns = None if keep_within is None else parse_duration_ns(keep_within, "--keep-within")
    grace_ns = int(parse_duration(grace, "--grace") * 1e9)
    policy = KeepPolicy(*counts, within_ns=within_ns)
    check_connections(connections)
    place = RemotePlace.of("prune", vault, remote, parse_options(option))
    is_mesh = parse(place.url).scheme == _MESH
    if secret is not None and secret.given() and not is_mesh:
        raise UsageError(f"{secret.given()[0]} goes with peers; {place.name} is pruned without a password")
    bar = progress(f"prune {place.name}", "none" if quiet or dry_run else "json" if json else "auto", resumable=True)
    with Stores() as stores:
        orders = _orders(place, stores, secret) if is_mesh and not dry_run else None
        makers = {} if orders is None else {_MESH: orders.open}
        store = stores.open(place.url, place.options, makers)
        with place.ledger(store, dry_run=dry_run) as ledger, bar, stores.interruptible() as is_stopped:
            report = prune(
                store,
                ledger,
                policy,
                now_ns=time.time_ns(),
                layout=place.layout,
                vault_id=place.vault_id,
                drop=drop or (),
                grace_ns=grace_ns,
                dry_run=dry_run,
                connections=connections,
                delete_all=None if orders is None else orders.delete_all,
                progress=lambda state: bar(state.done_bytes, state.total_bytes),
                is_stopped=is_stopped,
            )
    if orders is not None:
        for error in orders.undone().values():
            note(f"{printable(str(error))}; a later prune deletes it there")
    if json:
        emit_json({"url": redacted(place.url), "dry_run": dry_run, **_as_json(report)})
    else:
        _show(place.name, report, is_dry=dry_run)
    return 0


def _orders(place: RemotePlace, stores: Stores, secret: SecretOptions | None) -> SignedOrders:
    from vaultfs.cli.delete_orders import SignedOrders  # noqa: PLC0415  # loads ciphers, which others than peers need not

    return SignedOrders.unlock(place, stores, secret)


def _as_json(report: PruneReport) -> dict[str, Any]:
    return {
        "kept": [
            {"seq": each.head.seq, "id": each.head.hash, "created_ns": each.created_ns, "rules": each.rules}
            for each in report.kept
        ],
        "dropped": [
            {"seq": each.head.seq, "id": each.head.hash, "created_ns": each.created_ns} for each in report.dropped
        ],
        "condemned_segments": report.condemned_segments,
        "condemned_bytes": report.condemned_bytes,
        "deleted_snapshots": report.deleted_snapshots,
        "deleted_segments": report.deleted_segments,
        "deleted_bytes": report.deleted_bytes,
        "waiting": [asdict(each) for each in report.waiting],
    }


def _show(name: str, report: PruneReport, *, is_dry: bool) -> None:
    rows = [
        (str(each.head.seq), each.head.hash[:_SHOWN_ID], format_moment(each.created_ns), ", ".join(each.rules))
        for each in report.kept
    ]
    rows += [
        (str(each.head.seq), each.head.hash[:_SHOWN_ID], format_moment(each.created_ns), "given up")
        for each in report.dropped
    ]
    rows.sort(key=lambda row: -int(row[0]))
    table(("number", "id", "made", "why"), rows, right=(0,))
    would = "would be " if is_dry else ""
    if report.dropped or report.condemned_segments:
        what = f"{counted(len(report.dropped), 'snapshot')} and {counted(report.condemned_segments, 'segment')}"
        say(f"{printable(name)}: {what}, {format_size(report.condemned_bytes)}, {would}given up")
    if report.deleted_snapshots or report.deleted_segments:
        what = f"{counted(report.deleted_snapshots, 'snapshot')} and {counted(report.deleted_segments, 'segment')}"
        say(f"{printable(name)}: {what}, {format_size(report.deleted_bytes)}, {would}deleted")
    for each in report.waiting:
        size = f"{counted(each.segments, 'segment')}, {format_size(each.bytes)}"
        # Rounded up to the second, as the prune that is run then has to find them due.
        note(f"{size}, given up: a prune after {format_moment(each.due_ns + 10**9 - 1)} deletes them")
    if not (report.dropped or report.condemned_segments or report.deleted_snapshots or report.deleted_segments):
        say(f"{printable(name)}: nothing to give up or to delete")
