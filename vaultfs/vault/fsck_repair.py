"""What the checks of fsck share: the tables, the report, and the directory ``/lost+found``.

Nothing is deleted: a lost inode gets a name in ``/lost+found``, its number.  A file of which a part is lost stays where
it is, and reading that part fails as before; beside it a copy ``NUMBER.readable`` with holes for what is lost is put
into ``/lost+found``.  The copy shares its chunks with the file and costs no space.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from vaultfs.ids import ROOT_INODE, InodeId, SegmentId
from vaultfs.metadata.check_chunk_rows import CheckChunkRows
from vaultfs.metadata.check_rows import CheckRows, EntryRow
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.tree_rows import InodeRow, TreeRows
from vaultfs.vault.fsck_report import ByteRange, Finding, FsckReport, Severity
from vaultfs.vault.scrub import Paths

if TYPE_CHECKING:
    from vaultfs.metadata.database import MetadataDatabase
    from vaultfs.vault.inspection import Inspection

LOST_AND_FOUND: Final = b"lost+found"
_READABLE: Final = re.compile(rb"[0-9]+\.readable(\.[0-9]+)?")


def new_inode_row(number: InodeId, mode: int, *, nlink: int, size: int = 0, parent: InodeId | None = None) -> InodeRow:
    """The row of an inode of which only the number is known: it belongs to who runs the repair."""
    now_ns = time.time_ns()
    uid, gid = os.getuid(), os.getgid()
    return InodeRow(number, mode, uid, gid, nlink, size, 0, now_ns, now_ns, now_ns, 0, None, parent or InodeId(0))


class Examination:
    """One run of the checks over one database.

    Args:
        inspection: the vault.
        database: open.
        report: takes the findings.
        is_repairing: each check puts right what it finds.
        elsewhere: segments that are not missed on this disk.
    """

    def __init__(
        self,
        inspection: Inspection,
        database: MetadataDatabase,
        report: FsckReport,
        *,
        is_repairing: bool,
        elsewhere: Collection[str] = (),
    ) -> None:
        self.inspection = inspection
        self.database = database
        self.report = report
        self.is_repairing = is_repairing
        self.elsewhere = elsewhere
        self.absent: set[SegmentId] = set()
        """Segments that are elsewhere indeed; filled by the check of segments."""
        self.tree = CheckRows(database)
        self.data = CheckChunkRows(database)
        self.tree_rows = TreeRows(database)
        self.chunk_rows = ChunkRows(database)
        self.paths = Paths(self.tree)
        self.chunk_size = 0
        self.touched: set[InodeId] = set()
        """Inodes that a repair has changed: their counts are then set right without a further finding."""
        self.too_long: list[tuple[InodeId, int, int]] = []
        """(inode, size, end of its last chunk) of files to be cut to their size once the vault can be written."""
        self._next_inode = 0
        self._next_cookie = 0
        self._lost_and_found: InodeId | None = None

    def found(
        self,
        code: str,
        severity: Severity,
        message: str,
        *,
        inodes: Iterable[InodeId] = (),
        ranges: Iterable[ByteRange] = (),
        saved: str = "",
        is_repaired: bool | None = None,
        is_lost: bool = False,
    ) -> None:
        """Report a finding; by default it is repaired if this run repairs."""
        names = tuple(path for inode in inodes for path in self.paths.of(inode))
        if names and not any(name in message for name in names):
            message = f"{', '.join(names[:3])}: {message}"
        self.report.add(
            Finding(
                code,
                severity,
                message,
                names,
                tuple(ranges),
                saved,
                (self.is_repairing if is_repaired is None else is_repaired) and severity != "note",
                is_lost,
            )
        )

    # --- numbers

    def begin_numbers(self, first_cookie: int) -> None:
        """Learn the numbers that were never used."""
        inode, cookie = self.tree.setting("next_inode"), self.tree.setting("next_cookie")
        self._next_inode = max(inode if isinstance(inode, int) else 0, self.tree.largest_inode() + 1, ROOT_INODE + 1)
        self._next_cookie = max(cookie if isinstance(cookie, int) else 0, self.tree.largest_cookie() + 1, first_cookie)

    def end_numbers(self) -> None:
        """Store them."""
        self.database.set_setting("next_inode", self._next_inode)
        self.database.set_setting("next_cookie", self._next_cookie)

    def new_inode(self) -> InodeId:
        """A number that was never used."""
        number = InodeId(self._next_inode)
        self._next_inode += 1
        return number

    # --- lost+found

    def add_name(self, parent: InodeId, name: bytes, inode: InodeId) -> bytes:
        """Give an inode a name, with a number behind it if it is taken; return the name."""
        wanted, number = name, 1
        while self.tree.has_name(parent, wanted):
            number += 1
            wanted = b"%s.%d" % (name, number)
        self.tree_rows.insert_entry(parent, wanted, inode, self._next_cookie)
        self._next_cookie += 1
        self.touched |= {parent, inode}
        return wanted

    def drop_name(self, entry: EntryRow) -> None:
        """Take a name away."""
        self.tree.delete_entry(entry.parent, entry.cookie)
        self.touched |= {entry.parent, entry.inode}

    def lost_and_found(self) -> InodeId:
        """The directory; made at first use."""
        if self._lost_and_found is None:
            found = self.tree.child(ROOT_INODE, LOST_AND_FOUND)
            if found is not None and stat.S_ISDIR(found[1]):
                self._lost_and_found = found[0]
            else:
                number = self.new_inode()
                self.tree_rows.put_inodes([new_inode_row(number, stat.S_IFDIR | 0o700, nlink=2, parent=ROOT_INODE)])
                self.add_name(ROOT_INODE, LOST_AND_FOUND, number)
                self._lost_and_found = number
        return self._lost_and_found

    def keep(self, inode: InodeId, suffix: bytes = b"") -> str:
        """Give an inode a name in lost+found; return its path."""
        name = self.add_name(self.lost_and_found(), b"%d%s" % (inode, suffix), inode)
        return f"/{LOST_AND_FOUND.decode()}/{name.decode()}"

    def make_directory(self, number: InodeId) -> None:
        """Make the row of a directory that is missing; it still needs a name."""
        self.touched.add(number)
        parent = ROOT_INODE if number == ROOT_INODE else None
        self.tree_rows.put_inodes([new_inode_row(number, stat.S_IFDIR | 0o700, nlink=2, parent=parent)])

    def make_file(self, number: InodeId) -> None:
        """Make the row of a file that is missing, as long as its data; it still needs a name."""
        self.touched.add(number)
        size = self.data.end_of_data(number, self.chunk_size)
        self.tree_rows.put_inodes([new_inode_row(number, stat.S_IFREG | 0o600, nlink=1, size=size)])

    def readable_copy(self, inode: InodeId, *, suffix: bytes = b".readable", size: int | None = None) -> str | None:
        """Put a copy of a file into lost+found that has holes where data is lost; None if nothing is readable.

        Args:
            inode: the file.
            suffix: of the copy's name.
            size: of the copy, in bytes; the file's if None.
        """
        row = self.tree_rows.inode(inode)
        if row is None:
            return None
        number = self.new_inode()
        extents = self.data.copy_extents(inode, number)
        if not extents:
            return None
        self.tree.copy_inode(inode, number, row.size if size is None else size)
        self.tree.set_chunk_count(number, extents)
        name = self.add_name(self.lost_and_found(), b"%d%s" % (inode, suffix), number)
        return f"/{LOST_AND_FOUND.decode()}/{name.decode()}"

    def is_readable_copy(self, inode: InodeId) -> bool:
        """Whether an inode is what `readable_copy` has made, and nobody has moved."""
        names = self.tree.names_of(inode)
        return len(names) == 1 and (
            names[0][0] == self.lost_and_found() and _READABLE.fullmatch(names[0][1]) is not None
        )

    def newer_copy(self, inode: InodeId, end: int) -> InodeId:
        """Put a copy of a file, of ``end`` bytes at least, into lost+found for newer data; return its number."""
        row = self.tree_rows.inode(inode)
        size = end if row is None else max(row.size, end)
        number = self.new_inode()
        self.data.copy_extents(inode, number)
        self.tree.copy_inode(inode, number, size)
        self.add_name(self.lost_and_found(), b"%d.newer" % inode, number)
        return number
