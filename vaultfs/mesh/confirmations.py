"""Devices of vaults that a person at a peer has confirmed, on their way to the server; ``confirmed.json``.

docs/mesh-protocol.md, section 8: a device that turns up later may order deletions after seven days, or when a person
has confirmed it.  The running server has the store for itself, so the command writes the device down here, and the
server takes it from here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from vaultfs.errors import UsageError
from vaultfs.ids import VaultId
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.kept_file import FORMAT_VERSION, KeptFile

MOST_WAITING: Final = 256

_LARGEST_FILE_BYTES: Final = 256 << 10


class _Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    vault_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    device: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _StoredFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    devices: Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MOST_WAITING)]


class Confirmed(NamedTuple):
    """What a person has confirmed.

    Attributes:
        vault: 16 bytes.
        device: its public key, 32 bytes.
    """

    vault: VaultId
    device: bytes


class Confirmations:
    """The file.  Methods block; threads and processes may share it.

    Args:
        path: of ``confirmed.json``.
    """

    def __init__(self, path: Path) -> None:
        self._file: Final = KeptFile(
            path,
            _StoredFile,
            _LARGEST_FILE_BYTES,
            title="the list of confirmed devices",
            advice="Move it away, and confirm again what the server has not taken",
        )

    def is_there(self) -> bool:
        """Whether there is a file at all; for who looks often.

        Raises:
            StorageError: it cannot be looked at.
        """
        with storage_errors(f"cannot look at {self._file.path}"):
            return os.path.lexists(self._file.path)

    def add(self, confirmed: Confirmed) -> None:
        """Write a device down; durable on return.

        Raises:
            UsageError: too many wait for the server.
            VaultError: the file is damaged, or cannot be written.
        """
        with self._file.locked():
            waiting = self.waiting()
            if confirmed in waiting:
                return
            if len(waiting) >= MOST_WAITING:
                raise UsageError(f"{MOST_WAITING} devices wait for 'vaultfs peer serve' already; start it first")
            self._save([*waiting, confirmed])

    def waiting(self) -> list[Confirmed]:
        """What the server has not taken yet, in the order of confirming.

        Raises:
            VaultError: the file is damaged, or cannot be read.
        """
        content = self._file.load()
        entries = () if content is None else content.devices
        return [Confirmed(VaultId(bytes.fromhex(each.vault_id)), bytes.fromhex(each.device)) for each in entries]

    def remove(self, taken: Confirmed) -> None:
        """Strike out what the server has taken.  The last one takes the file with it.

        Raises:
            VaultError: the file is damaged, or cannot be written.
        """
        with self._file.locked():
            left = [each for each in self.waiting() if each != taken]
            if left:
                self._save(left)
                return
            with storage_errors(f"cannot remove {self._file.path}"):
                self._file.path.unlink(missing_ok=True)

    def _save(self, confirmed: list[Confirmed]) -> None:
        entries = tuple(_Entry(each.vault.hex(), each.device.hex()) for each in confirmed)
        self._file.save(_StoredFile(FORMAT_VERSION, entries))
