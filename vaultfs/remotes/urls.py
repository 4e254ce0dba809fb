"""What a person writes to name a remote, and which store that means.

    file:///dir                            a directory that exists
    s3://bucket/prefix                     S3 and what speaks like it; options endpoint, region, profile, path_style
    webdav+https://host/path               and webdav+http:// where the line is safe; options username, password_command
    gcs://bucket/prefix                    azblob://container/prefix      b2://bucket/prefix
    gdrive:folder                          dropbox:folder                 onedrive:folder
    mesh://vault-id                        the peers of a vault; the program brings what opens it (`bring_scheme`)

A URL holds no secret, nor do options: both are stored in ``remotes.json``, which is public.  Credentials come from
where each cloud's own tools look for them, or from a command that prints one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote

from vaultfs.errors import UsageError
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.remotes.locations import Location, parse, redacted, require_options, require_prefix_path
from vaultfs.remotes.retrying import RetryingStore, RetryPolicy
from vaultfs.remotes.store import Store

__all__ = ["StoreMaker", "bring_scheme", "directory_of", "open_store", "redacted"]

StoreMaker = Callable[[Location, Mapping[str, str]], Store]
"""Makes the store of a URL and its options.

Raises:
    UsageError: they make no sense.
"""

_NO_OPTIONS: Final[Mapping[str, str]] = MappingProxyType({})
_NO_MAKERS: Final[Mapping[str, StoreMaker]] = MappingProxyType({})
_DISK_PATIENCE: Final = RetryPolicy(tries=3, first_wait_s=0.2, longest_wait_s=1.0, total_s=3.0)
"""A disk that is not plugged in will not be in a minute either; a share may only have hiccups."""


_brought: Final[dict[str, StoreMaker]] = {}


def bring_scheme(scheme: str, maker: StoreMaker) -> None:
    """Say what opens the stores of a scheme that nothing in `vaultfs.remotes` can open; the newest counts.

    Args:
        scheme: in lower case.
        maker: called for each store.
    """
    _brought[scheme] = maker


def open_store(
    url: str,
    options: Mapping[str, str] = _NO_OPTIONS,
    patience: RetryPolicy | None = None,
    makers: Mapping[str, StoreMaker] = _NO_MAKERS,
) -> Store:
    """The store that a URL means; nothing is asked of it yet.

    Args:
        url: see the module.
        options: settings of its kind.
        patience: at most, for who cannot wait as long as it takes.
        makers: open the stores of some schemes in place of what else would.

    Raises:
        UsageError: the URL or an option makes no sense.
    """
    location = parse(url)
    known: dict[str, StoreMaker] = {"file": _directory, "s3": _s3, **_brought, **makers}
    maker = known.get(location.scheme, _opendal)
    store = maker(location, options)
    return RetryingStore(store, _DISK_PATIENCE if location.scheme == "file" else patience or RetryPolicy())


def directory_of(url: str) -> Path | None:
    """The directory that a ``file:`` URL means; nothing of another URL.

    Args:
        url: see the module.

    Raises:
        UsageError: the URL makes no sense.
    """
    location = parse(url)
    return _path(location) if location.scheme == "file" else None


def _directory(location: Location, options: Mapping[str, str]) -> Store:
    require_options(location, options, frozenset())
    return DirectoryStore(_path(location))


def _path(location: Location) -> Path:
    path = unquote("/" + location.path, errors="surrogateescape")
    if location.authority not in {"", "localhost"} or "\0" in path or not location.path:
        raise UsageError(f"{location.url} names no directory of this machine; write file:///the/directory")
    if ".." in Path(path).parts:
        raise UsageError(f"{location.url} goes up with '..'; write where it leads")
    return Path(path)


def _s3(location: Location, options: Mapping[str, str]) -> Store:
    from vaultfs.remotes.s3 import S3Options, S3Store  # noqa: PLC0415  # boto3 takes long to load

    require_options(location, options, frozenset({"endpoint", "region", "profile", "path_style"}))
    prefix = require_prefix_path(location)
    return S3Store(location.authority, prefix, S3Options.parse(options))


def _opendal(location: Location, options: Mapping[str, str]) -> Store:
    from vaultfs.remotes.opendal_services import make_store  # noqa: PLC0415  # opendal takes long to load

    return make_store(location, options)
