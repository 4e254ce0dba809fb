"""The list of a vault's remotes, in ``remotes.json`` in its directory.

    {"format": 1, "remotes": [{"name": …, "url": …, "options": {…}, "features": {…}}]}

It is public, and anybody may have written it.  So it is bounded and decoded strictly; a URL means nothing until it is
opened; it holds no secret; and a command in its options is passed over unless it was given on this machine
(`vaultfs.remotes.trusted_commands`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final

import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError
from vaultfs.remotes.locations import LARGEST_URL, parse
from vaultfs.remotes.store import Features
from vaultfs.remotes.trusted_commands import SUFFIX, is_trusted, trust
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.layout import VaultLayout

FORMAT_VERSION: Final = 1
MAX_FILE_BYTES: Final = 1 << 18
MAX_REMOTES: Final = 32

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]
_Url = Annotated[str, msgspec.Meta(max_length=LARGEST_URL, pattern=r"^[!-~]+\Z")]
_Value = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z")]


class _StoredFeatures(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    conditional_create: bool
    range_reads: bool
    lists_at_once: bool


class _StoredRemote(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: _Name
    url: _Url
    options: Annotated[dict[_Name, _Value], msgspec.Meta(max_length=16)]
    features: _StoredFeatures


class _StoredFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    remotes: Annotated[list[_StoredRemote], msgspec.Meta(max_length=MAX_REMOTES)]


class _AnyFile(msgspec.Struct, frozen=True):
    format: int


@dataclass(frozen=True)
class Remote:
    """A remote of a vault.

    Attributes:
        name: what the person calls it: lower-case letters, digits, ``_`` and ``-``, at most 32.
        url: see `vaultfs.remotes.urls`.
        options: settings of its kind; no secrets.
        features: what it can do, as found by trying.
    """

    name: str
    url: str
    options: dict[str, str] = field(default_factory=dict)
    features: Features = field(default_factory=Features)


def require_name(name: str) -> None:
    """See that a remote can have this name.

    Raises:
        UsageError: it cannot.
    """
    try:
        msgspec.convert(name, _Name)
    except msgspec.ValidationError:
        raise UsageError(
            f"{name!r} cannot be the name of a remote: it has at most 32 lower-case letters, digits, '_' and '-', "
            "and begins with a letter or digit"
        ) from None


def load_remotes(layout: VaultLayout) -> list[Remote]:
    """The remotes of a vault, in the order in which they were added; none if there is no list.

    Raises:
        FormatTooNewError: a newer vaultfs wrote the list.
        IntegrityError: it is damaged.
        StorageError: it cannot be read.
    """
    data = _read(layout)
    if data is None:
        return []
    try:
        if msgspec.json.decode(data, type=_AnyFile).format > FORMAT_VERSION:
            raise FormatTooNewError(f"{layout.remotes} was written by a newer version of vaultfs; update vaultfs")
        stored = msgspec.json.decode(data, type=_StoredFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(layout, str(error)) from error
    if stored.format != FORMAT_VERSION:
        raise _damaged(layout, f"no vaultfs ever wrote the format {stored.format}")
    if len({remote.name for remote in stored.remotes}) < len(stored.remotes):
        raise _damaged(layout, "two remotes have one name")
    return [
        Remote(
            remote.name,
            remote.url,
            {
                option: value
                for option, value in remote.options.items()
                if not option.endswith(SUFFIX) or is_trusted(remote.url, option, value)
            },
            Features(**msgspec.structs.asdict(remote.features)),
        )
        for remote in stored.remotes
    ]


def save_remotes(layout: VaultLayout, remotes: Sequence[Remote]) -> None:
    """Replace the list.  Commands in options are trusted from then on.

    Args:
        layout: the vault.
        remotes: all that it has; what `load_remotes` returned, changed.

    Raises:
        UsageError: a name, URL or option cannot be stored, or a URL holds a secret.
        NoSpaceError, ReadOnlyError, StorageError: the old list is still there.
    """
    names = [remote.name for remote in remotes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"there is a remote {name!r} already; choose another name, or remove that one")
    for remote in remotes:
        parse(remote.url)
    content = {"format": FORMAT_VERSION, "remotes": [asdict(remote) for remote in remotes]}
    try:
        msgspec.convert(content, _StoredFile)
    except msgspec.ValidationError as error:
        message = (
            f"the remotes cannot be stored: {error}. There may be {MAX_REMOTES}; a name has at most 32 lower-case "
            "letters, digits, '_' and '-', and an option's value at most 1024 printable characters"
        )
        raise UsageError(message) from error
    data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"the list of remotes would have {len(data)} bytes; it may have {MAX_FILE_BYTES}")
    for remote in remotes:
        for option, value in remote.options.items():
            if option.endswith(SUFFIX):
                trust(remote.url, option, value)
    atomic_replace(layout.remotes, data)


def _read(layout: VaultLayout) -> bytes | None:
    path = layout.remotes
    with storage_errors(f"cannot read {path}"):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(mode):
            raise _damaged(layout, "it is not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise _damaged(layout, f"it has more than {MAX_FILE_BYTES} bytes")
    return data


def _damaged(layout: VaultLayout, why: str) -> IntegrityError:
    shown = "".join(character if character.isprintable() else "?" for character in why[:200])
    return IntegrityError(
        f"the list of remotes {layout.remotes} is damaged: {shown}. The vault itself does not need it: "
        "move it away and add the remotes again",
    )
