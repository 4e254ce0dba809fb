"""Key slots of a vault on disk: list them, add one, remove one, change a password.

Everything that writes ``vault.json`` holds the vault's lock, so a vault that is mounted refuses (exit code 11): its
daemon may be about to write the header itself, when a rotation ends.  The file is replaced as a whole, and only by one
of which a secret that the caller presented has just been seen to open it; so a mistake, or a crash at any instant,
never leaves a vault that nothing opens.

A removed or changed slot no longer opens the vault, but it does open an older copy of ``vault.json``, if somebody kept
one.  Only :mod:`vaultfs.vault.rotation` makes such a copy worthless.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vaultfs.crypto.header import SlotInfo, VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import KeySlot, Secret
from vaultfs.errors import IntegrityError, UsageError
from vaultfs.storage.durable import atomic_replace
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.vault.opening import load_header

VaultPath = str | os.PathLike[str]


@dataclass(frozen=True)
class UnlockedHeader:
    """A vault's header, opened, while the vault's lock is held.

    Args:
        layout: where the vault is.
        lock: held.
        header: as it stands on disk.
        keyring: its keys.
    """

    layout: VaultLayout
    lock: VaultLock
    header: VaultHeader
    keyring: Keyring


@contextmanager
def unlocked(path: VaultPath, secret: Secret, *, purpose: str) -> Iterator[UnlockedHeader]:
    """Lock a vault and open its header; the lock is given up at the end.

    Args:
        path: the vault's directory.
        secret: opens a slot.
        purpose: shown to others that want the vault.

    Raises:
        NotAVaultError, FormatTooNewError, WrongPasswordError, IntegrityError: as their names say.
        VaultLockedError: it is mounted, or another command works on it.
    """
    layout = VaultLayout(Path(path))
    load_header(layout)  # first, because taking the lock creates a file
    with VaultLock.acquire(layout, purpose=purpose) as lock:
        header = load_header(layout)
        yield UnlockedHeader(layout, lock, header, header.unlock(secret))


def list_slots(path: VaultPath) -> tuple[SlotInfo, ...]:
    """The key slots, as everyone may see them; needs no secret and no lock, so nothing vouches for them.

    Args:
        path: the vault's directory.

    Raises:
        NotAVaultError, FormatTooNewError, IntegrityError, StorageError: as :func:`load_header`.
    """
    return load_header(VaultLayout(Path(path))).slots


def add_slot(
    path: VaultPath, secret: Secret, new_secret: Secret, *, label: str, kdf: KdfParameters | None = None
) -> SlotInfo:
    """Let one secret more open the vault.

    Args:
        path: the vault's directory.
        secret: opens a slot.
        new_secret: shall open the new one.
        label: of the new slot; no other has it.
        kdf: what a guess at the new secret shall cost; None: as much as at the costliest other.

    Raises:
        UsageError: the label is none or taken, the new secret opens a slot already, or there are 32 slots.
        VaultError: as :func:`unlocked`; nothing was changed.
    """
    with unlocked(path, secret, purpose="adding a key slot") as opened:
        header = opened.header
        changed = header.add_slot(opened.keyring, new_secret, label=label, kdf=kdf or usual_cost(header, new_secret))
        _refuse_twin(header, new_secret)
        return _store(opened.layout, changed, changed.key_slots[-1], new_secret)


def remove_slot(path: VaultPath, secret: Secret, label_or_id: str) -> SlotInfo:
    """Take a slot away; return what it was.

    Args:
        path: the vault's directory.
        secret: opens a slot that stays, so that whoever removes one is known to get in afterwards.
        label_or_id: of the slot; a label goes first.

    Raises:
        UsageError: no slot is named so, it is the last one, or the secret opens only that one.
        VaultError: as :func:`unlocked`; nothing was changed.
    """
    with unlocked(path, secret, purpose="removing a key slot") as opened:
        changed = opened.header.remove_slot(opened.keyring, label_or_id)
        stays = slot_of(changed, secret)
        if stays is None:
            raise UsageError(
                "what you gave opens the very slot that you want to remove; unlock with a secret that stays"
            )
        _store(opened.layout, changed, stays, secret)
        left = {slot.id for slot in changed.slots}
        return next(slot for slot in opened.header.slots if slot.id not in left)


def change_password(
    path: VaultPath, secret: Secret, new_secret: Secret, *, label: str | None = None, kdf: KdfParameters | None = None
) -> SlotInfo:
    """Change what opens a slot.  No data is rewritten.

    Args:
        path: the vault's directory.
        secret: opens a slot.
        new_secret: shall open the changed one.
        label: of the slot to change, for who forgot its secret and has another; None: the one that ``secret`` opens.
        kdf: what a guess at the new secret shall cost; None: as much as at the costliest now.

    Raises:
        UsageError: no slot has the label, or the new secret opens a slot already.
        VaultError: as :func:`unlocked`; nothing was changed.
    """
    if (secret.kind, secret.value) == (new_secret.kind, new_secret.value):
        raise UsageError("the new secret is the old one; nothing was changed")
    with unlocked(path, secret, purpose="changing a key slot") as opened:
        header, keyring = opened.header, opened.keyring
        cost = kdf or usual_cost(header, new_secret)
        if label is not None and all(slot.label != label for slot in header.slots):
            raise UsageError(f"no key slot is called {label!r}; 'vaultfs key list' shows them")
        if label is None or len(header.slots) == 1:
            changed = header.replace_secret(keyring, secret, new_secret, cost)
        else:
            changed = header.remove_slot(keyring, label).add_slot(keyring, new_secret, label=label, kdf=cost)
        known = {slot.slot_id for slot in header.key_slots}
        slot = next(each for each in changed.key_slots if each.slot_id not in known)
        _refuse_twin(header, new_secret, but=slot.label)
        return _store(opened.layout, changed, slot, new_secret)


def slot_of(header: VaultHeader, secret: Secret) -> KeySlot | None:
    """The first slot that a secret opens; takes each tried slot's Argon2id.

    Args:
        header: of the vault.
        secret: that may open one.
    """
    return next((slot for slot in header.key_slots if slot.open(secret, header.vault_id) is not None), None)


def usual_cost(header: VaultHeader, *secrets: Secret) -> KdfParameters:
    """The largest cost of a guess that the header asks for; measured afresh if it asks for none.

    Args:
        header: verified, or someone else may have chosen the cost.
        secrets: which are to get slots; those of recovery keys have no such cost.
    """
    costs = [slot.kdf for slot in header.key_slots if slot.kdf is not None]
    if not costs:
        needs_one = any(secret.kind != "recovery" for secret in secrets)
        return KdfParameters.calibrate() if needs_one else KdfParameters.weakest()
    return max(costs, key=lambda cost: cost.memory_kib * cost.iterations)


def _refuse_twin(header: VaultHeader, secret: Secret, *, but: str = "") -> None:
    """Refuse a secret that another slot has: to remove or change one of the two would seem to revoke it.

    Raises:
        UsageError: a slot with another label than ``but`` opens with it.
    """
    for slot in header.key_slots:
        if slot.label != but and slot.open(secret, header.vault_id) is not None:
            raise UsageError(f"the new secret opens the key slot {slot.label!r} already; nothing was changed")


def _store(layout: VaultLayout, header: VaultHeader, slot: KeySlot, secret: Secret) -> SlotInfo:
    """Replace ``vault.json`` durably, having made sure that a secret at hand opens it.

    Raises:
        IntegrityError: it would not; nothing was changed.
        NoSpaceError, ReadOnlyError, StorageError: nothing was changed.
    """
    data = header.encode()
    if VaultHeader.decode(data) != header or slot.open(secret, header.vault_id) is None:
        raise IntegrityError("the new key slot does not open, maybe for faulty memory; vault.json was left as it is")
    atomic_replace(layout.header, data)
    return SlotInfo(slot.slot_id, slot.label, slot.kind, slot.created_s)
