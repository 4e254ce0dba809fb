"""What a peer's disk holds for whom, what is coming, and whether there is room for more.

Room is what the quotas and the disk have left.  An object that is coming counts in full from its beginning, so that
many at once stay within.  What was interrupted counts for what is there, and gives way, the oldest first, when its
caller has no other room within the quota, or the disk has none.
"""

from __future__ import annotations

import os
import threading
from typing import Final, NamedTuple

from vaultfs.errors import NoSpaceError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import replica_files
from vaultfs.mesh.partial_uploads import parse_partial_name, partial_name, single_name
from vaultfs.mesh.replica_files import disk_errors
from vaultfs.mesh.replica_usage import Coming, ComingObjects, charged_bytes
from vaultfs.mesh.replica_vault import HeldVault, parse_vault_directory

UNBOUNDED: Final = (1 << 63) - 1
MOST_VAULTS: Final = 1024
"""Each takes memory and directories, and who may store in any vault can invent names of vaults."""
MOST_BEGUN_BY_ONE: Final = 128
"""Vaults in which one caller was the first to store: it cannot take the places of all others, which stay taken."""
MOST_INTERRUPTED: Final = 256
"""Of one caller; older ones are removed."""

_LEAST_RESERVE_BYTES: Final = 64 << 20
_MOST_RESERVE_BYTES: Final = 1 << 30


class Room(NamedTuple):
    """How much room there is, as a `vaultfs.mesh.messages.State` says it; `UNBOUNDED` where there is no quota.

    Attributes:
        quota_bytes: bounds what the caller may store.
        used_bytes: of that, in blocks of 4 KiB for each object, with what is coming.
        free_bytes: can be stored now, as quotas and disk are.
        objects: of the vault.
        vault_bytes: their lengths added up.
    """

    quota_bytes: int
    used_bytes: int
    free_bytes: int
    objects: int
    vault_bytes: int


class _Lack(NamedTuple):
    """Why there is no room."""

    reason: str
    missing_bytes: int
    caller: PeerId | None
    """Whose interrupted objects would make room; None: those of all."""


