"""The keys that only kept snapshots need: those of a vault whose other copy has rotated its key and thrown them away.

``heads/kept/keys``: older master keys, each epoch u32 LE and 32 bytes, sealed as a record with the record key of the
epoch that was current then, for the purpose ``"kept keys" | vault id``.  They are not in ``vault.json``, because that
is the same on all devices.  The file goes with the last kept snapshot; until then the key that sealed it stays, too.

If it is damaged, only snapshots that need a key in it cannot be opened.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vaultfs.crypto.aead import OVERHEAD_BYTES, open_record, seal_record
from vaultfs.crypto.keys import MASTER_BYTES, Keyring, MasterKey
from vaultfs.errors import IntegrityError
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from vaultfs.ids import KeyEpoch
    from vaultfs.storage.layout import VaultLayout


class KeptKeysDamagedError(IntegrityError):
    """The file is not the one that was written."""


_LARGEST_BYTES: Final = OVERHEAD_BYTES + 1024 * MASTER_BYTES


def _path(layout: VaultLayout) -> Path:
    return layout.kept / "keys"


def with_kept_keys(layout: VaultLayout, keyring: Keyring) -> Keyring:
    """All keys that snapshots may need, kept ones included.

    Args:
        layout: the vault.
        keyring: that of its header.

    Raises:
        KeptKeysDamagedError: the file is damaged.
        StorageError: it cannot be read.
    """
    found = _load(layout, keyring)
    if found is None:
        return keyring
    known = set(keyring.epochs)
    return Keyring(keyring.vault_id, (*keyring.masters, *(each for each in found[1] if each.epoch not in known)))


def sealing_epoch(layout: VaultLayout, keyring: Keyring) -> KeyEpoch | None:
    """The epoch whose key opens the file; None if there is none.

    Raises:
        KeptKeysDamagedError, StorageError: as `with_kept_keys`.
    """
    found = _load(layout, keyring)
    return None if found is None else found[0]


def keep_keys(layout: VaultLayout, keyring: Keyring, in_header: Collection[int]) -> None:
    """Store durably the keys that the vault's header is not going to have.

    Args:
        layout: the vault.
        keyring: all keys there are; the current one is in the header.
        in_header: the epochs of those that stay there.

    Raises:
        KeptKeysDamagedError, NoSpaceError, StorageError: nothing was changed.
    """
    masters = [each for each in with_kept_keys(layout, keyring).masters if each.epoch not in in_header]
    data = b"".join(each.encode() for each in masters)
    atomic_replace(_path(layout), seal_record(keyring.current.record, b"kept keys" + keyring.vault_id, data))


def forget_keys(layout: VaultLayout) -> None:
    """There is no kept snapshot any more.

    Raises:
        StorageError: the file cannot be deleted.
    """
    path = _path(layout)
    if os.path.lexists(path):
        with storage_errors(f"cannot delete {path}"):
            path.unlink()
        fsync_directory(layout.kept)


def _load(layout: VaultLayout, keyring: Keyring) -> tuple[KeyEpoch, list[MasterKey]] | None:
    path = _path(layout)
    if not os.path.lexists(path):
        return None
    with storage_errors(f"cannot read {path}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    for epoch in reversed(keyring.epochs):
        try:
            plain = open_record(keyring.subkeys(epoch).record, b"kept keys" + keyring.vault_id, data)
        except IntegrityError:
            continue
        pieces = (plain[start : start + MASTER_BYTES] for start in range(0, len(plain), MASTER_BYTES))
        return epoch, [MasterKey.decode(piece) for piece in pieces]
    raise KeptKeysDamagedError(
        f"{path} is not the one that was written; restore it, or delete the kept snapshots that need it"
    )
