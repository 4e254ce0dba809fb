"""The list of a vault's remotes, in ``remotes.json`` in its directory.

    {"format": 1, "remotes": [{"name": …, "url": …, "options": {…}, "features": {…}}]}

It is public, and anybody may have written it.  So it is bounded and decoded strictly; a URL means nothing until it is
opened; it holds no secret; and a command in its options is passed over unless it was given on this machine
(`vaultfs.remotes.trusted_commands`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final

import msgspec

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.remotes.locations import LARGEST_URL, parse
from vaultfs.remotes.store import Features
from vaultfs.remotes.trusted_commands import SUFFIX, is_trusted, trust
from vaultfs.storage.kept_file import FORMAT_VERSION, KeptFile
from vaultfs.storage.layout import VaultLayout

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
    file = _file(layout)
    stored = file.load()
    if stored is None:
        return []
    if len({remote.name for remote in stored.remotes}) < len(stored.remotes):
        raise file.damaged("two remotes have one name")
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
        stored = msgspec.convert(content, _StoredFile)
    except msgspec.ValidationError as error:
        message = (
            f"the remotes cannot be stored: {error}. There may be {MAX_REMOTES}; a name has at most 32 lower-case "
            "letters, digits, '_' and '-', and an option's value at most 1024 printable characters"
        )
        raise UsageError(message) from error
    file = _file(layout)
    try:
        file.encode(stored)
    except IntegrityError as error:
        raise UsageError(str(error)) from error
    for remote in remotes:
        for option, value in remote.options.items():
            if option.endswith(SUFFIX):
                trust(remote.url, option, value)
    file.save(stored)


def _file(layout: VaultLayout) -> KeptFile[_StoredFile]:
    advice = "The vault itself does not need it: move it away and add the remotes again"
    return KeptFile(layout.remotes, _StoredFile, MAX_FILE_BYTES, title="the list of remotes", advice=advice)
