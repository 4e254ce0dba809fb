"""The checks of fsck on inodes and names, in the order in which they build on each other.

Each reports what it finds and, in a repairing run, puts it right at once, so that the next one sees a sane tree.
"""

from __future__ import annotations

import stat
from typing import Final

from vaultfs.ids import ROOT_INODE, InodeId
from vaultfs.vault.files import MAX_FILE_BYTES
from vaultfs.vault.fsck_repair import Examination, new_inode_row
from vaultfs.vault.tree import FIRST_COOKIE, NAME_MAX_BYTES

_GUESSED_CHUNK_BYTES: Final = 128 << 10
_COUNTERS: Final = ("next_inode", "next_chunk", "next_cookie", "snapshot_seq", "generation", "is_compressing")


def check_settings(ex: Examination) -> None:
    """Settings and counters: present, numbers, and past everything that was ever used."""
    size = ex.tree.setting("chunk_size")
    if isinstance(size, int) and 4096 <= size <= 4 << 20 and not size & (size - 1):
        ex.chunk_size = size
    else:
        ex.chunk_size = _GUESSED_CHUNK_BYTES
        ex.found(
            "setting",
            "error",
            f"the size of chunks is {size!r}; {_GUESSED_CHUNK_BYTES} is assumed, and files of more than one chunk may "
            "be out of order",
            is_lost=True,
        )
        if ex.is_repairing:
            ex.database.set_setting("chunk_size", _GUESSED_CHUNK_BYTES)
    ex.begin_numbers(FIRST_COOKIE)
    least = {
        "next_inode": max(ex.tree.largest_inode() + 1, ROOT_INODE + 1),
        "next_chunk": ex.data.largest_chunk() + 1,
        "next_cookie": max(ex.tree.largest_cookie() + 1, FIRST_COOKIE),
        "snapshot_seq": ex.data.largest_snapshot(),
        "generation": 1,
        "is_compressing": 0,
    }
    for name in _COUNTERS:
        value = ex.tree.setting(name)
        if isinstance(value, int) and value >= least[name]:
            continue
        ex.found("setting", "warning", f"the setting {name} is {value!r}; it must be at least {least[name]}")
        if ex.is_repairing:
            ex.database.set_setting(name, least[name])


def check_tree(ex: Examination) -> None:
    """All checks of inodes and names."""
    _check_rows(ex)
    _check_root(ex)
    _check_data_without_inode(ex)
    _check_names_without_inode(ex)
    _check_parents(ex)
    _check_bad_names(ex)
    _check_directories_with_names(ex)
    _check_reachable(ex)
    _check_nameless(ex)
    _check_links(ex)
    _check_sizes(ex)
    count = ex.tree.xattrs_without_inode()
    if count:
        ex.found(
            "attribute-without-file", "warning", f"{count} extended attributes belong to no file; they are removed"
        )
        if ex.is_repairing:
            ex.tree.delete_xattrs_without_inode()


def _check_rows(ex: Examination) -> None:
    for inode in ex.tree.inodes_of_wrong_type():
        ex.found("inode-damaged", "error", f"inode {inode} has a column of another type", inodes=[inode])
        if ex.is_repairing:
            ex.tree.cast_inode(inode)
    for inode, mode, has_names in ex.tree.inodes_of_no_kind():
        kind = stat.S_IFDIR if has_names else stat.S_IFREG
        name = "directory" if has_names else "file"
        ex.found("inode-damaged", "error", f"mode {mode:o} is of no type; it becomes a {name}", inodes=[inode])
        if ex.is_repairing:
            ex.tree.set_mode(inode, kind | (mode & 0o777))


def _check_root(ex: Examination) -> None:
    mode = ex.tree.root_kind()
    if mode is not None and stat.S_ISDIR(mode):
        return
    ex.found("no-root", "error", "the root directory is missing" if mode is None else "the root is no directory")
    if not ex.is_repairing:
        return
    if mode is None:
        ex.tree_rows.put_inodes([new_inode_row(ROOT_INODE, stat.S_IFDIR | 0o755, nlink=2, parent=ROOT_INODE)])
    else:
        number = ex.new_inode()
        ex.data.move_extents(ROOT_INODE, number)
        ex.touched.add(ROOT_INODE)
        ex.tree.set_mode(ROOT_INODE, stat.S_IFDIR | 0o755)
        ex.tree.set_target(ROOT_INODE, None)
        ex.tree.set_size(ROOT_INODE, 0)
        if ex.data.end_of_data(number, ex.chunk_size):
            ex.make_file(number)
            ex.keep(number)


