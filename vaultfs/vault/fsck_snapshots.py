"""The checks of fsck on snapshots: the manifest of each, HEAD's mention of the newest, and what kept ones need."""

from __future__ import annotations

from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.metadata.snapshot_rows import SnapshotRow, SnapshotRows
from vaultfs.vault.fsck_repair import Examination
from vaultfs.vault.fsck_segments import move_aside
from vaultfs.vault.kept_check import kept_problems
from vaultfs.vault.snapshot_manifest import SnapshotHold, manifest_files, open_manifest


def newest_manifest_hash(ex: Examination) -> bytes | None:
    """What HEAD must name as the newest manifest; None if there is no snapshot."""
    rows = SnapshotRows(ex.database).all()
    return bytes.fromhex(rows[-1].id) if rows else None


def check_snapshots(ex: Examination) -> None:
    """Compare the table of snapshots with the manifests and with HEAD.

    A snapshot whose manifest is damaged cannot be opened.  A repair takes its row away, so that its space comes back
    once it is clear that nobody restores the manifest; the file is moved aside.
    """
    rows = SnapshotRows(ex.database)
    record = ex.inspection.record
    snapshots = rows.all()
    for row in snapshots:
        reason = _problem_of(ex, row)
        if reason is not None:
            ex.found(
                "snapshot-manifest",
                "error",
                f"snapshot {row.seq}{f' ({row.label})' if row.label else ''} cannot be opened: {reason}",
                saved="the present files are not concerned",
                is_lost=True,
            )
            if ex.is_repairing:
                _give_up(ex, rows, row)
    is_busy = rows.making() is not None
    newest = snapshots[-1] if snapshots else None
    if (
        newest is not None
        and newest.seq == ex.tree.setting("snapshot_seq")
        and record is not None
        and not is_busy
        and record.manifest_hash != bytes.fromhex(newest.id)
    ):
        ex.found("head-snapshot", "warning", f"HEAD does not name the newest snapshot, {newest.seq}")
    known = {row.seq for row in snapshots}
    strangers = [seq for seq, _ in manifest_files(ex.inspection.layout) if seq not in known]
    if strangers:
        ex.found("stray-manifest", "note", f"{len(strangers)} manifests belong to no snapshot of this vault")


def check_kept(ex: Examination, *, reads_data: bool) -> None:
    """Look at kept snapshots, of which the database knows nothing; a manifest that cannot be read is moved aside."""
    layout = ex.inspection.layout
    known = {row.name for row in ex.chunk_rows.segments() if row.name is not None}
    problems = kept_problems(layout, ex.inspection.keyring, known=known, elsewhere=ex.elsewhere, reads_data=reads_data)
    for problem in list(problems):
        what = f"kept snapshot {problem.seq} ({problem.id[:12]})"
        safe = "the present files are not concerned"
        if problem.is_manifest:
            ex.found("kept-manifest", "error", f"{what} cannot be opened: {problem.message}", saved=safe, is_lost=True)
            if ex.is_repairing:
                move_aside(layout, layout.kept_path(problem.seq, problem.id))
        else:
            advice = "delete the snapshot if nobody needs it"
            ex.found("kept-data", "error", f"{what}: {problem.message}; {advice}", saved=safe, is_repaired=False)
    if ex.inspection.adoption is not None:
        ex.found("adoption", "note", "an adoption was interrupted; the next mount ends it, or takes it back")
    elif layout.adopting.is_dir():
        ex.found(
            "adoption",
            "note",
            f"what an adoption has fetched lies in {layout.adopting}; 'vaultfs sync --adopt' goes on with it",
        )


def _problem_of(ex: Examination, row: SnapshotRow) -> str | None:
    layout = ex.inspection.layout
    try:
        hold = SnapshotHold.take(layout, row.seq, row.id, is_exclusive=False)
        try:
            _, content = open_manifest(ex.inspection.keyring, hold.data, row.seq, row.id)
        finally:
            hold.release()
        missing = [each.name for each in content.segments if not layout.sealed_path(SegmentName(each.name)).is_file()]
        pieces = {content.segments[piece.segment].name for piece in content.pieces}
    except VaultError as error:
        return str(error)
    gone = pieces.intersection(missing).difference(ex.elsewhere)
    return f"the segment {min(gone)}, which holds its metadata, is missing" if gone else None


def _give_up(ex: Examination, rows: SnapshotRows, row: SnapshotRow) -> None:
    path = ex.inspection.layout.manifest_path(row.seq, row.id)
    try:
        if path.is_symlink() or path.exists():
            move_aside(ex.inspection.layout, path)
    except IntegrityError as error:
        ex.found("not-repaired", "warning", str(error), is_repaired=False)
    rows.delete(row.seq)
    # The next mount gives back its pieces and what only it needed.
    rows.set_cleaning(True)
