"""Things that can lie where a file is expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path

KINDS = ["symlink", "dangling symlink", "fifo", "socket", "directory"]


def put(path: Path, kind: str, target: Path) -> None:
    """Put something at ``path``; a symlink leads to ``target``."""
    path.parent.mkdir(exist_ok=True)
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "dangling symlink":
        path.symlink_to(target.with_name("missing"))
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | {"file": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}[kind])
