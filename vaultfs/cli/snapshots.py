"""``vaultfs snapshots``: the states that a vault has, or that can be restored from a remote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from vaultfs.cli.dates import format_moment
from vaultfs.cli.output import emit_json, note, printable, say, table
from vaultfs.cli.remote_place import RemotePlace
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import OptionWords, Stores, parse_options
from vaultfs.errors import UsageError
from vaultfs.remotes.urls import redacted
from vaultfs.sync.listing import ListedSnapshot, list_snapshots

_SHOWN_ID: Final = 12


def run(
    vault: str,
    remote: str | None = None,
    /,
    *,
    option: OptionWords = None,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """List the snapshots of a vault, or those that a remote has, oldest first.

    Of a remote no password is needed: shown is what it sees itself. SIZE is that of all segments that a snapshot needs,
    NEW of those that none before it needs. To restore one, give its number or id to 'vaultfs restore --snapshot'.

    Args:
        vault: A vault, or a folder where one is mounted; or the URL of a remote, and nothing else.
        remote: The name of a remote of the vault, whose snapshots are meant.
        option: With a URL: a setting of the store, as KEY=VALUE; may be given several times.
        json: Print JSON.
        secret: Unlocks a vault that is not mounted, if its own snapshots are meant.
    """
    options = parse_options(option)
    if remote is None and ":" not in vault:
        if options:
            raise UsageError("--option goes with a URL")
        from vaultfs.cli.snapshot import list_ as list_local  # noqa: PLC0415  # has keys, which a remote's list needs not

        return list_local(Path(vault), secret=secret, json=json)
    place = RemotePlace.of("snapshots", vault, remote, options)
    with Stores() as stores:
        store = stores.open(place.url, place.options)
        with stores.interruptible() as is_stopped:
            found = list_snapshots(store, place.known(store), layout=place.layout, is_stopped=is_stopped)
    if json:
        emit_json({"url": redacted(place.url), "snapshots": [_as_json(each) for each in found]})
    elif not found:
        say(f"{printable(place.name)} has no snapshots.")
    else:
        headings = ("number", "id", "made", "size", "new", "follows", "")
        table(headings, [_row(each) for each in found], right=(0, 3, 4))
        if any(each.is_in_branch for each in found):
            note("two histories stand side by side here: the column 'follows' tells which snapshot goes on from which")
    return 0


def _as_json(each: ListedSnapshot) -> dict[str, Any]:
    return {
        "seq": each.head.seq,
        "id": each.head.hash,
        "device": each.head.device,
        "created_ns": each.created_ns,
        "previous": each.previous,
        "segments": each.segments,
        "bytes": each.size_bytes,
        "new_bytes": each.new_bytes,
        "given_up_ns": each.given_up_ns,
    }


def _row(each: ListedSnapshot) -> tuple[str, ...]:
    return (
        str(each.head.seq),
        each.head.hash[:_SHOWN_ID],
        format_moment(each.created_ns),
        format_size(each.size_bytes),
        format_size(each.new_bytes),
        "" if each.previous is None else each.previous[:_SHOWN_ID],
        "" if each.given_up_ns is None else f"given up {format_moment(each.given_up_ns)}",
    )
