"""Finds out by trying what a store can do, because some say yes to what they ignore.

What is written lies under ``probe/``, in names drawn at random, and is deleted.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from vaultfs.errors import (
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
)
from vaultfs.remotes.store import BytesSource, Features, Store

PREFIX: Final = "probe/"
_BYTES: Final = 1000
_RACERS: Final = 4
_RACES: Final = 2


def probe(store: Store) -> Features:
    """Try a store.

    Args:
        store: is written to, so it must be one that the person chose.

    Raises:
        RemoteError: it cannot be written or read, or returns other bytes than were stored.
    """
    keys: list[str] = []
    try:
        return _probe(store, keys)
    finally:
        for key in keys:
            # Some backups may be added to, but not deleted from, on purpose; and the first error is the one to report.
            with suppress(RemoteError):
                store.delete(key)


def _probe(store: Store, keys: list[str]) -> Features:
    key = _new_key(keys)
    first, second = secrets.token_bytes(_BYTES), secrets.token_bytes(_BYTES)
    store.put(key, BytesSource(first), if_absent=True)
    if _creates(store, key, second):
        is_conditional = False
        expected = second
    else:
        is_conditional = all(_has_one_winner(store, _new_key(keys)) for _ in range(_RACES))
        expected = first
    _require_same(store, key, expected)
    return Features(
        conditional_create=is_conditional,
        range_reads=_reads_range(store, key, expected),
        lists_at_once=any(info.key == key and info.size_bytes == _BYTES for info in store.list(PREFIX)),
    )


def _new_key(keys: list[str]) -> str:
    keys.append(PREFIX + secrets.token_hex(16))
    return keys[-1]


def _creates(store: Store, key: str, data: bytes) -> bool:
    try:
        store.put(key, BytesSource(data), if_absent=True)
    except ObjectExistsError:
        return False
    return True


def _has_one_winner(store: Store, key: str) -> bool:
    """Let several create one object at once: one must be told that it did, and what is stored must be its bytes."""
    bodies = [secrets.token_bytes(_BYTES) for _ in range(_RACERS)]
    with ThreadPoolExecutor(_RACERS) as pool:
        outcomes = list(pool.map(lambda body: _creates(store, key, body), bodies))
    winners = [body for body, is_created in zip(bodies, outcomes, strict=True) if is_created]
    return len(winners) == 1 and b"".join(store.get(key)) == winners[0]


def _require_same(store: Store, key: str, expected: bytes) -> None:
    size_bytes = store.size_bytes(key)
    found = b"".join(store.get(key))
    if found != expected or size_bytes != len(expected):
        message = f"{store.name} returned other bytes than were stored a moment ago; it cannot be used as a remote"
        raise RemoteError(message)


def _reads_range(store: Store, key: str, expected: bytes) -> bool:
    try:
        return b"".join(store.get(key, offset=100, length=50)) == expected[100:150]
    except (RemoteUnreachableError, RemoteRefusedError, ObjectMissingError):
        raise
    except RemoteError:
        return False
