"""Which of OpenDAL's services are used, with which options, and where their credentials come from.

An option that ends with ``_command`` holds a command that prints a secret.  There is no option for a secret itself.
Access tokens of drives come from such a command, or from a login (`vaultfs.remotes.oauth_logins`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from vaultfs.errors import RemoteRefusedError, UsageError
from vaultfs.remotes.locations import Location, require_endpoint, require_options, require_prefix_path
from vaultfs.remotes.oauth_logins import AccessToken, Logins
from vaultfs.remotes.opendal_store import OpenDalStore
from vaultfs.remotes.secret_commands import run_secret_command
from vaultfs.remotes.store import Store
from vaultfs.remotes.tokens import DEFAULT_ACCOUNT, require_account

_ACCOUNT: Final = "account"
_VALUE: Final = re.compile(r"[!-~]{1,256}")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class _Service:
    """One of OpenDAL's services.

    Attributes:
        scheme: OpenDAL's.
        bucket: what OpenDAL calls the bucket; empty if the URL has none.
        plain: options and OpenDAL's names for them.
        secret: options that hold commands, and OpenDAL's names for what they print.
        variables: environment variables, and OpenDAL's names for what they hold, for what no option gives.
        required: OpenDAL's names of what must be given.
        is_staged, is_walked: see `OpenDalStore`.
        has_login: access tokens may come from a login; the option ``account`` says of which account.
        needs_folder: the URL must name one: what OpenDAL asks of the topmost folder is not answered.
    """

    scheme: str
    bucket: str = ""
    plain: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    is_staged: bool = False
    is_walked: bool = False
    has_login: bool = False
    needs_folder: bool = False


_TOKEN: Final = {"access_token_command": "access_token"}
_WEBDAV: Final = _Service(
    "webdav",
    plain={"username": "username"},
    secret={"password_command": "password", "access_token_command": "token"},
    is_staged=True,
)
_SERVICES: Final = {
    "webdav+https": _WEBDAV,
    "webdav+http": _WEBDAV,
    "gcs": _Service("gcs", bucket="bucket", secret={"access_token_command": "token"}),
    "azblob": _Service(
        "azblob",
        bucket="container",
        plain={"account": "account_name", "endpoint": "endpoint"},
        secret={"account_key_command": "account_key", "sas_token_command": "sas_token"},
        variables={"AZURE_STORAGE_ACCOUNT": "account_name", "AZURE_STORAGE_KEY": "account_key"},
        required=("account_name",),
    ),
    "b2": _Service(
        "b2",
        bucket="bucket",
        plain={"bucket_id": "bucket_id", "key_id": "application_key_id"},
        secret={"application_key_command": "application_key"},
        variables={"B2_APPLICATION_KEY_ID": "application_key_id", "B2_APPLICATION_KEY": "application_key"},
        required=("bucket_id", "application_key_id", "application_key"),
    ),
    "gdrive": _Service("gdrive", secret=_TOKEN, has_login=True, needs_folder=True),
    "dropbox": _Service("dropbox", secret=_TOKEN, has_login=True, is_walked=True),
    "onedrive": _Service("onedrive", secret=_TOKEN, has_login=True, needs_folder=True),
}


def make_store(location: Location, options: Mapping[str, str]) -> Store:
    """The store that a URL means.

    Args:
        location: the URL.
        options: settings and commands.

    Raises:
        UsageError: there is no such kind of remote, or the URL or an option makes no sense.
    """
    service = _SERVICES.get(location.scheme)
    if service is None:
        kinds = ", ".join(sorted({"file", "s3", *_SERVICES}))
        raise UsageError(
            f"{location.url}: this version of vaultfs has no kind of remote {location.scheme!r}; there are {kinds}",
        )
    known = {*service.plain, *service.secret} | ({_ACCOUNT} if service.has_login else set())
    require_options(location, options, frozenset(known))
    settings = _fixed_settings(service, location, options)
    if service.has_login and not any(option in options for option in service.secret):
        return _logged_in_store(service, location, settings, require_account(options.get(_ACCOUNT, DEFAULT_ACCOUNT)))
    if service.has_login and _ACCOUNT in options:
        raise UsageError(f"{location.url}: the option {_ACCOUNT} means a login; it and a command exclude each other")

    def configure() -> dict[str, str]:
        secrets = {
            name: run_secret_command(option, options[option])
            for option, name in service.secret.items()
            if option in options
        }
        found = {name: os.environ[variable] for variable, name in service.variables.items() if os.environ.get(variable)}
        complete = found | settings | secrets
        for name in service.required:
            if name not in complete:
                raise _lacking(service, location, name)
        if service.scheme == "azblob" and "endpoint" not in complete:
            complete["endpoint"] = f"https://{complete['account_name']}.blob.core.windows.net"
        return complete

    is_renewable = any(option in options for option in service.secret)
    return OpenDalStore(
        location.url,
        configure,
        is_renewable=is_renewable,
        is_staged=service.is_staged,
        is_walked=service.is_walked,
    )


def _logged_in_store(service: _Service, location: Location, settings: Mapping[str, str], account: str) -> Store:
    """A drive with the access tokens of a login.  OpenDAL cannot renew them, so it is made anew for each."""
    logins = Logins()
    current: AccessToken | None = None

    def is_ending() -> bool:
        return current is not None and time.time() >= current.renew_at_s

    def has_better() -> bool:
        nonlocal current
        refused = current
        current = logins.access_token(service.scheme, account, refused=None if refused is None else refused.text)
        return current != refused

    def configure() -> dict[str, str]:
        nonlocal current
        if current is None or is_ending():
            current = logins.access_token(service.scheme, account)
        return {**settings, "access_token": current.text}

    return OpenDalStore(
        location.url, configure, has_better=has_better, is_ending=is_ending, is_walked=service.is_walked
    )


def _fixed_settings(service: _Service, location: Location, options: Mapping[str, str]) -> dict[str, str]:
    """What is known before any secret is asked for.

    Raises:
        UsageError: the URL or an option makes no sense.
    """
    settings = {"scheme": service.scheme}
    for option, name in service.plain.items():
        if option in options:
            if not _VALUE.fullmatch(options[option]):
                raise UsageError(f"the option {option} must be of at most 256 printable characters, without spaces")
            settings[name] = options[option]
    if service.bucket:
        if not location.authority or ":" in location.authority:
            raise UsageError(f"{location.url} names no bucket; write {location.scheme}://bucket/prefix")
        settings[service.bucket] = location.authority
        settings["root"] = "/" + require_prefix_path(location)
    else:
        settings["root"] = _unquoted_root(location)
    if service.scheme == "webdav":
        if not location.authority:
            raise UsageError(f"{location.url} names no server; write {location.scheme}://host/path")
        settings["endpoint"] = f"{location.scheme.removeprefix('webdav+')}://{location.authority}"
    elif service.needs_folder and not settings["root"].strip("/"):
        raise UsageError(f"{location.url} names no folder; write {location.scheme}:folder")
    elif not service.bucket and location.authority:
        raise UsageError(f"{location.url} must not name a server; write {location.scheme}:folder")
    if "endpoint" in settings:
        require_endpoint(settings["endpoint"])
        parts = urlsplit(settings["endpoint"])
        has_secret = "username" in options or any(option in options for option in service.secret)
        if has_secret and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            message = f"{location.url}: credentials would go over the network in the clear; use https"
            raise UsageError(message)
    return settings


def _unquoted_root(location: Location) -> str:
    path = unquote(location.path, errors="replace")
    parts = PurePosixPath(path).parts
    if ".." in parts or any(not character.isprintable() for character in path):
        raise UsageError(f"the path in {location.url} has '..' or unprintable characters")
    return "/" + path


def _lacking(service: _Service, location: Location, name: str) -> RemoteRefusedError:
    ways = [f"the option {option}" for option, meant in {**service.plain, **service.secret}.items() if meant == name]
    ways += [f"the variable {variable}" for variable, meant in service.variables.items() if meant == name]
    message = f"{location.url} needs {' or '.join(ways)}"
    if name in service.secret.values():
        message += ". A command counts only on the machine where it was given: add the remote again here"
    return RemoteRefusedError(message)
