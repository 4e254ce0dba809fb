"""Reads what a peer holds, a step at a time, so that damage is noticed before it is needed.

Objects are taken in the order of vaults and keys, round and round, so the next is always that which was read longest
ago. Where a round stands is kept in a small file; if that is lost a round begins anew.  A damaged object loses its
name: it is missing from then on, and whoever keeps the vault's replicas repairs it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Annotated, Final, NamedTuple

import msgspec

from vaultfs.ids import VaultId
from vaultfs.mesh import replica_files
from vaultfs.mesh.replica_keys import ObjectKey
from vaultfs.mesh.replica_names import ObjectNames, mark_of
from vaultfs.mesh.replica_reading import hash_of
from vaultfs.mesh.replica_vault import HeldVault
from vaultfs.remotes.store import LARGEST_KEY_BYTES

_STATE: Final = [".scrub.json"]
_LARGEST_STATE_BYTES: Final = 4096


class _Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """After which object it goes on."""

    vault: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    key: Annotated[str, msgspec.Meta(max_length=LARGEST_KEY_BYTES)]


class Scrubbed(NamedTuple):
    """What a step did.

    Attributes:
        checked_bytes: that were read.
        checked_objects: that were read.
        damaged: vault and key, with ``/`` between them, of those that lost their names.
        is_round_complete: everything has been read once; the next step begins anew.
    """

    checked_bytes: int
    checked_objects: int
    damaged: tuple[str, ...]
    is_round_complete: bool


def scrub_step(root: int, names: ObjectNames, vaults: Sequence[VaultId], budget_bytes: int) -> Scrubbed:
    """Read the next objects.

    Args:
        root: the peer's directory, open.
        names: takes names away.
        vaults: in ascending order.
        budget_bytes: it ends after the object with which so many were read; one at least is read.

    Raises:
        OSError: the disk failed, other than by not giving back what an object holds.
    """
    checked_bytes = checked_objects = 0
    damaged: list[str] = []
    is_round_complete = True
    place = None
    with closing(_objects(root, vaults, _load(root))) as objects:
        for vault, wanted in objects:
            if checked_objects and checked_bytes >= budget_bytes:
                is_round_complete = False
                break
            path = [vault.hex(), *wanted.parts]
            place = _Place(vault.hex(), wanted.key)
            descriptor = replica_files.open_file(root, path)
            if descriptor < 0:
                continue  # it was deleted meanwhile
            try:
                mark = mark_of(os.fstat(descriptor))
                digest, size_bytes = hash_of(descriptor)
            finally:
                os.close(descriptor)
            checked_objects += 1
            checked_bytes += size_bytes
            if digest != wanted.digest and names.set_aside(vault, wanted, mark):
                damaged.append("/".join(path))
    if is_round_complete:
        replica_files.remove_file(root, _STATE)
    elif place is not None:
        replica_files.replace_file(root, _STATE, msgspec.json.encode(place))
    return Scrubbed(checked_bytes, checked_objects, tuple(damaged), is_round_complete)


def _objects(
    root: int, vaults: Sequence[VaultId], place: _Place | None
) -> Generator[tuple[VaultId, ObjectKey], None, None]:
    """What has a hash in its key, after a place."""
    for vault in vaults:
        if place is None or vault.hex() >= place.vault:
            after = place.key if place is not None and vault.hex() == place.vault else ""
            with closing(HeldVault(root, vault).objects(after=after)) as found:
                for wanted, _ in found:
                    if wanted.digest is not None:
                        yield vault, wanted


def _load(root: int) -> _Place | None:
    data = replica_files.read_file(root, _STATE, _LARGEST_STATE_BYTES)
    try:
        return msgspec.json.decode(data, type=_Place) if data is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # a round begins anew
