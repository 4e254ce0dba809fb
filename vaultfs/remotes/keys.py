"""Which texts are keys of objects.  Whatever becomes part of a path or of a URL is checked here first.

A key is made of parts with ``/`` between them.  No part is empty or begins with a dot, so no key can leave the
directory it is joined to, name a hidden file such as a store's temporary ones, or begin with ``/``.
"""

from __future__ import annotations

import re
from typing import Final

from vaultfs.errors import UsageError
from vaultfs.remotes.store import LARGEST_KEY_BYTES

_PART: Final = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_KEY: Final = re.compile(rf"{_PART}(?:/{_PART})*")


def is_key(text: str) -> bool:
    """Whether a text is a valid key."""
    return len(text) <= LARGEST_KEY_BYTES and _KEY.fullmatch(text) is not None


def require_key(key: str) -> str:
    """Check a key before it is used.

    Returns:
        The key.

    Raises:
        UsageError: it is not valid.
    """
    if not is_key(key):
        raise UsageError(f"not a valid key of an object: {key[:LARGEST_KEY_BYTES]!r}")
    return key


def require_prefix(prefix: str) -> str:
    """Check a prefix before anything is listed: empty, or a key and a ``/``.

    Returns:
        The prefix.

    Raises:
        UsageError: it is neither.
    """
    if prefix and not (prefix.endswith("/") and is_key(prefix[:-1])):
        raise UsageError(f"not a valid prefix of keys: {prefix[:LARGEST_KEY_BYTES]!r}; it must end with '/'")
    return prefix


def is_listed(key: str, prefix: str) -> bool:
    """Whether a name found in a store belongs into the listing of ``prefix``; others than keys never do."""
    return key.startswith(prefix) and is_key(key)
