"""The words of ``-o``: which are ours, which the kernel's, and which mount(8) and fstab use among themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vaultfs.cli.secret_sources import SecretOptions
from vaultfs.cli.sizes import parse_duration
from vaultfs.errors import UsageError

_KERNEL_WORDS: Final = frozenset(
    {"rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync"}
    | {"atime", "noatime", "diratime", "nodiratime", "relatime", "strictatime"}
)
_IGNORED_WORDS: Final = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
    | {"default_permissions"}
)
_IGNORED_PREFIXES: Final = ("x-", "X-", "comment=", "subtype=", "user=")
_VALUED: Final = frozenset(
    {"fsname", "idle", "commit_interval", "snapshot", "bwlimit", "passfile", "keyfile", "password_command"}
)
_OTHER_OPTIONS: Final = frozenset({"ro", "allow_other", "nonempty", "fill"})


@dataclass(frozen=True)
class MountOptions:
    """What the words of ``-o`` say; None and empty where they say nothing.

    Attributes:
        kernel: words for the kernel, in order, with ``max_read=``.
        read_only: ``ro`` stood there last.
        allow_other: ``allow_other`` stood there.
        nonempty: the folder may hold files, which the mount hides.
        source: of ``fsname=``.
        idle_s: of ``idle=``.
        commit_interval_s: of ``commit_interval=``.
        snapshot: of ``snapshot=``.
        fill: ``fill`` stood there.
        bwlimit: of ``bwlimit=``, as written.
        secret: of ``passfile=``, ``keyfile=``, ``password_command=``.
    """

    kernel: tuple[str, ...] = ()
    read_only: bool = False
    allow_other: bool = False
    nonempty: bool = False
    source: str | None = None
    idle_s: float | None = None
    commit_interval_s: float | None = None
    snapshot: str | None = None
    fill: bool = False
    bwlimit: str | None = None
    secret: SecretOptions = field(default_factory=SecretOptions)


def split_words(text: str) -> list[str]:
    r"""Split at commas; ``\,`` is a comma within a value, as mount(8) and fusermount3 write it."""
    return [re.sub(r"\\([,\\])", r"\1", word) for word in re.findall(r"(?:[^,\\]|\\.?)+", text)]


def parse_mount_options(texts: Iterable[str]) -> MountOptions:
    """Understand all ``-o`` arguments of a command line.

    Args:
        texts: one per ``-o``, each with words separated by commas.

    Raises:
        UsageError: a word is unknown, or its value makes no sense.
    """
    return parse_words(word for text in texts for word in split_words(text))


def parse_words(words: Iterable[str]) -> MountOptions:
    """As :func:`parse_mount_options`, for words that have been split already."""
    kernel: list[str] = []
    flags: set[str] = set()
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in _VALUED:
            if not value:
                raise UsageError(f"-o {name}: a value must follow")
            values[name] = value
        elif name == "max_read" and value.isdecimal():
            kernel.append(word)
        elif word in _KERNEL_WORDS:
            kernel.append(word)
            if word == "rw":
                flags.discard("ro")
        elif word in _OTHER_OPTIONS:
            flags.add(word)
        elif word == "password" or name == "password":
            raise UsageError("-o password: a password on a command line is seen by every user; use passfile=FILE")
        elif word == "remount":
            raise UsageError("-o remount: for 'mount -o remount' only; unmount the vault and mount it again")
        elif word not in _IGNORED_WORDS and not word.startswith(_IGNORED_PREFIXES):
            raise UsageError(f"-o {name}: there is no such mount option")
    return MountOptions(
        kernel=tuple(kernel),
        read_only="ro" in flags,
        allow_other="allow_other" in flags,
        nonempty="nonempty" in flags,
        source=values.get("fsname"),
        idle_s=parse_duration(values["idle"], "-o idle") if "idle" in values else None,
        commit_interval_s=(
            parse_duration(values["commit_interval"], "-o commit_interval") if "commit_interval" in values else None
        ),
        snapshot=values.get("snapshot"),
        fill="fill" in flags,
        bwlimit=values.get("bwlimit"),
        secret=SecretOptions(
            passfile=Path(values["passfile"]) if "passfile" in values else None,
            keyfile=Path(values["keyfile"]) if "keyfile" in values else None,
            password_command=values.get("password_command"),
        ),
    )
