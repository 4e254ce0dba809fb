"""What OpenDAL means by its errors, in vaultfs's own.

Its texts begin with a kind and whether it may pass, and may hold tokens further on.  So they are searched, never shown.
"""

from __future__ import annotations

import re
from typing import Final

from vaultfs.errors import (
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
)

_HEAD: Final = re.compile(r"([A-Za-z]{1,40}) \((temporary|permanent|persistent)\)")
_STATUS: Final = re.compile(r"\bstatus: ([1-5][0-9]{2})\b")
_FULL: Final = re.compile(
    r"insufficient.?(?:space|storage)|storage.?quota.{0,20}exceeded|exceeded.{0,20}storage.?quota|quota.?limit.?reached"
    r"|storage_cap_exceeded|os error (?:28|122)",
    re.IGNORECASE,
)
_BUSY: Final = re.compile(r"rate.?limit.?exceeded|too.?many.?(?:requests|write)|backend.?error", re.IGNORECASE)
_NO_CREDENTIALS: Final = re.compile(
    r"(?:no|missing|load).{0,40}credential|credential.{0,40}(?:not|missing)", re.IGNORECASE
)
_NO_FOLDER: Final = re.compile(r"os error 20\b|\bpath/not_folder")
"""A file stands where the key has a folder."""
_LARGEST_TEXT: Final = 1 << 16


def caught_errors() -> tuple[type[Exception], ...]:
    """What OpenDAL's calls raise: its own errors, and `OSError` from its files."""
    from opendal import exceptions  # noqa: PLC0415  # takes long to load

    own = [value for value in vars(exceptions).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, OSError, ValueError)


def translated(error: Exception, what: str, store: str) -> RemoteError | NoSpaceError:
    """The error of vaultfs for one of `caught_errors`; the caller raises it without a cause.

    Args:
        error: what was raised.
        what: the request, for the message.
        store: the remote, for the message.
    """
    text = str(error)[:_LARGEST_TEXT]
    head = _HEAD.match(text)
    kind = head[1] if head is not None else type(error).__name__
    may_pass = head is not None and head[2] in {"temporary", "persistent"}
    match = _STATUS.search(text)
    status = int(match[1]) if match is not None else 0
    shown = f"{what} failed: {kind}" + (f" ({status})" if status else "")
    if status == 507 or _FULL.search(text):
        return NoSpaceError(f"{shown}: {store} is full; make room there, or raise the quota")
    if kind == "NotFound" or _NO_FOLDER.search(text):
        return ObjectMissingError(f"{what} failed: there is no such object")
    if kind in {"AlreadyExists", "ConditionNotMatch"}:
        return ObjectExistsError(f"{what} refused: it is there already")
    if kind == "RateLimited" or status == 429 or _BUSY.search(text):
        return RemoteUnreachableError(f"{shown}: the server wants fewer requests; try again later")
    if kind == "PermissionDenied" or status in {401, 403}:
        return RemoteRefusedError(f"{shown}: the credentials are not accepted, or may not do this; get new ones")
    if "certificate" in text.lower():
        return RemoteRefusedError(f"{shown}: the server's certificate is not trusted")
    if may_pass or status >= 500:
        return RemoteUnreachableError(f"{shown}: the server cannot be reached, or is broken; try again later")
    if kind == "ConfigInvalid" or _NO_CREDENTIALS.search(text):
        return RemoteRefusedError(f"{shown}: credentials or options are lacking, or make no sense")
    return RemoteError(f"{shown}; if the options are right, report this to whoever runs the server")