def _check_data_without_inode(ex: Examination) -> None:
    for inode, extents in ex.tree.extents_without_inode():
        ex.found(
            "lost-file",
            "error",
            f"{extents} chunks of data belong to inode {inode}, which is not there",
            inodes=[inode],
            saved="the data is kept in a new file with that number",
        )
        if ex.is_repairing:
            ex.make_file(inode)
    for inode, extents in ex.tree.extents_of_non_files():
        saved = ""
        if ex.is_repairing:
            number = ex.new_inode()
            ex.data.move_extents(inode, number)
            ex.touched.add(inode)
            ex.make_file(number)
            saved = f"the data is in {ex.keep(number)}"
        ex.found(
            "data-of-no-file", "error", f"it has {extents} chunks of data, but is no file", inodes=[inode], saved=saved
        )


def _check_names_without_inode(ex: Examination) -> None:
    parents = {parent for parent, _ in ex.tree.no_directories()}
    for entry in ex.tree.names_without_inode():
        if entry.inode in parents:
            ex.found(
                "lost-directory",
                "error",
                f"the directory {entry.inode} is missing, but not what is in it; it is made again",
                inodes=[entry.inode],
            )
            if ex.is_repairing and ex.tree_rows.inode(entry.inode) is None:
                ex.make_directory(entry.inode)
            continue
        ex.found(
            "name-without-file",
            "error",
            f"the name leads to inode {entry.inode}, which is not there; it is removed",
            inodes=[entry.inode],
            is_lost=True,
        )
        if ex.is_repairing:
            ex.drop_name(entry)


def _check_parents(ex: Examination) -> None:
    for parent, mode in ex.tree.no_directories():
        saved = ""
        if ex.is_repairing:
            number = parent
            if mode is not None:
                number = ex.new_inode()
                ex.tree.move_names(parent, number)
                ex.touched.update(entry.inode for entry in ex.tree.entries_in(number))
            ex.make_directory(number)
            saved = f"they are in {ex.keep(number)}"
        what = "is missing" if mode is None else "is no directory"
        ex.found("lost-directory", "error", f"inode {parent} {what}, but has names in it", inodes=[parent], saved=saved)


def _check_bad_names(ex: Examination) -> None:
    for entry in ex.tree.bad_names():
        saved = ""
        if ex.is_repairing:
            clean = bytes(95 if byte in b"/\0" else byte for byte in entry.name[: NAME_MAX_BYTES - 32])
            name = (clean if clean not in {b"", b".", b".."} else b"_") + b".%d" % entry.cookie
            while ex.tree.has_name(entry.parent, name):
                name += b"_"
            ex.tree.rename(entry.parent, entry.cookie, name)
            saved = f"it is called {name!r} now"
        ex.found(
            "bad-name",
            "error",
            f"inode {entry.inode} has the name {entry.name[:300]!r}, which no file may have",
            saved=saved,
            inodes=[entry.inode],
        )


def _check_directories_with_names(ex: Examination) -> None:
    for entry in ex.tree.entries_of(ROOT_INODE):
        ex.found("root-has-name", "error", f"the name {entry.name!r} in directory {entry.parent} leads to the root")
        if ex.is_repairing:
            ex.drop_name(entry)
    for inode in ex.tree.directories_with_names():
        entries = ex.tree.entries_of(inode)
        row = ex.tree_rows.inode(inode)
        kept = next((entry for entry in entries if row is not None and entry.parent == row.parent), entries[0])
        ex.found(
            "directory-with-names",
            "error",
            f"the directory {inode} has {len(entries)} names, and must have one",
            inodes=[inode],
            saved=f"it stays {kept.name!r} in directory {kept.parent}",
        )
        if ex.is_repairing:
            for entry in entries:
                if entry is not kept:
                    ex.drop_name(entry)


def _check_reachable(ex: Examination) -> None:
    above = {inode: parent for inode, parent in ex.tree.unreachable_directories() if inode != ROOT_INODE}
    placed: set[InodeId] = set()
    for start in sorted(above):
        walked: list[InodeId] = []
        number: InodeId | None = start
        while number is not None and number in above and number not in placed and number not in walked:
            walked.append(number)
            number = above[number]
        if number is None:
            _keep_directory(ex, walked[-1], "lost-directory", "no name leads to this directory")
        elif number in walked:
            first = min(walked[walked.index(number) :])
            _keep_directory(ex, first, "directory-loop", f"the directory {first} contains itself")
        placed.update(walked)


