"""System calls that fail: any of those that change the disk, once or from then on.

A sync that fails loses what it should have made durable: the next one of that file succeeds, and the bytes are zeros
after a crash.  So does Linux, and who believes the second sync is caught by that.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CALLS = (
    "open",
    "write",
    "pwrite",
    "pwritev",
    "fsync",
    "fdatasync",
    "link",
    "rename",
    "unlink",
    "ftruncate",
    "fchmod",
)
CALLERS = ("vaultfs.storage.", "vaultfs.metadata.", "vaultfs.vault.")


@dataclass
class Faults:
    """Which call fails, and what has been called.

    Attributes:
        at: the number of the call that fails; None: all succeed.
        code: with this errno.
        is_for_good: all calls after it that write fail as well.
        only: calls of other names do not count.
    """

    at: int | None = None
    code: int = errno.EIO
    is_for_good: bool = False
    only: tuple[str, ...] = CALLS
    calls: list[str] = field(default_factory=list)
    fired: str = ""
    _sizes: dict[int, int] = field(default_factory=dict)
    lost: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def _shall_fail(self, name: str, arguments: tuple[Any, ...]) -> bool:
        if name == "open" and not arguments[1] & os.O_CREAT:
            return False
        if name not in self.only:
            return False
        number = len(self.calls)
        self.calls.append(name)
        if self.at is None or number < self.at or (number > self.at and not self.is_for_good):
            return False
        if name == "unlink" and self.code == errno.ENOSPC:
            return False
        self.fired = self.fired or f"{name} ({number})"
        return True

    def _note_sync(self, descriptor: int, *, failed: bool) -> None:
        status = os.fstat(descriptor)
        before = self._sizes.get(status.st_ino, 0)
        if failed:
            self.lost.setdefault(status.st_ino, []).append((before, status.st_size))
        self._sizes[status.st_ino] = status.st_size

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not sys._getframe(1).f_globals.get("__name__", "").startswith(CALLERS):
                return real(*arguments, **options)
            fails = self._shall_fail(name, arguments)
            if name == "fdatasync":
                self._note_sync(arguments[0], failed=fails)
            if fails:
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call

    @contextmanager
    def injected(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self.wrap(name, getattr(os, name)))
            yield

    def lose(self, old: Path, copy: Path) -> None:
        """Make zeros in a copy of the vault of what syncs failed to make durable."""
        for path in old.rglob("*.seg"):
            for start, end in self.lost.get(path.stat().st_ino, []):
                target = copy / path.relative_to(old)
                mode = target.stat().st_mode
                target.chmod(0o600)
                with target.open("r+b") as file:
                    file.seek(start)
                    file.write(bytes(end - start))
                target.chmod(mode)
