"""Faults to build into a copy of vaultfs: each must make a crash test fail, or the suite is not good enough.

A mutant names the text that it replaces.  Who changes such a line in vaultfs changes it here too.  (One that cannot be
seen is left out: the directory of the WAL is synced by SQLite as well, when it begins a WAL.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

POWER = "tests/crash/test_power_cut.py::test_every_recorded_write"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        name: what the faulty build lacks.
        file: below ``vaultfs/``.
        old: the text that is replaced, once; it must be there exactly ``count`` times.
        new: what takes its place.
        test: the test that must fail.
        count: how often ``old`` occurs; the last one is replaced.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    count: int = 1

    def build_into(self, package: Path) -> None:
        """Change a copy of the package."""
        path = package / self.file
        text = path.read_text()
        found = text.count(self.old)
        if found != self.count:
            raise AssertionError(f"{self.name}: {self.old!r} stands {found} times in {self.file}, not {self.count}")
        before, _, after = text.rpartition(self.old)
        path.write_text(before + self.new + after)


MUTANTS: Final = (
    Mutant(
        "fdatasync of the WAL",
        "metadata/database.py",
        "os.fdatasync(self._wal_fd)",
        "os.fstat(self._wal_fd)",
        f"{POWER}[documents]",
    ),
    Mutant(
        "sync of the WAL after a full commit",
        "vault/commit.py",
        "        self.finish()\n        self.sync_wal()\n",
        "        self.finish()\n",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "sync of the WAL after a short commit",
        "vault/commit.py",
        "        if self.try_log():\n            self.sync_wal()\n",
        "        if self.try_log():\n",
        f"{POWER}[documents]",
    ),
    Mutant(
        "syncs by SQLite in a checkpoint",
        "metadata/database.py",
        "PRAGMA synchronous=NORMAL",
        "PRAGMA synchronous=OFF",
        f"{POWER}[sessions]",
    ),
    Mutant(
        "fdatasync of a segment",
        "storage/segment_writer.py",
        "os.fdatasync(self._descriptor)",
        "os.fstat(self._descriptor)",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "fsync of the directories of a segment's names",
        "storage/segment_writer.py",
        "            fsync_directory(directory)\n",
        "            directory.stat()\n",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "fsync of open/ after a segment is made",
        "storage/segment_writer.py",
        "self._sync_directory(self._layout.open_segments)",
        "self._layout.open_segments.stat()",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "fsync of the directory of a sealed segment",
        "storage/segment_writer.py",
        "            self._sync_directory(shard)\n",
        "            shard.stat()\n",
        f"{POWER}[sessions]",
    ),
    Mutant(
        "fsync of the directory of a segment that recovery seals",
        "storage/segment_writer.py",
        "        fsync_directory(shard)\n",
        "        shard.stat()\n",
        "tests/crash/test_power_cut.py::test_second_cut_while_recovering",
    ),
    Mutant(
        "fsync of HEAD before it takes its name",
        "storage/durable.py",
        "                os.fsync(descriptor)\n",
        "                os.fstat(descriptor)\n",
        f"{POWER}[sessions]",
    ),
    Mutant(
        "fsync of the vault's directory before HEAD says that it is closed",
        "vault/filesystem.py",
        "        fsync_directory(self.layout.root)\n",
        "        self.layout.root.stat()\n",
        f"{POWER}[sessions]",
    ),
    Mutant(
        "commit of metadata only after its data",
        "vault/commit.py",
        "        self.wait_synced()\n        self._writeback.collect()\n        if not self.can_finish:\n"
        '            raise StorageError("the sealing thread did not finish what it was given")\n',
        "        self._writeback.collect()\n",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "the intent log: what was written",
        "vault/files.py",
        "        self.write_log.wrote(inode.id, offset, data)\n",
        '        self.write_log.wrote(inode.id, offset, b"")\n',
        f"{POWER}[documents]",
    ),
    Mutant(
        "the intent log: what was cut off",
        "vault/files.py",
        "            self.write_log.cut(inode.id, size)\n",
        "",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "an end to the intent log after it was applied",
        "vault/filesystem.py",
        "            self.files.write_log.has_stored = True\n",
        "            self.files.write_log.has_stored = False\n",
        f"{POWER}[documents]",
    ),
    Mutant(
        "an end to files without a name",
        "vault/filesystem.py",
        "        recovery.end_orphans(self.tree_rows, self.inodes, self.files)\n",
        "",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "sealing of segments that were left open",
        "vault/recovery.py",
        "        end = rows.referenced_end(row.id)\n",
        "        end = 0\n",
        f"{POWER}[rewrite]",
    ),
    Mutant(
        "a HEAD that says open before the database changes",
        "vault/head.py",
        'Generation(generation), "open", base',
        'Generation(generation), "clean", base',
        f"{POWER}[names]",
    ),
    Mutant(
        "a new generation for a clean HEAD",
        "vault/filesystem.py",
        "self.head.write_clean(record.generation + 1",
        "self.head.write_clean(record.generation",
        f"{POWER}[names]",
    ),
    Mutant(
        "waiting for the commit before room is given back",
        "vault/commit.py",
        "        self.sync_wal()\n        self.clean_up()\n        while self.reclaim_step():\n            pass\n",
        "        self.clean_up()\n        while self.reclaim_step():\n            pass\n        self.sync_wal()\n",
        f"{POWER}[sessions]",
    ),
)
