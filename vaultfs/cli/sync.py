"""``vaultfs sync``: copy a vault to its remotes.

What is copied is ciphertext that never changes, so this needs no key.  A key is needed only to make a snapshot, which
says what belongs together: the daemon of a mounted vault makes it; without one, ``--snapshot`` asks for the password.
"""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.output import emit_json
from vaultfs.cli.progress import ProgressStyle, progress
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sync_work import SyncWork, make_snapshot, tell_age
from vaultfs.cli.targets import Stores, check_connections, chosen_remotes, parse_rate, vault_of
from vaultfs.errors import UsageError
from vaultfs.remotes.configured import load_remotes


def run(
    path: Path,
    /,
    *remotes: str,
    snapshot: bool = False,
    check: bool = False,
    dry_run: bool = False,
    adopt: bool = False,
    take: str | None = None,
    fork: bool = False,
    install_timer: bool = False,
    every: str | None = None,
    no_enable: bool = False,
    remove_timer: bool = False,
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
        adopt: Take over what another device has sent to the remote; what is here is kept as snapshots.
        take: With --adopt, which snapshot of the remote: its number, or the first digits of its id.
        fork: Where another device has moved a remote forward, send this vault's snapshots beside the other's.
        install_timer: Copy nothing now; write a systemd service and timer that do it regularly, and enable them.
        every: With --install-timer: daily, hourly, or a calendar expression as in 'Mon..Fri 03:00'. daily if not given.
        no_enable: With --install-timer: only write the files.
        remove_timer: Disable the timer of the vault, and remove its files.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        connections: So many objects at once.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from, with --snapshot and --adopt.
    """
    show_warnings()
    check_connections(connections)
    rate = parse_rate(bwlimit)
    if snapshot and dry_run:
        raise UsageError("--snapshot and --dry-run exclude each other: a dry run makes no snapshot")
    if install_timer or remove_timer or every is not None or no_enable:
        from vaultfs.cli import sync_timer  # noqa: PLC0415  # few ask for one

        return sync_timer.run(
            path,
            remotes,
            install_timer=install_timer,
            remove_timer=remove_timer,
            every=every,
            no_enable=no_enable,
            arguments=lambda: sync_timer.schedule_arguments(
                snapshot=snapshot, secret=secret, bwlimit=bwlimit, connections=None if connections == 4 else connections
            ),
            others={
                "--check": check,
                "--dry-run": dry_run,
                "--adopt": adopt,
                "--take": take is not None,
                "--fork": fork,
            },
            json=json,
        )
    if take is not None and not adopt:
        raise UsageError("--take says which snapshot --adopt takes over; give both")
    if adopt and (snapshot or check or dry_run or fork):
        raise UsageError("--adopt goes with none of --snapshot, --check, --dry-run and --fork")
    layout, mount = vault_of(path)
    chosen = chosen_remotes(layout, remotes)
    style: ProgressStyle = "none" if quiet else "json" if json else "auto"
    if adopt:
        from vaultfs.cli.adopt import adopt as take_over  # noqa: PLC0415  # the way without a key shall not need it

        bar = progress(f"adopt {path}", style, resumable=True)
        with Stores(rate) as stores:
            return take_over(
                path,
                layout,
                chosen,
                stores,
                take=take,
                secret=secret,
                connections=connections,
                bar=bar,
                json=json,
            )
    made = None if dry_run else make_snapshot(path, mount, wants_one=snapshot, secret=secret)
    if made is None:
        tell_age(path, layout, mount, is_dry=dry_run)
    bar = progress(f"sync {path}", "none" if dry_run else style, resumable=True)
    with Stores(rate) as stores:
        work = SyncWork(layout, chosen, stores, [each for each in load_remotes(layout) if each not in chosen])
        work.copy(bar, check=check, dry_run=dry_run, fork=fork, connections=connections)
    if json:
        document = {"vault": str(layout.root), "snapshot": made, "dry_run": dry_run, "remotes": work.as_json()}
        emit_json(document)
    else:
        work.show(is_dry=dry_run)
    return work.exit_code(is_dry=dry_run)
