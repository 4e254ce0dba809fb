"""Reading a remote that is not believed: every body has a limit known beforehand, and every content a hash or a bound.

Also bounded is what a listing may hold: `MOST_OBJECTS` are two million segments, 128 TiB; their names take some 500 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from vaultfs.errors import IntegrityError, NotAVaultError, ObjectMissingError, RemoteError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import ObjectInfo, Store
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, Manifest, manifest_hash
from vaultfs.sync.public_header import LARGEST_HEADER_BYTES, PublicHeader
from vaultfs.sync.remote_layout import (
    BRANCHES_PREFIX,
    CONDEMNED_PREFIX,
    HEADER_KEY,
    HEADS_PREFIX,
    SEGMENTS_PREFIX,
    SPARED_PREFIX,
    SWEEPING_PREFIX,
    SWEPT_PREFIX,
    RemoteHead,
    head_key,
    parse_head,
    parse_note,
    parse_segment,
)

MOST_OBJECTS: Final = 1 << 21
MOST_NOTES: Final = 10_000
"""Of one kind.  There are one or two for each prune, until the next; each may cost a request and memory to read."""

Tick = Callable[[], None]
"""Called often meanwhile; may raise, which ends what is under way."""


def _nothing() -> None:
    """For callers that cannot be stopped."""


@contextmanager
def body(store: Store, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
    """The pieces of an object; leaving the block ends the request, however much is still to come.

    Raises:
        RemoteError: as `Store.get`.
    """
    pieces = store.get(key, offset=offset, length=length)
    try:
        yield pieces
    finally:
        close = getattr(pieces, "close", None)  # a generator; left alone it would keep its connection for a while
        if close is not None:
            close()


def read_whole(store: Store, key: str, limit: int, tick: Tick = _nothing) -> bytes:
    """An object that must be small.

    Args:
        store: the remote.
        key: its name.
        limit: most bytes that it may have; not one piece more is read.
        tick: called for each piece.

    Raises:
        IntegrityError: it is longer.
        ObjectMissingError, RemoteError: as `Store.get`.
    """
    found, count = [], 0
    with body(store, key) as pieces:
        for piece in pieces:
            tick()
            count += len(piece)
            if count > limit:
                raise IntegrityError(f"{key} on {store.name} has more than the {limit} bytes it may have")
            found.append(piece)
    return b"".join(found)


def read_remote_header(store: Store) -> PublicHeader | None:
    """The ``vault.json`` of a remote; None if there is none.

    Raises:
        IntegrityError: it is no header, or damaged.
        FormatTooNewError: a newer vaultfs wrote it.
        RemoteError: the remote failed.
    """
    try:
        data = read_whole(store, HEADER_KEY, LARGEST_HEADER_BYTES)
    except ObjectMissingError:
        return None
    try:
        return PublicHeader.decode(data, f"{HEADER_KEY} on {store.name}")
    except NotAVaultError as error:
        raise IntegrityError(str(error)) from error


def read_remote_manifest(
    store: Store, head: RemoteHead, vault_id: VaultId | None, tick: Tick = _nothing
) -> tuple[bytes, Manifest]:
    """A manifest, checked in every respect but its signature.

    Args:
        store: the remote.
        head: its name there, with which its content must agree.
        vault_id: whose it must be; None: of any vault.
        tick: called for each piece; may raise, to end it.

    Returns:
        Its bytes, and what its public part says.

    Raises:
        IntegrityError: it is not what its name says.
        FormatTooNewError: a newer vaultfs wrote it.
        ObjectMissingError, RemoteError: as `Store.get`.
    """
    key = head_key(head)
    what = f"the manifest of snapshot {head.seq} on {store.name}, {key},"
    data = read_whole(store, key, MAX_MANIFEST_BYTES, tick)
    if manifest_hash(data) != head.hash:
        raise IntegrityError(f"{what} is damaged or was replaced: its content is not that of its name")
    manifest, _ = Manifest.decode(data)
    if vault_id is not None and manifest.vault_id != vault_id:
        raise IntegrityError(f"{what} is of another vault")
    if (manifest.seq, manifest.device.hex()) != (head.seq, head.device):
        raise IntegrityError(f"{what} says that it is another snapshot's or device's; somebody put it there")
    return data, manifest


def list_bounded(store: Store, prefix: str, tick: Tick = _nothing) -> Iterator[ObjectInfo]:
    """A listing, which ends.

    Args:
        store: the remote.
        prefix: of the keys.
        tick: called for each object; may raise, to end it.

    Raises:
        RemoteError: as `Store.list`, or there is no end of it.
    """
    for count, info in enumerate(store.list(prefix)):
        if count >= MOST_OBJECTS:
            raise RemoteError(
                f"{store.name} lists more than {MOST_OBJECTS} objects in {prefix}; is it the right place?"
            )
        tick()
        yield info


@dataclass
class HeadListing:
    """What lies below ``heads/``, by names; none of it has been looked into.

    Attributes:
        heads: snapshots, and the sizes of their manifests.
        condemned: hashes of the records of prunes.
        swept: hashes of those whose deletion has begun, and the token of the newest deletion.
        sweeping: tokens of the claims of prunes that are deleting.
        spared: tokens of what syncs rely on.
        branches: tokens of accepted branches.
    """

    heads: dict[RemoteHead, int] = field(default_factory=dict)
    condemned: set[str] = field(default_factory=set)
    swept: set[str] = field(default_factory=set)
    sweeping: set[str] = field(default_factory=set)
    spared: set[str] = field(default_factory=set)
    branches: set[str] = field(default_factory=set)


def list_head_objects(store: Store, tick: Tick = _nothing) -> HeadListing:
    """The snapshots that a remote lists, and the notes beside them; other names are ignored.

    Raises:
        RemoteError: as `list_bounded`, or there are too many notes.
    """
    found = HeadListing()
    notes = {
        CONDEMNED_PREFIX: found.condemned,
        SWEPT_PREFIX: found.swept,
        SWEEPING_PREFIX: found.sweeping,
        SPARED_PREFIX: found.spared,
        BRANCHES_PREFIX: found.branches,
    }
    for info in list_bounded(store, HEADS_PREFIX, tick):
        head = parse_head(info.key)
        if head is not None:
            found.heads[head] = info.size_bytes
            continue
        for prefix, names in notes.items():
            name = parse_note(info.key, prefix)
            if name is not None:
                names.add(name)
                if len(names) > MOST_NOTES:
                    raise RemoteError(
                        f"{store.name} lists more than {MOST_NOTES} notes in {prefix}, which no prunes and syncs leave "
                        "behind; something else wrote them"
                    )
    return found


def list_heads(store: Store, tick: Tick = _nothing) -> dict[RemoteHead, int]:
    """The snapshots that a remote lists, and the sizes of their manifests.

    Raises:
        RemoteError: as `list_bounded`.
    """
    return list_head_objects(store, tick).heads


def list_segments(store: Store, tick: Tick = _nothing) -> dict[SegmentName, int]:
    """The segments that a remote lists, and their sizes; other names are ignored.

    Raises:
        RemoteError: as `list_bounded`.
    """
    found = {}
    for info in list_bounded(store, SEGMENTS_PREFIX, tick):
        name = parse_segment(info.key)
        if name is not None:
            found[name] = info.size_bytes
    return found
