"""Copy what can still be read of a damaged database into a new one, row by row.

Pages are authenticated, so what can be read is what was written.  A table is read in ranges of its key; a range in
which a page fails is halved, until what is lost lies between two rows that can be read.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import apsw

from vaultfs.metadata.database import MetadataDatabase

_KEYS: Final = {
    "inode": ("id", "id"),
    "entry": ("parent", "parent, name"),
    "xattr": ("inode", "inode, name"),
    "orphan": ("inode", "inode"),
    "extent": ("inode", "inode, idx"),
    "chunk": ("id", "id"),
    "segment": ("id", "id"),
    "intent": ("id", "id"),
    "snapshot": ("seq", "seq"),
    "snapshot_piece": ("seq", "seq, idx"),
}
"""First column of the key, and the whole key.  ``reclaim`` is left out: what it names may be in use by now."""
_LARGEST_KEY: Final = (1 << 62) - 1
_MOST_FAILURES_AT_FIRST: Final = 300
"""Of reads before the first row.  Finding it behind a damaged page takes up to 62 halvings; where a table has lost its
root, every read fails."""
_MOST_FAILURES: Final = 20_000
_BATCH: Final = 1000


class Salvaged(NamedTuple):
    """What became of one table."""

    rows: int
    is_complete: bool


class _Table:
    """One table on its way."""

    def __init__(self, source: MetadataDatabase, target: MetadataDatabase, name: str) -> None:
        self._source = source
        self._target = target
        columns = [cast("str", row[1]) for row in target.rows(f"PRAGMA table_info({name})")]
        first, key = _KEYS[name]
        listed = ", ".join(columns)
        select = f"SELECT {listed} FROM {name} NOT INDEXED WHERE {first} BETWEEN ? AND ? ORDER BY "  # noqa: S608
        self._select = select + key
        self._select_back = select + ", ".join(f"{part} DESC" for part in key.split(", "))
        self._insert = f"INSERT OR IGNORE INTO {name} ({listed}) VALUES ({','.join('?' * len(columns))})"  # noqa: S608
        self._failures = 0
        self._has_rows = False

    def copy(self) -> bool:
        """Copy what can be read; return whether that is all."""
        return self._copy_range(0, _LARGEST_KEY)

    def _copy_range(self, first: int, last: int) -> bool:
        if self._failures > (_MOST_FAILURES if self._has_rows else _MOST_FAILURES_AT_FIRST):
            return False
        if self._stream(self._select, first, last):
            return True
        self._failures += 1
        if first == last:
            self._stream(self._select_back, first, last)
            return False
        middle = (first + last) // 2
        low = self._copy_range(first, middle)
        return self._copy_range(middle + 1, last) and low

    def _stream(self, sql: str, first: int, last: int) -> bool:
        """Copy rows until one cannot be read; False if that happened."""
        batch: list[tuple[object, ...]] = []
        try:
            for row in self._source.execute(sql, (first, last)):
                self._has_rows = True
                batch.append(row)
                if len(batch) >= _BATCH:
                    self._target.executemany(self._insert, batch)
                    batch = []
        except apsw.Error:
            # A page that fails makes everything fail that is read later in the same transaction.
            self._source.rollback()
            return False
        finally:
            self._target.executemany(self._insert, batch)
        return True


def salvage(source: MetadataDatabase, target: MetadataDatabase) -> dict[str, Salvaged] | None:
    """Copy everything that can be read; None, and nothing is copied, if that includes neither files nor names.

    Args:
        source: open; need not be sound.
        target: open; settings that it has are replaced.
    """
    target.execute("SAVEPOINT salvage")
    try:
        for name, value in source.execute("SELECT name, value FROM setting"):
            target.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))
    except apsw.Error:
        source.rollback()
        has_settings = False
    else:
        has_settings = True
    result = {"setting": Salvaged(target.scalar("SELECT count(*) FROM setting"), has_settings)}
    for name in _KEYS:
        is_complete = _Table(source, target, name).copy()
        result[name] = Salvaged(target.scalar(f"SELECT count(*) FROM {name}"), is_complete)  # noqa: S608
    is_of_use = bool(result["inode"].rows or result["entry"].rows)
    if not is_of_use:
        target.execute("ROLLBACK TO salvage")
    target.execute("RELEASE salvage")
    return result if is_of_use else None
