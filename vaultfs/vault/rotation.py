"""Rotation: a new master key, of the next epoch, after which whoever lost access really has none.

1. ``vault.json`` is replaced: a new master key, the older ones sealed under it, and only the slots whose secrets were
   given.  From here on other secrets open nothing, and everything new is sealed with the new key.
2. HEAD says ``open``, sealed with the new key.
3. ``metadata.db`` is copied under the new key and renamed; fingerprints, made with the old one, are forgotten.
4. HEAD says ``clean``, and the command returns.
5. :mod:`vaultfs.vault.compaction` seals all old segments again, a few MiB at a time, in every mount; those that are
   not on this disk are fetched for it.
6. ``vault.json`` is replaced by one without the older keys that no segment has any more: the rotation is over.

A crash after any step leaves a vault that opens, and whose next mount goes on with the step after it.
Steps 2 and 3 are those of opening (:mod:`vaultfs.vault.opening`), so there is no other way to finish them.  Steps 5
and 6 need no memory either: a segment tells its epoch.

Snapshots keep the segments they need as they are, and so the old key: as long as one from before the rotation lives,
step 6 does not come.  What somebody copied before, with the old key in hand, no rotation can take back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.crypto.header import SlotInfo, VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import KeySlot, Secret
from vaultfs.errors import IntegrityError, UsageError, WrongPasswordError
from vaultfs.metadata.compaction_rows import CompactionRows
from vaultfs.storage.durable import atomic_replace
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.segment_source import SegmentSource
from vaultfs.vault.compaction import CompactProgress, compact
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.keyslots import UnlockedHeader, VaultPath, unlocked, usual_cost
from vaultfs.vault.opening import load_header, open_unlocked


@dataclass(frozen=True)
class RotationState:
    """How far a rotation is.

    Attributes:
        epoch: the current one.
        old_segments: segments that are still sealed with older keys.
        old_bytes: of chunks in them: about what is written again, and what a backup will upload again.
        snapshots: how many exist, kept ones included; those from before the rotation keep the older keys.
        is_over: the older keys are gone.
    """

    epoch: int
    old_segments: int
    old_bytes: int
    snapshots: int
    is_over: bool


@dataclass(frozen=True)
class Rotation:
    """What `rotate` has done.

    Attributes:
        kept: slots that open the vault.
        lost: slots that do not any more.
        state: what is left to do.
    """

    kept: tuple[SlotInfo, ...]
    lost: tuple[SlotInfo, ...]
    state: RotationState


def rotate(
    path: VaultPath,
    secret: Secret,
    survivors: Sequence[Secret] = (),
    *,
    lose_others: bool = False,
    kdf: KdfParameters | None = None,
    rewrite: CompactProgress | None = None,
    source: SegmentSource | None = None,
) -> Rotation:
    """Begin a new key epoch at once; what the old key sealed is written again by later mounts.

    Args:
        path: the vault's directory; not mounted.
        secret: opens a slot, which is kept.
        survivors: open the other slots that shall be kept.
        lose_others: all further slots may go.
        kdf: what a guess at the kept secrets shall cost; None: as much as at the costliest now.
        rewrite: write everything again now, and tell this function how far it is.
        source: has segments that are missing or damaged here.

    Raises:
        UsageError: slots would be lost, and ``lose_others`` is not set; nothing was changed.
        WrongPasswordError: a survivor opens no slot; nothing was changed.
        NoSpaceError, StorageError, IntegrityError: as opening a vault; if the header was replaced already, the new
            epoch has begun, and the next mount goes on.
        VaultError: as :func:`vaultfs.vault.keyslots.unlocked`.
    """
    with unlocked(path, secret, purpose="rotating the master key") as opened:
        header = opened.header
        kept = _slots_of(header, [secret, *survivors])
        lost = tuple(slot for slot in header.slots if slot.label not in kept)
        if lost and not lose_others:
            names = ", ".join(f"{slot.label!r} ({slot.kind})" for slot in lost)
            raise UsageError(
                f"these key slots would be lost, as only their own secrets can put the new key into them: {names}; "
                "give those secrets (--keep-passfile and the like), or let the slots go (--yes)"
            )
        renewed, keyring = header.rotate(opened.keyring, list(kept.items()), kdf or usual_cost(header, *kept.values()))
        _begin_epoch(opened, renewed, kept)
        fs = open_unlocked(opened.layout, keyring, opened.lock, read_only=False, source=source)
        try:
            if rewrite is not None:
                compact(fs, progress=rewrite, old_keys_only=True)
            state = rotation_state(fs)
        finally:
            fs.close()
    return Rotation(renewed.slots, lost, state)


def rotation_state(fs: FileSystem) -> RotationState:
    """How far the last rotation is.

    Args:
        fs: the vault, open.
    """
    with fs.database_safe():
        old = CompactionRows(fs.database).old_data(fs.keyring.epoch)
        snapshots = len(fs.snapshot_rows.all()) + len(kept_files(fs.layout))
    is_over = len(load_header(fs.layout).sealed_keyring) == OVERHEAD_BYTES
    return RotationState(fs.keyring.epoch, old.segments, old.live_bytes, snapshots, is_over)


def _slots_of(header: VaultHeader, secrets: Sequence[Secret]) -> dict[str, Secret]:
    """Which slots, by label, the secrets open.

    Raises:
        WrongPasswordError: one opens none.
    """
    kept: dict[str, Secret] = {}
    for secret in secrets:
        found = [slot for slot in header.key_slots if slot.open(secret, header.vault_id) is not None]
        if not found:
            raise WrongPasswordError("one of the secrets to keep opens no key slot; nothing was changed")
        kept |= dict.fromkeys((slot.label for slot in found), secret)
    return kept


def _begin_epoch(opened: UnlockedHeader, renewed: VaultHeader, kept: dict[str, Secret]) -> None:
    """Replace ``vault.json``, having made sure that every secret that is kept opens its new slot."""
    data = renewed.encode()
    slots: dict[str, KeySlot] = {slot.label: slot for slot in renewed.key_slots}
    opens = all(slots[label].open(secret, renewed.vault_id) is not None for label, secret in kept.items())
    if not opens or VaultHeader.decode(data) != renewed:
        raise IntegrityError("the new key slots do not open, maybe for faulty memory; vault.json was left as it is")
    atomic_replace(opened.layout.header, data)