def _keep_directory(ex: Examination, inode: InodeId, code: str, message: str) -> None:
    saved = ""
    if ex.is_repairing:
        for entry in ex.tree.entries_of(inode):
            ex.drop_name(entry)
        saved = f"it is {ex.keep(inode)} now"
    ex.found(code, "error", message, inodes=[inode], saved=saved)


def _check_nameless(ex: Examination) -> None:
    for inode, size in ex.tree.nameless():
        saved = f"it is {ex.keep(inode)} now" if ex.is_repairing else "it can be given a name in lost+found"
        ex.found("lost-file", "error", f"inode {inode} of {size} bytes has no name", inodes=[inode], saved=saved)
    for inode in ex.tree.orphans_with_names():
        ex.found("orphan-with-name", "warning", "it is marked as deleted, but has a name", inodes=[inode])
        if ex.is_repairing:
            ex.tree_rows.delete_orphan(inode)
    waiting = ex.tree.orphans_alive()
    if waiting:
        ex.found("deleted-files", "note", f"{waiting} deleted files were still open; the next mount ends them")


def _check_links(ex: Examination) -> None:
    for count in ex.tree.link_counts():
        inode = InodeId(count.id)
        if inode not in ex.touched:
            ex.found(
                "link-count", "warning", f"its link count is {count.stored}; it must be {count.right}", inodes=[inode]
            )
        if ex.is_repairing:
            ex.tree.set_link_count(count.id, count.right)
    for count in ex.tree.parents():
        inode = InodeId(count.id)
        if inode not in ex.touched:
            ex.found(
                "parent",
                "warning",
                f"it says that directory {count.stored} holds it; it is {count.right}",
                inodes=[inode],
            )
        if ex.is_repairing:
            ex.tree.set_parent(count.id, count.right)


def settle_tree(ex: Examination) -> None:
    """Set the counts right that repairs have changed since they were checked."""
    for count in ex.tree.link_counts():
        ex.tree.set_link_count(count.id, count.right)
    for count in ex.tree.parents():
        ex.tree.set_parent(count.id, count.right)
    for count in ex.tree.chunk_counts():
        ex.tree.set_chunk_count(count.id, count.right)


def _check_sizes(ex: Examination) -> None:
    for inode, mode, size, target in ex.tree.bad_sizes(MAX_FILE_BYTES):
        if stat.S_ISLNK(mode):
            _check_symlink(ex, inode, size, target)
            continue
        right = ex.data.end_of_data(inode, ex.chunk_size) if stat.S_ISREG(mode) else 0
        ex.found("size", "error", f"its size is {size} bytes; it becomes {right}", inodes=[inode])
        if ex.is_repairing:
            if target is not None:
                ex.tree.set_target(inode, None)
            ex.tree.set_size(inode, right)
    for inode, size, end in ex.data.extents_past_the_end(ex.chunk_size):
        saved = ""
        if ex.is_repairing:
            copy = ex.readable_copy(inode, suffix=b".longer", size=end)
            saved = f"{copy} has all of it" if copy is not None else ""
            ex.data.delete_extents_from(inode, -(-size // ex.chunk_size))
            ex.touched.add(inode)
        ex.found(
            "data-past-end",
            "error",
            f"it has data up to byte {end}, past its size of {size}",
            inodes=[inode],
            saved=saved,
        )
    for count in ex.tree.chunk_counts():
        inode = InodeId(count.id)
        if inode not in ex.touched:
            message = f"it is said to have {count.stored} chunks; it has {count.right}"
            ex.found("chunk-count", "warning", message, inodes=[inode])
        if ex.is_repairing:
            ex.tree.set_chunk_count(count.id, count.right)


def _check_symlink(ex: Examination, inode: InodeId, size: int, target: int | None) -> None:
    if target is None or not 0 < target <= 4095:
        ex.found(
            "symlink",
            "error",
            "what this symlink leads to is lost; it leads to 'lost' now",
            inodes=[inode],
            is_lost=True,
        )
        if ex.is_repairing:
            ex.tree.set_target(inode, b"lost")
    else:
        ex.found("size", "warning", f"the symlink's size is {size}; it must be {target}", inodes=[inode])
        if ex.is_repairing:
            ex.tree.set_size(inode, target)
