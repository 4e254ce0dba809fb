"""Whose bytes a peer holds.  Pure.

An object counts for the caller who stored it first; where it is replaced by other bytes, as ``vault.json`` is, for who
did that.  A vault has one writer as a rule, so only what somebody else than its first writer stored is written down, in
a log of 16 bytes for each object: half of the BLAKE3 of the key, less a byte, and the number of the writer.  The sizes
are counted on the disk when the peer starts.  If the log is lost, everything counts for the first writer.

Every object counts in whole blocks of 4 KiB, one at least: that is about what the disk gives for it, and so a quota
bounds the number of files as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import blake3

from vaultfs.ids import PeerId, VaultId

BLOCK_BYTES: Final = 4096

_HASH_BYTES: Final = 15
_RECORD_BYTES: Final = _HASH_BYTES + 1


def charged_bytes(size_bytes: int) -> int:
    """What an object of a length counts for."""
    return max(1, -(-size_bytes // BLOCK_BYTES)) * BLOCK_BYTES


class VaultUsage:
    """The objects of one vault, by number, bytes and writer.  Not thread-safe.

    Writers are numbers: places in the list of the vault's record, 0 the first.

    Args:
        log: what was written of it before; anything.

    Attributes:
        objects: how many there are.
        object_bytes: their lengths added up.
    """

    def __init__(self, log: bytes = b"") -> None:
        self.objects = 0
        self.object_bytes = 0
        self._charged: dict[int, int] = {}
        self._others: dict[bytes, int] = {}
        """Writers of what the first did not store."""
        self._logged: dict[bytes, int] = {}
        for start in range(0, len(log) - _RECORD_BYTES + 1, _RECORD_BYTES):
            record = log[start : start + _RECORD_BYTES]
            self._logged[record[:_HASH_BYTES]] = record[_HASH_BYTES]

    def count(self, key: str, size_bytes: int, writers: int) -> None:
        """Take in an object that was found on the disk.

        Args:
            key: its name.
            size_bytes: its length.
            writers: how many there are; a number beyond is that of the first.
        """
        writer = self._logged.get(_hash(key), 0)
        self.add(key, size_bytes, writer if writer < writers else 0)

    @property
    def log_bytes(self) -> int:
        """How long `log` is."""
        return len(self._others) * _RECORD_BYTES

    def log(self) -> bytes:
        """What is to be in the log, when everything was counted."""
        self._logged.clear()
        return b"".join(key + bytes([writer]) for key, writer in sorted(self._others.items()))

    def add(self, key: str, size_bytes: int, writer: int) -> bytes:
        """Take in an object that was stored.

        Returns:
            What is to be appended to the log; often nothing.
        """
        self.objects += 1
        self.object_bytes += size_bytes
        self._charge(writer, charged_bytes(size_bytes))
        if writer == 0:
            return b""
        self._others[_hash(key)] = writer
        return _hash(key) + bytes([writer])

    def remove(self, key: str, size_bytes: int) -> tuple[int, bytes]:
        """An object is gone.

        Returns:
            Who had stored it, and what is to be appended to the log.
        """
        writer = self._others.pop(_hash(key), 0)
        self.objects = max(0, self.objects - 1)
        self.object_bytes = max(0, self.object_bytes - size_bytes)
        self._charge(writer, -charged_bytes(size_bytes))
        return writer, _hash(key) + bytes(1) if writer else b""

    def writer_of(self, key: str) -> int:
        """Who has stored an object."""
        return self._others.get(_hash(key), 0)

    def charged_to(self, writer: int) -> int:
        """Bytes that count for a writer."""
        return self._charged.get(writer, 0)

    def charged(self) -> int:
        """Bytes that count for all writers."""
        return sum(self._charged.values())

    def _charge(self, writer: int, change_bytes: int) -> None:
        self._charged[writer] = max(0, self._charged.get(writer, 0) + change_bytes)


def _hash(key: str) -> bytes:
    return blake3.blake3(key.encode()).digest(_HASH_BYTES)


@dataclass
class Coming:
    """An object that is coming, or that was interrupted and may go on.

    Attributes:
        vault: which it is for.
        name: of its file.
        caller: whose it is.
        counted_bytes: what it counts for: all of it while it is coming, what is there when it was interrupted.
        awaited_bytes: of that, what is not on the disk yet.
        is_active: whether somebody is sending it.
    """

    vault: VaultId
    name: str
    caller: PeerId
    counted_bytes: int
    awaited_bytes: int
    is_active: bool


class ComingObjects:
    """Everything that is coming or was interrupted, the oldest first.  Not thread-safe."""

    def __init__(self) -> None:
        self._all: dict[tuple[VaultId, str], Coming] = {}

    def get(self, vault: VaultId, name: str) -> Coming | None:
        """One of them."""
        return self._all.get((vault, name))

    def put(self, coming: Coming) -> None:
        """Another one; or one that has begun, or was interrupted: it is the youngest then."""
        self._all.pop((coming.vault, coming.name), None)
        self._all[coming.vault, coming.name] = coming

    def drop(self, coming: Coming) -> None:
        """It is not coming any more."""
        self._all.pop((coming.vault, coming.name), None)

    def active(self, vault: VaultId) -> set[str]:
        """The names of files that somebody is sending."""
        return {coming.name for coming in self._all.values() if coming.is_active and coming.vault == vault}

    def counted_bytes(self, caller: PeerId | None = None) -> int:
        """What they count for; those of one caller, if it is given."""
        return sum(coming.counted_bytes for coming in self._all.values() if caller in {None, coming.caller})

    def awaited_bytes(self) -> int:
        """What is not on the disk yet."""
        return sum(coming.awaited_bytes for coming in self._all.values())

    def interrupted(self, caller: PeerId | None = None) -> Sequence[Coming]:
        """Those that nobody is sending, the oldest first; those of one caller, if it is given."""
        return [coming for coming in self._all.values() if not coming.is_active and caller in {None, coming.caller}]
