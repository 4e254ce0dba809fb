"""URLs of remotes, taken apart and shown, without asking which stores there are.

A URL is kept in ``remotes.json``, which is public, and appears in messages.  So one that holds a secret is refused, and
`redacted` leaves out of any text whatever could be one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from vaultfs.errors import UsageError
from vaultfs.remotes.keys import is_key

LARGEST_URL: Final = 2048

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_AUTHORITY: Final = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


class Location(NamedTuple):
    """A URL, taken apart; it holds no secret.

    Attributes:
        scheme: in lower case.
        authority: host or bucket; may be empty.
        path: without ``/`` at either end.
        url: for messages.
    """

    scheme: str
    authority: str
    path: str
    url: str


def redacted(url: str) -> str:
    """A URL for messages: without password, user, query and fragment, and of printable characters.

    A password may hold any character.  So whatever is left of the last ``@`` may be part of one, and where it cannot be
    told what is what, only the scheme is shown.
    """
    text = "".join(character if " " < character <= "~" else "?" for character in url[:LARGEST_URL])
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, separator, rest = text.partition(":")
    if not separator:
        scheme, rest = "", text
    before, _, rest = rest.rpartition("@")
    if "?" in before or "#" in before:
        return f"{scheme}{separator}…"
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = rest.partition("/")
    if separator == "://" and authority and not _AUTHORITY.fullmatch(authority):
        return f"{scheme}{separator}…{slash}{path}"
    return f"{scheme}{separator}{rest}"


def parse(url: str) -> Location:
    """Take a URL apart and see that it can be stored and shown.

    Raises:
        UsageError: it cannot, or holds a secret.
    """
    shown = redacted(url)
    if len(url) > LARGEST_URL or any(not " " < character <= "~" for character in url):
        message = f"the URL {shown} must be of at most {LARGEST_URL} printable ASCII characters; write others as %XX"
        raise UsageError(message)
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon or not _SCHEME.fullmatch(scheme):
        raise UsageError(f"{shown} is not the URL of a remote; for a directory write file:///the/directory")
    if "@" in rest:
        raise UsageError(
            f"the URL {shown} was given with a user or a password (before '@'); it is stored where all can read it. "
            "Credentials belong into the files or variables of the cloud's own tools, or into what a command prints: "
            "options password_command and access_token_command. Write an '@' in a name as %40",
        )
    if "?" in rest or "#" in rest:
        raise UsageError(f"the URL {shown} was given with a '?' or '#': give options apart, never in the URL")
    authority = ""
    if rest.startswith("//"):
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UsageError(f"{shown} is not a URL: check its host") from error
        authority, rest = parts.netloc, parts.path
        if authority and not _AUTHORITY.fullmatch(authority):
            raise UsageError(f"the URL {shown} has no valid host or bucket")
    return Location(scheme, authority, rest.strip("/"), shown)


def require_options(location: Location, options: Mapping[str, str], known: frozenset[str]) -> None:
    """Check that there are no other options.

    Raises:
        UsageError: there are.
    """
    for name in sorted(options.keys() - known):
        advice = f"it knows {', '.join(sorted(known))}" if known else "it takes none"
        raise UsageError(f"{location.url} takes no option {name[:64]!r}: {advice}. Secrets are never options")


def require_prefix_path(location: Location) -> str:
    """The path of a URL as a prefix of keys: empty, or without ``/`` at its ends.

    Raises:
        UsageError: it is not of the characters that keys may have.
    """
    if location.path and not is_key(location.path):
        message = (
            f"the path in {location.url} may have letters, digits, '-', '_', '.' and '/', and no part with a '.' first"
        )
        raise UsageError(message)
    return location.path


def require_endpoint(endpoint: str) -> None:
    """Check the URL of a server in an option.

    Raises:
        UsageError: it is none, or holds a secret.
    """
    try:
        parts = urlsplit(endpoint)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in {"http", "https"} or "@" in endpoint or "?" in endpoint or "#" in endpoint:
        raise UsageError("the option endpoint must be the URL of a server, such as https://s3.example.org")
