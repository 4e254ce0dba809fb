"""``vaultfs mesh replicate``: a sync with the peers of a vault, and then a look that everything has enough copies."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.mesh_repair import mend, mended_exit_code, mended_json, show
from vaultfs.cli.mesh_work import REMOTE_NAME, MeshWork
from vaultfs.cli.output import emit_json
from vaultfs.cli.progress import ProgressStyle, progress
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sync_work import SyncWork, make_snapshot, tell_age
from vaultfs.cli.targets import Stores, check_connections, parse_rate, vault_of
from vaultfs.errors import ExitCode, UsageError
from vaultfs.mesh.book import MOST_REPLICAS, Book
from vaultfs.mesh.places import book_path
from vaultfs.mesh.share_format import Coding
from vaultfs.mesh.store import mesh_url
from vaultfs.remotes.configured import load_remotes

_OTHER_FAILURES: Final = frozenset({ExitCode.OK, ExitCode.PARTIAL})


def replicate(
    path: Path,
    /,
    *,
    replicas: int | None = None,
    coding: str | None = None,
    snapshot: bool = False,
    bwlimit: str | None = None,
    connections: int = 4,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Bring a vault to its peers: as many copies of each segment as there are to be, all that is small to every peer.

    Like 'vaultfs sync', the daemon of a mounted vault makes a snapshot first; of one that is not mounted the snapshots
    that are there are copied. Then it is looked at what all snapshots need, and copied what has too few copies.

    Args:
        path: A vault, or a folder where one is mounted.
        replicas: From now on so many peers hold each segment, 1 to 32; as before if not given, 2 at first.
        coding: From now on shares instead of copies, as in 4/7: seven shares, of which any four are enough.
        snapshot: If the vault is not mounted, open it with its password, and make a snapshot first.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        connections: So many objects at once.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from, with --snapshot.
    """
    show_warnings()
    check_connections(connections)
    rate = parse_rate(bwlimit)
    if replicas is not None and not 1 <= replicas <= MOST_REPLICAS:
        raise UsageError(f"--replicas: {replicas} is not from 1 to {MOST_REPLICAS}")
    if replicas is not None and coding is not None:
        raise UsageError("--replicas and --coding exclude each other: it is copies or shares")
    shares = None if coding is None else _usable(Coding.parse(coding))
    layout, mount = vault_of(path)
    work = MeshWork.of(str(path))
    remote = work.remote
    if remote is None:
        raise UsageError(
            f"{path} has no remote that is its peers; add it with "
            f"'vaultfs remote add {path} {REMOTE_NAME} {mesh_url(work.page.vault_id)}'"
        )
    if replicas is not None or shares is not None:
        Book(book_path()).set_replicas(work.page.vault_id, replicas or work.page.replicas, shares)
        work = MeshWork.of(str(path))
    style: ProgressStyle = "none" if quiet else "json" if json else "auto"
    made = make_snapshot(path, mount, wants_one=snapshot, secret=secret)
    if made is None:
        tell_age(path, layout, mount, is_dry=False)
    with Stores(rate) as stores:
        others = [each for each in load_remotes(layout) if each != remote]
        sent = SyncWork(layout, [remote], stores, others)
        bar = progress(f"replicate {path}", style, resumable=True)
        sent.copy(bar, check=False, dry_run=False, fork=False, connections=connections)
    sync_code = sent.exit_code(is_dry=False, is_short_allowed=True)
    if not json:
        sent.show(is_dry=False, is_short_allowed=True)
    if sync_code not in _OTHER_FAILURES:  # no peer answers, or another history is there: nothing is to be mended
        if json:
            emit_json({"vault": str(layout.root), "snapshot": made, "sync": sent.as_json()[0], "mesh": None})
        return sync_code
    with work.locked():
        mended = mend(
            work,
            progress(f"replicate {path}: copies", style, resumable=True),
            grace_ns=0,
            dry_run=False,
            rate=rate,
            connections=connections,
        )
    if json:
        emit_json(
            {
                "vault": str(layout.root),
                "snapshot": made,
                "sync": sent.as_json()[0],
                "mesh": mended_json(work, mended),
            }
        )
    else:
        show(work, mended)
    return max(sync_code, mended_exit_code(mended))


def _usable(coding: Coding) -> Coding:
    """The same, if this machine can make such shares.

    Raises:
        UsageError: it cannot.
    """
    if coding.total > coding.needed and importlib.util.find_spec("zfec") is None:
        raise UsageError("--coding: the library zfec is not installed; install vaultfs[erasure]")
    return coding
