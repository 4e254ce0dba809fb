"""fsck: check a vault that is not mounted, and repair it without deleting anything.

A check changes nothing.  After a crash it sees what the next mount will recover, and says so in notes.  A repair works
in this order, and can be interrupted and repeated at any point:

1. HEAD says ``open``, with a generation above all that HEAD, witness and database know: from here on the person who
   runs the repair has accepted the vault as it lies there, and the report has said what contradicts it;
2. a log that belongs to no state, or a database that cannot be read, is moved aside; the database is made again from
   what can be read of it, the newest snapshot, and the segments' own indexes (`vaultfs.vault.rebuild`);
3. one transaction puts everything right that the checks find, and is made durable;
4. the vault is opened and closed as at every mount, which recovers from a crash and writes a clean HEAD.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from vaultfs.errors import UsageError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.database import MetadataDatabase, database_failures, metadata_errors
from vaultfs.storage.manifest_format import Manifest
from vaultfs.storage.segment_source import KnownElsewhere, SegmentSource
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.fsck_chunks import check_counts, check_data
from vaultfs.vault.fsck_repair import Examination
from vaultfs.vault.fsck_report import Finding, FsckReport
from vaultfs.vault.fsck_segments import move_aside
from vaultfs.vault.fsck_snapshots import check_kept, check_snapshots, newest_manifest_hash
from vaultfs.vault.fsck_tree import check_settings, check_tree, settle_tree
from vaultfs.vault.inspection import Inspection, inspecting, reopen
from vaultfs.vault.rebuild import rebuild
from vaultfs.vault.scrub import OnProgress
from vaultfs.vault.snapshot_manifest import manifest_files

if TYPE_CHECKING:
    from vaultfs.crypto.slots import Secret


def check(
    path: str | os.PathLike[str],
    secret: Secret,
    *,
    repair: bool = False,
    reads_data: bool = True,
    on_progress: OnProgress | None = None,
    on_unlocked: Callable[[], None] | None = None,
    elsewhere: KnownElsewhere | None = None,
    source: SegmentSource | None = None,
) -> FsckReport:
    """Check a vault, and with ``repair`` put right what can be.

    Args:
        path: the vault's directory.
        secret: opens a key slot.
        repair: change the vault; without it nothing is changed.
        reads_data: open every chunk; without it only the metadata is checked, and that the segments are there.
        on_progress: called with bytes read and bytes in all, after every segment.
        on_unlocked: called once the key derivation is done.
        elsewhere: what the vault's remotes have; nothing is known of them if None.
        source: has segments that are missing here; a repair may have to read some of one.

    Raises:
        NotAVaultError, FormatTooNewError, WrongPasswordError, VaultLockedError: as their names say.
        UsageError: ``repair`` would give up segments that the vault's remotes may have.
        IntegrityError: ``vault.json`` is damaged; without it there are no keys, and nothing can be checked.
        NoSpaceError, StorageError: the disk failed.
    """
    report = FsckReport(str(path), is_repair=repair)
    known = elsewhere or KnownElsewhere((), is_complete=False)
    with inspecting(path, secret, purpose="fsck", writable=repair, on_unlocked=on_unlocked) as inspection:
        for problem in inspection.problems:
            report.add(Finding(problem.code, "error", problem.message, is_repaired=repair))
        if not inspection.was_closed and inspection.record is not None:
            note = "the vault was not unmounted in order; the next mount recovers it"
            report.add(Finding("not-closed", "note", note))
        if repair:
            _require_what_is_elsewhere(inspection, known)
            _repair(inspection, report, known, source, reads_data=reads_data, on_progress=on_progress)
        elif inspection.database is not None and _pages_are_sound(inspection.database, report, is_repair=False):
            with metadata_errors("check"):
                ex = Examination(inspection, inspection.database, report, is_repairing=False, elsewhere=known.names)
                _examine(ex, reads_data=reads_data, on_progress=on_progress)
    return report


def _require_what_is_elsewhere(inspection: Inspection, known: KnownElsewhere) -> None:
    """Refuse to repair a vault if that would give up missing segments that may lie on its remotes.

    Those that are known to be there are left alone by a repair, unless the metadata has to be made again: that takes
    the segments themselves.

    Raises:
        UsageError: there are such segments.
    """
    layout = inspection.layout
    if not layout.remotes.exists():
        return
    needed: set[str] = set()
    is_sound = False
    if inspection.database is not None:
        with metadata_errors("check"):
            needed.update(row.name for row in ChunkRows(inspection.database).segments() if row.name and row.live)
    for seq, snapshot_id in manifest_files(layout)[-1:]:
        with contextlib.suppress(VaultError, OSError):
            manifest, _ = Manifest.decode(layout.manifest_path(seq, snapshot_id).read_bytes())
            needed.update(name for name, _ in manifest.segments)
    missing = {name for name in needed if not layout.sealed_path(SegmentName(name)).exists()}
    if missing and inspection.database is not None:
        is_sound = not inspection.database.integrity_problems()
    if known.is_complete:
        missing.intersection_update(known.names)
    if is_sound:
        missing.difference_update(known.names)
    if not missing:
        return
    advice = f"'vaultfs sync --check {layout.root}' finds out which of them the remotes have.  " if is_sound else ""
    raise UsageError(
        f"{len(missing)} segments are not here, and the vault has remotes that may have them; a repair would give "
        f"up what is in them.  {advice}Fetch them with 'vaultfs clone --fill URL {layout.root}' with the URL of "
        "'vaultfs remote list', or remove the remotes if they are lost"
    )


def _pages_are_sound(database: MetadataDatabase, report: FsckReport, *, is_repair: bool) -> bool:
    found = database.integrity_problems()
    for line in found:
        report.add(Finding("database-damaged", "error", f"metadata.db: {line}", is_repaired=is_repair))
    return not found


def _examine(ex: Examination, *, reads_data: bool, on_progress: OnProgress | None) -> None:
    """All checks, in the order in which they build on each other."""
    ex.report.inodes, ex.report.chunks, ex.report.segments = ex.tree.counts()
    check_settings(ex)
    check_snapshots(ex)
    check_kept(ex, reads_data=reads_data)
    check_counts(ex)
    check_tree(ex)
    check_data(ex, reads_data=reads_data, on_progress=on_progress)


def _repair(
    inspection: Inspection,
    report: FsckReport,
    known: KnownElsewhere,
    source: SegmentSource | None,
    *,
    reads_data: bool,
    on_progress: OnProgress | None,
) -> None:
    record = inspection.record
    if inspection.has_foreign_wal:
        for wal in inspection.wal_paths():
            move_aside(inspection.layout, wal)
        reopen(inspection)
    head = inspection.layout.head
    if os.path.lexists(head) and not stat.S_ISREG(head.lstat().st_mode):
        move_aside(inspection.layout, head)
    generation = inspection.seen_generation + 1
    manifest_hash = None if record is None else record.manifest_hash
    base = 0 if inspection.database is None else inspection.database.setting("generation")
    inspection.head.write_open(generation, base, manifest_hash=manifest_hash)
    if inspection.database is None or not _pages_are_sound(inspection.database, report, is_repair=True):
        if inspection.database is not None:
            inspection.database.close()
            inspection.database = None
        inspection.database = rebuild(inspection, report, generation)
    database = inspection.database
    with metadata_errors("repair"):
        ex = Examination(inspection, database, report, is_repairing=True, elsewhere=known.names)
        _examine(ex, reads_data=reads_data, on_progress=on_progress)
        settle_tree(ex)
        ex.end_numbers()
        database.set_setting("generation", generation)
        wanted = newest_manifest_hash(ex) or manifest_hash
        database.commit()
    database.sync_wal()
    if wanted != manifest_hash:
        inspection.head.write_open(generation, generation, manifest_hash=wanted)
    _open_and_close(ex, source)


def _open_and_close(ex: Examination, source: SegmentSource | None) -> None:
    """Mount and unmount the vault, so to say."""
    inspection = ex.inspection
    try:
        fs = FileSystem(
            inspection.layout,
            inspection.keyring,
            inspection.lock,
            inspection.head,
            ex.database,
            read_only=False,
            source=source,
        )
    except (VaultError, database_failures()) as error:
        ex.found("not-repaired", "error", f"the vault cannot be opened after the repair: {error}", is_repaired=False)
        return
    try:
        for number, size, end in ex.too_long:
            inode = fs.inodes.get(number)
            with fs.changing():
                fs.files.truncate(inode, end)
                fs.files.truncate(inode, size)
    finally:
        fs.close()