class Ledger:
    """Thread-safe.

    Args:
        root: the peer's directory, open; stays its owner's.
        quota_bytes: of all callers together; None: as much as the disk has.
        reserve_bytes: of the disk, stays free; None: a hundredth, but 64 MiB at least and 1 GiB at most.

    Attributes:
        lock: around the vaults and all that is counted; may be taken by one thread again; no other lock is taken while
            it is held.
        durable: directories below the root whose names are known to be durable; whoever makes some has the lock.
    """

    def __init__(self, root: int, quota_bytes: int | None, reserve_bytes: int | None) -> None:
        self.lock: Final = threading.RLock()
        self.durable: Final[set[tuple[str, ...]]] = set()
        self._root: Final = root
        self._quota_bytes: Final = UNBOUNDED if quota_bytes is None else quota_bytes
        self._reserve_bytes: Final = reserve_bytes
        self._vaults: Final[dict[VaultId, HeldVault]] = {}
        self._coming: Final = ComingObjects()

    def load(self, now_ns: int) -> list[str]:
        """Count what is there.

        Args:
            now_ns: since 1970, by this machine's clock.

        Returns:
            What was found wrong, for people.

        Raises:
            FormatTooNewError: a newer vaultfs has been there.
            RemoteError, NoSpaceError: the disk failed.
        """
        warnings: list[str] = []
        with self.lock, disk_errors("read what it holds"):
            with os.scandir(self._root) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            for name in names:
                if (vault := parse_vault_directory(name)) is not None:
                    held = self._vaults[vault] = HeldVault(self._root, vault)
                    warnings += held.load(now_ns)
                    for coming in held.interrupted(now_ns):
                        self._coming.put(coming)
        return warnings

    def vaults(self) -> list[VaultId]:
        """The vaults of which something was stored, in ascending order."""
        with self.lock:
            return sorted(self._vaults)

    def existing(self, vault: VaultId) -> HeldVault | None:
        """A vault of which something was stored."""
        with self.lock:
            return self._vaults.get(vault)

    def held(self, vault: VaultId, now_ns: int) -> HeldVault:
        """A vault, made if nothing was stored of it before.

        Args:
            vault: its id.
            now_ns: since 1970, by this machine's clock.

        Raises:
            NoSpaceError: there are too many.
            OSError, RemoteError: the disk failed.
        """
        with self.lock:
            held = self._vaults.get(vault)
            if held is None:
                if len(self._vaults) >= MOST_VAULTS:
                    raise NoSpaceError(f"this peer holds {MOST_VAULTS} vaults, as many as it may")
                held = HeldVault(self._root, vault)
                held.make(self.durable)
                held.load(now_ns)  # somebody may have copied it here by hand
                self._vaults[vault] = held
            return held

    def reserve(
        self,
        caller: PeerId,
        vault: VaultId,
        digest: bytes,
        size_bytes: int,
        quota_bytes: int | None,
        now_ns: int,
        *,
        beyond_bytes: int = 0,
    ) -> tuple[Coming, int]:
        """Make room for an object, and open the file that takes its bytes.

        Args:
            caller: who sends it.
            vault: its id.
            digest: of the object, 32 bytes.
            size_bytes: its length.
            quota_bytes: of the caller; None: there is none.
            now_ns: since 1970, by this machine's clock.
            beyond_bytes: quotas may be exceeded by so much for this object.

        Returns:
            What it counts as, and the file, which the caller closes before it calls `settle`.

        Raises:
            NoSpaceError: there is no room.
            RemoteRefusedError: too many callers store in this vault.
            OSError, RemoteError: the disk failed.
        """
        with self.lock:
            name = partial_name(digest, caller)
            before = self._coming.get(vault, name)
            if before is not None and before.is_active:
                name, before = single_name(digest, caller), None
            counted_bytes = charged_bytes(size_bytes)
            more_bytes = counted_bytes - (before.counted_bytes if before is not None else 0)
            self._make_room(caller, more_bytes, max(0, more_bytes), quota_bytes, before, beyond_bytes)
            self._require_few_vaults(caller, vault)
            held = self.held(vault, now_ns)
            held.make(self.durable)
            held.add_writer(caller)
            descriptor = -1
            if before is not None:
                descriptor = replica_files.resume_file(self._root, held.partial_path(name))
            if descriptor < 0:
                try:
                    descriptor = replica_files.create_file(self._root, held.partial_path(name))
                except FileExistsError:  # nothing that this peer counts: somebody laid it there
                    name = single_name(digest, caller)
                    descriptor = replica_files.create_file(self._root, held.partial_path(name))
            if before is not None:
                self._coming.drop(before)
            coming = Coming(vault, name, caller, counted_bytes, size_bytes, is_active=True)
            self._coming.put(coming)
            return coming, descriptor

    def has_come(self, coming: Coming) -> None:
        """An object has got its name: its file counts as that."""
        with self.lock:
            self._coming.drop(coming)

    def settle(self, coming: Coming, *, keep: bool) -> None:
        """Nobody sends an object any more: it has got its name, was interrupted, or is given up.

        Args:
            coming: what it counted as; its file is closed.
            keep: what came may be resumed.
        """
        with self.lock:
            if self._coming.get(coming.vault, coming.name) is not coming:
                return  # it has come; a file of that name is another transfer's
            coming.is_active = False
            coming.awaited_bytes = 0
            try:
                size_bytes = replica_files.size_bytes(self._root, self._path(coming))
                if size_bytes is None:
                    self._coming.drop(coming)
                elif keep and parse_partial_name(coming.name) is not None:
                    coming.counted_bytes = charged_bytes(size_bytes)
                    self._coming.put(coming)
                    for oldest in self._coming.interrupted(coming.caller)[:-MOST_INTERRUPTED]:
                        self._discard(oldest)
                else:
                    self._discard(coming)
            except (
                OSError
            ):  # it goes on to count as interrupted, and is removed when there is need of room, or at the end
                return

    def remove_old(self, now_ns: int) -> int:
        """Remove what was interrupted long ago, and objects that were found damaged long ago.

        Args:
            now_ns: since 1970, by this machine's clock.

        Returns:
            Bytes that do not count any more.

        Raises:
            RemoteError: the disk failed.
        """
        with self.lock, disk_errors("remove what was interrupted"):
            before = self._coming.counted_bytes()
            for held in self._vaults.values():
                held.interrupted(now_ns, self._coming.active(held.vault))
                held.remove_old_damaged(now_ns)
            for coming in self._coming.interrupted():
                if replica_files.size_bytes(self._root, self._path(coming)) is None:
                    self._coming.drop(coming)
            return before - self._coming.counted_bytes()

    def used_bytes(self, caller: PeerId | None = None) -> int:
        """What counts for a caller, in all vaults, with what is coming; for all callers if none is given."""
        with self.lock:
            return self._coming.counted_bytes(caller) + sum(
                held.usage.charged() if caller is None else held.charged_to(caller) for held in self._vaults.values()
            )

    def room(self, caller: PeerId, vault: VaultId, quota_bytes: int | None) -> Room:
        """How much room there is.

        Args:
            caller: for whom.
            vault: of which objects are counted.
            quota_bytes: of the caller; None: there is none.

        Raises:
            RemoteError: the disk failed.
        """
        with self.lock, disk_errors("look at its disk"):
            bound_bytes = min(self._quota_bytes, UNBOUNDED if quota_bytes is None else quota_bytes)
            used_bytes = self.used_bytes(caller)
            left = (bound_bytes - used_bytes, self._quota_bytes - self.used_bytes(), self._disk_bytes())
            held = self._vaults.get(vault)
            objects, vault_bytes = (held.usage.objects, held.usage.object_bytes) if held is not None else (0, 0)
            return Room(bound_bytes, used_bytes, max(0, min(left)), objects, vault_bytes)

    def _require_few_vaults(self, caller: PeerId, vault: VaultId) -> None:
        if vault in self._vaults:
            return
        if sum(held.record.writers[:1] == [caller] for held in self._vaults.values()) >= MOST_BEGUN_BY_ONE:
            raise NoSpaceError(f"the caller has begun to store {MOST_BEGUN_BY_ONE} vaults here, as many as one may")

    def _make_room(
        self,
        caller: PeerId,
        more_bytes: int,
        awaited_bytes: int,
        quota_bytes: int | None,
        resumed: Coming | None,
        beyond_bytes: int = 0,
    ) -> None:
        while (lack := self._lack(caller, more_bytes, awaited_bytes, quota_bytes, beyond_bytes)) is not None:
            others = [coming for coming in self._coming.interrupted(lack.caller) if coming is not resumed]
            if sum(coming.counted_bytes for coming in others) < lack.missing_bytes:
                raise NoSpaceError(f"{lack.reason}: {lack.missing_bytes} bytes too few")
            self._discard(others[0])

    def _lack(
        self, caller: PeerId, more_bytes: int, awaited_bytes: int, quota_bytes: int | None, beyond_bytes: int
    ) -> _Lack | None:
        own_bytes = self.used_bytes(caller) + more_bytes - beyond_bytes
        if quota_bytes is not None and own_bytes > quota_bytes:
            return _Lack("the quota of the caller is used up", own_bytes - quota_bytes, caller)
        all_bytes = self.used_bytes() + more_bytes - beyond_bytes
        if all_bytes > self._quota_bytes:
            return _Lack("the quota of this peer is used up", all_bytes - self._quota_bytes, None)
        if (left_bytes := self._disk_bytes() - awaited_bytes) < 0:
            return _Lack("the disk of this peer is full", -left_bytes, None)
        return None

    def _disk_bytes(self) -> int:
        """What the disk has left, beside its reserve and what is coming; may be negative."""
        status = os.fstatvfs(self._root)
        reserve_bytes = self._reserve_bytes
        if reserve_bytes is None:
            hundredth = status.f_blocks * status.f_frsize // 100
            reserve_bytes = max(_LEAST_RESERVE_BYTES, min(hundredth, _MOST_RESERVE_BYTES))
        return status.f_bavail * status.f_frsize - reserve_bytes - self._coming.awaited_bytes()

    def _discard(self, coming: Coming) -> None:
        replica_files.remove_file(self._root, self._path(coming))
        self._coming.drop(coming)

    def _path(self, coming: Coming) -> list[str]:
        return HeldVault(self._root, coming.vault).partial_path(coming.name)
