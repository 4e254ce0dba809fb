"""What a power cut leaves behind, at worst: records system calls and keeps, beside the real files, what is durable.

A file's content is durable as of its last fsync or fdatasync; a directory's names as of its last fsync.  Nothing else
is.  A real disk may have more, in any order, so checks are made with two views: only the names that are durable, and
all names there are now; always with durable content only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

Ident = tuple[int, int]

# Calls that change files or make them durable, each with the argument that says on what.
_CALLS = {
    "open": 0,
    "write": 0,
    "pwrite": 0,
    "pwritev": 0,
    "ftruncate": 0,
    "fchmod": 0,
    "fsync": 0,
    "fdatasync": 0,
    "mkdir": 0,
    "link": 1,
    "rename": 1,
    "unlink": 0,
}
_SYNCS = {"fsync", "fdatasync"}


class Recorder:
    """Stands before the functions of ``os``: lists calls below a directory, and lets a test act on each.

    Syncs are only listed: the model takes their place, and tests are ten times as quick.

    Attributes:
        calls: name and path relative to the root, in order; random digits of names are replaced by ``*``.
        after: called with each call's name after it succeeded, and with the path or descriptor it was about.
        before: likewise, before it is made.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, Any], None] = lambda _name, _subject: None
        self.after: Callable[[str, Any], None] = lambda _name, _subject: None
        for name, position in _CALLS.items():
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name), position))

    def _wrap(self, name: str, real: Callable[..., Any], position: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            subject = args[position]
            path = Path(os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else subject)
            if not path.is_relative_to(self.root):
                return real(*args, **kwargs)
            self.before(name, subject)
            result = None if name in _SYNCS else real(*args, **kwargs)
            self.calls.append((name, _without_random(path.relative_to(self.root))))
            self.after(name, subject)
            return result

        return call


def _without_random(path: Path) -> str:
    """``segments/ab/0123….seg`` as ``segments/*/*.seg``."""
    parts = []
    for part in path.parts:
        stem, dot, suffix = part.partition(".")
        is_random = len(stem) in {2, 16, 32, 64} and set(stem) <= set("0123456789abcdef")
        parts.append(f"*{dot}{suffix}" if is_random else part)
        if part.endswith(".tmp"):
            parts[-1] = "*.tmp"
    return "/".join(parts)


class Disk:
    """What is durable below a directory that has just been made, and whether it is what was promised.

    Args:
        recorder: of that directory.
        drop: the number of the sync call, from 0, that a broken disk or a mutant of the code leaves out.
    """

    def __init__(self, recorder: Recorder, *, drop: int | None = None) -> None:
        self.promises: dict[Path, bytes] = {}
        self.invariant: Callable[[Disk], list[str]] = lambda _disk: []
        self.violations: list[str] = []
        self.syncs = 0
        self._root = recorder.root
        self._drop = drop
        self._recorder = recorder
        self._names: dict[Ident, dict[str, Ident]] = {}
        self._contents: dict[Ident, bytes] = {}
        self._pinned: set[Ident] = set()
        self._pins = ExitStack()
        recorder.after = self._after

    def _after(self, name: str, subject: Any) -> None:
        if name in _SYNCS:
            if self.syncs != self._drop:
                self._sync(subject)
            self.syncs += 1
        elif name not in {"unlink", "mkdir"}:
            self._pin(subject)
        self.check()

    def _pin(self, subject: int | Path) -> None:
        """Keep a file from vanishing, so that its inode number is not used again."""
        status = os.stat(subject)
        if (status.st_dev, status.st_ino) not in self._pinned:
            self._pinned.add((status.st_dev, status.st_ino))
            path = f"/proc/self/fd/{subject}" if isinstance(subject, int) else subject
            self._pins.callback(os.close, os.open(path, os.O_PATH))

    def _sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        ident = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            self._names[ident] = _listing(f"/proc/self/fd/{descriptor}")
        else:
            self._contents[ident] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def content(self, path: Path, *, all_names: bool) -> bytes | None:
        """What a power cut now leaves of a file; None if nothing has that name."""
        where = self._root
        ident = _ident(where)
        for part in path.relative_to(self._root).parts:
            names = _listing(where) if all_names else self._names.get(ident, {})
            if part not in names:
                return None
            ident = names[part]
            where /= part
        return self._contents.get(ident, b"")

    def check(self) -> None:
        for path, content in self.promises.items():
            for all_names in (False, True):
                left = self.content(path, all_names=all_names)
                if left is None or not left.startswith(content):
                    self._violated(f"{path.relative_to(self._root)} is lost")
        for violation in self.invariant(self):
            self._violated(violation)

    def _violated(self, what: str) -> None:
        done = self._recorder.calls[-1] if self._recorder.calls else "the beginning"
        self.violations.append(f"{what} by a power cut after {done}")

    def close(self) -> None:
        self._pins.close()


def _listing(directory: Path | str) -> dict[str, Ident]:
    with os.scandir(directory) as entries:
        return {entry.name: _ident(entry.path) for entry in entries}


def _ident(path: Path | str) -> Ident:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
