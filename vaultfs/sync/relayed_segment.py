"""A segment that is not on this disk, on its way from a remote that has it to one that lacks it.

A clone that is not filled can be copied to a second remote so.  The segment goes through a file without a name in the
vault's directory, because a store may read what it sends several times, to sign it and to try again; a remote that has
it should not have to send it as often.  Its hash is checked when it has come, and again while it is sent.  Nothing of
it is left when this ends, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import blake3

from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.store import Store
from vaultfs.storage.durable import storage_errors, write_all
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES, segment_key
from vaultfs.sync.remote_objects import body
from vaultfs.sync.sealed_source import SegmentSource, source_of


@contextmanager
def relayed_source(
    layout: VaultLayout,
    holders: Sequence[Store],
    name: SegmentName,
    size: int,
    check: Callable[[], None],
) -> Iterator[SegmentSource]:
    """A segment from the first of some remotes that has it, for as long as the context lasts.

    Args:
        layout: the vault; its disk takes the segment meanwhile.
        holders: remotes that may have it; at least one.
        name: the segment's.
        size: its bytes, as a manifest says.
        check: called before each piece; may raise, to end it.

    Raises:
        IntegrityError: the segment could not be one, or what all remotes have is not it.
        NoSpaceError, StorageError: the disk is full, or failed.
        VaultError: what the first remote said that could not be asked, or else that it has no such segment.
    """
    if size > LARGEST_SEGMENT_BYTES:
        raise IntegrityError(f"the segment {name} would have {size} bytes, which no segment has; run vaultfs fsck")
    with storage_errors(f"cannot make a file in {layout.root}"):
        file = tempfile.TemporaryFile(dir=layout.root)  # noqa: SIM115  # closed below
    with file:
        failure: VaultError | None = None
        for store in holders:
            try:
                _receive(file.fileno(), store, name, size, check)
            except (ObjectMissingError, IntegrityError) as error:
                failure = failure or error
            except RemoteError as error:
                if failure is None or isinstance(failure, ObjectMissingError | IntegrityError):
                    failure = error
            else:
                break
        else:
            assert failure is not None, "there is at least one"
            raise failure
        yield source_of(file.fileno(), name, size, check)


def _receive(descriptor: int, store: Store, name: SegmentName, size: int, check: Callable[[], None]) -> None:
    """Have the whole segment in a file.

    Raises:
        IntegrityError: the remote has something else.
        RemoteError: as `Store.get`.
    """
    key = segment_key(name)
    hasher, came = blake3.blake3(), 0
    with storage_errors(f"cannot keep the segment {name} on its way"):
        os.lseek(descriptor, 0, os.SEEK_SET)
    with body(store, key) as pieces:
        for piece in pieces:
            check()
            came += len(piece)
            if came > size:
                break
            hasher.update(piece)
            with storage_errors(f"cannot keep the segment {name} on its way"):
                write_all(descriptor, piece)
    if came != size or hasher.hexdigest() != name:
        raise IntegrityError(f"{key} on {store.name} is damaged or was replaced: its content is not that of its name")
