"""Which commands in ``remotes.json`` may be run on this machine: those that were given on it.

``remotes.json`` lies in the vault's directory, and whoever can write there could otherwise have any command run by the
next sync.  So a command that a person gives is noted in ``$XDG_STATE_HOME/vaultfs/remote-commands``, as a hash of it
and of the URL and the option that it is for: for another URL, its secret would go to another server.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

import blake3
import msgspec
from platformdirs import user_state_path

from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors

SUFFIX: Final = "_command"
"""Options with such a name hold commands."""

_LINE: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST_BYTES: Final = 1 << 20


def is_trusted(url: str, option: str, command: str) -> bool:
    """Whether a command was given on this machine, by this user, for this option of this URL.

    Raises:
        StorageError: the note cannot be read.
    """
    return _digest(url, option, command) in _read()


def trust(url: str, option: str, command: str) -> None:
    """Note that a person gave a command.

    Raises:
        NoSpaceError, ReadOnlyError, StorageError: it cannot be noted.
    """
    known = _read()
    digest = _digest(url, option, command)
    if digest in known:
        return
    path = _path()
    with storage_errors(f"cannot create {path.parent}"):
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_directory(path.parent.parent)
    atomic_replace(path, "".join(f"{line}\n" for line in [*known, digest]).encode())


def _path() -> Path:
    return user_state_path("vaultfs", appauthor=False) / "remote-commands"


def _digest(url: str, option: str, command: str) -> str:
    return blake3.blake3(msgspec.json.encode([url, option, command])).hexdigest()


def _read() -> list[str]:
    """The hashes noted so far; what is not one is passed over."""
    path = _path()
    with storage_errors(f"cannot read {path}"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return []
            lines = file.read(_LARGEST_BYTES).decode("ascii", "replace").split("\n")
    return [line for line in lines if _LINE.fullmatch(line)]
