"""What a program can see of a directory tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """One name.

    Attributes:
        kind: the type's bits of ``st_mode``.
        content: bytes of a file, target of a symlink.
        aliases: all paths in the tree that are the same file.
    """

    kind: int
    mode: int
    owner: tuple[int, int]
    nlink: int
    size: int
    rdev: int
    content: bytes
    attributes: tuple[tuple[str, bytes], ...]
    aliases: tuple[str, ...]


Tree = dict[str, Seen]


def attributes_of(path: str | Path) -> tuple[tuple[str, bytes], ...]:
    """The extended attributes of the user's namespace."""
    names = sorted(name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user."))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def look(path: Path) -> Seen:
    """One name, without its aliases."""
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    content = b""
    if kind == stat.S_IFREG:
        content = path.read_bytes()
    elif kind == stat.S_IFLNK:
        content = os.fsencode(path.readlink())
    is_sized = kind in {stat.S_IFREG, stat.S_IFLNK}
    return Seen(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        nlink=status.st_nlink,
        size=status.st_size if is_sized else 0,
        rdev=status.st_rdev,
        content=content,
        attributes=() if kind == stat.S_IFLNK else attributes_of(path),
        aliases=(),
    )


def look_at_all(root: Path) -> Tree:
    """Everything below a directory, by relative path."""
    found: Tree = {}
    files: dict[int, list[str]] = {}
    for base, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = Path(base, name)
            key = str(path.relative_to(root))
            found[key] = look(path)
            files.setdefault(path.lstat().st_ino, []).append(key)
    for aliases in files.values():
        for key in aliases:
            found[key] = found[key]._replace(aliases=tuple(sorted(aliases)))
    return found


Times = dict[str, tuple[int, int, int]]


def times_of(root: Path) -> Times:
    """Inode number, mtime and ctime in nanoseconds of everything: what a restart must not change."""
    found: Times = {}
    for base, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = Path(base, name)
            status = path.lstat()
            found[str(path.relative_to(root))] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found


def describe_differences(left: Tree, right: Tree) -> list[str]:
    """What differs, a line each."""
    lines = [f"{path!r} only on the left" for path in sorted(left.keys() - right.keys())]
    lines += [f"{path!r} only on the right" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for name, one, other in zip(Seen._fields, left[path], right[path], strict=True):
            if one != other:
                lines.append(f"{path!r}: {name}: {_short(one)} / {_short(other)}")
    return lines


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:60]}... ({len(text)})"
