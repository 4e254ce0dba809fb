"""``vault.json``: the public header of a vault, immutable and pure; nothing here touches a disk.

JSON, so that a person can look at it, with exactly these fields in format 1 (binary ones in lower-case hexadecimal):

``type``       always ``vaultfs vault``
``format``     1; a larger number was written by a newer vaultfs
``vault_id``   16 random bytes
``epoch``      number of the current master key
``slots``      1 to 32 objects ``id, label, kind, created_s, salt, sealed, mac`` and, but for recovery keys,
               ``argon2id``: [KiB of memory, passes, lanes]; see :mod:`vaultfs.crypto.slots`
``keyring``    the older master keys that something is still encrypted with, oldest first, each epoch u32 LE and 32
               bytes, sealed under the current record key
``mac``        HMAC-SHA256 under the current header_mac key over all of the above, see :meth:`VaultHeader._signed`

A header is believed only after a slot has opened and the MAC has been verified with what was in it; so no slot can be
removed, put back, moved or weakened by someone without the current master key.
"""

from __future__ import annotations

import dataclasses
import hmac
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from vaultfs.crypto.aead import OVERHEAD_BYTES, open_record, seal_record
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import LARGEST_EPOCH, MASTER_BYTES, VAULT_ID_BYTES, Keyring, MasterKey, Subkeys
from vaultfs.crypto.slots import KeySlot, Secret, SecretKind, SlotFields, frame, unhex
from vaultfs.errors import FormatTooNewError, IntegrityError, NotAVaultError, UsageError, WrongPasswordError
from vaultfs.ids import KeyEpoch, VaultId

FORMAT: Final = 1
LARGEST_HEADER_BYTES: Final = 1 << 20
MOST_SLOTS: Final = 32
WRONG_PASSWORD: Final = "wrong password, recovery key or key file: no key slot opens with it"  # noqa: S105  # a message
"""Constant, so that it tells nothing about slots."""

_TYPE: Final = "vaultfs vault"
_MAC_BYTES: Final = 32
_MOST_OLDER_EPOCHS: Final = 1024
"""That many rotations may be unfinished; the limit keeps the header small."""


class SlotInfo(NamedTuple):
    """What everyone may know of a key slot.

    Attributes:
        id: 16 hexadecimal digits.
        label: a person's name for it.
        kind: of the secret that opens it.
        created_s: seconds since 1970.
    """

    id: str
    label: str
    kind: SecretKind
    created_s: int


class _Format(msgspec.Struct, frozen=True):
    """What every format, however new, has."""

    type: str
    format: int


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Format 1 as JSON."""

    type: str
    format: int
    vault_id: str
    epoch: int
    slots: list[SlotFields]
    keyring: str
    mac: str


@dataclass(frozen=True)
class VaultHeader:
    """The header of one vault.

    Args:
        vault_id: 16 bytes.
        epoch: of the current master key.
        key_slots: 1 to 32.
        sealed_keyring: older master keys, encrypted.
        mac: over the rest.
    """

    vault_id: VaultId
    epoch: KeyEpoch
    key_slots: tuple[KeySlot, ...]
    sealed_keyring: bytes
    mac: bytes

    @property
    def format(self) -> int:
        """The format's version."""
        return FORMAT

    @property
    def slots(self) -> tuple[SlotInfo, ...]:
        """The key slots, as everyone may see them."""
        return tuple(SlotInfo(slot.slot_id, slot.label, slot.kind, slot.created_s) for slot in self.key_slots)

    # ------------------------------------------------------------------------------------------ bytes

    @classmethod
    def decode(cls, data: bytes) -> VaultHeader:
        """Read ``vault.json``.  Nothing in it is to be believed before :meth:`unlock`.

        Args:
            data: the whole file; refused above 1 MiB.

        Raises:
            NotAVaultError: it is no header.
            FormatTooNewError: a newer vaultfs wrote it.
            IntegrityError: Argon2id's parameters are out of bounds.
        """
        if len(data) > LARGEST_HEADER_BYTES:
            raise NotAVaultError(f"vault.json has more than {LARGEST_HEADER_BYTES} bytes: it is no vault's header")
        try:
            version = msgspec.json.decode(data, type=_Format)
            if version.type != _TYPE or version.format < 1:
                raise NotAVaultError("vault.json is no vault's header")
            if version.format > FORMAT:
                raise FormatTooNewError(
                    f"the vault has format {version.format}, and this vaultfs knows formats up to {FORMAT}: "
                    "use a newer vaultfs"
                )
            fields = msgspec.json.decode(data, type=_Fields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise NotAVaultError("vault.json is damaged, or no vault's header") from None
        if not 1 <= len(fields.slots) <= MOST_SLOTS or not 1 <= fields.epoch <= LARGEST_EPOCH:
            raise NotAVaultError("vault.json cannot be read: its number of slots or its epoch is out of range")
        slots = tuple(KeySlot.decode(slot) for slot in fields.slots)
        older = (len(fields.keyring) // 2 - OVERHEAD_BYTES) // MASTER_BYTES
        if not 0 <= older <= _MOST_OLDER_EPOCHS:
            raise NotAVaultError("vault.json cannot be read: its keyring has a wrong length")
        return cls(
            VaultId(unhex(fields.vault_id, VAULT_ID_BYTES)),
            KeyEpoch(fields.epoch),
            slots,
            unhex(fields.keyring, OVERHEAD_BYTES + older * MASTER_BYTES),
            unhex(fields.mac, _MAC_BYTES),
        )

    def encode(self) -> bytes:
        """The bytes of ``vault.json``."""
        fields = _Fields(
            type=_TYPE,
            format=FORMAT,
            vault_id=self.vault_id.hex(),
            epoch=self.epoch,
            slots=[slot.encode() for slot in self.key_slots],
            keyring=self.sealed_keyring.hex(),
            mac=self.mac.hex(),
        )
        return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"

    # ------------------------------------------------------------------------------------------ making and opening

    @classmethod
    def create(cls, secret: Secret, *, label: str, kdf: KdfParameters) -> tuple[VaultHeader, Keyring]:
        """A new vault with one slot.

        Args:
            secret: what shall open it.
            label: the slot's.
            kdf: what a guess at the secret shall cost.

        Raises:
            UsageError: the label is none.
        """
        vault_id = VaultId(os.urandom(VAULT_ID_BYTES))
        keyring = Keyring(vault_id, [MasterKey.generate(KeyEpoch(1))])
        slot = KeySlot.create(secret, keyring.master, vault_id, label=label, kdf=kdf)
        return cls._build(keyring, (slot,)), keyring

    def unlock(self, secret: Secret) -> Keyring:
        """Open the vault.

        Args:
            secret: of any slot.  Every slot of its kind is tried, which takes the slot's Argon2id each.

        Raises:
            WrongPasswordError: it opens no slot.
            IntegrityError: it opens one, but the header is not as the holder of the key wrote it.
        """
        for slot in self.key_slots:
            master = slot.open(secret, self.vault_id)
            if master is not None:
                return self._believe(master)
        raise WrongPasswordError(WRONG_PASSWORD)

    def unlock_with(self, keyring: Keyring) -> Keyring:
        """Open the vault with the keyring of another header of it: an older one, or one with other slots.

        Args:
            keyring: has the master key of this header's epoch.

        Raises:
            IntegrityError: it has not; or the header is not as the holder of the key wrote it.
        """
        for master in keyring.masters:
            if (keyring.vault_id, master.epoch) == (self.vault_id, self.epoch):
                return self._believe(master)
        raise IntegrityError(f"the key of epoch {self.epoch} is not among those of the vault")

    # ------------------------------------------------------------------------------------------ changing slots

    def add_slot(self, keyring: Keyring, secret: Secret, *, label: str, kdf: KdfParameters) -> VaultHeader:
        """One slot more.

        Args:
            keyring: of this header, unlocked.
            secret: what shall open the new slot.
            label: no other slot has it.
            kdf: what a guess at the secret shall cost.

        Raises:
            UsageError: the label is none or taken, or there are 32 slots.
            IntegrityError: the header is not as the holder of the key wrote it.
        """
        own = self._verified(keyring)
        if any(slot.label == label for slot in self.key_slots):
            raise UsageError(f"a key slot has the label {label!r} already; choose another")
        if len(self.key_slots) >= MOST_SLOTS:
            raise UsageError(f"a vault has {MOST_SLOTS} key slots at most; remove one first")
        slot = KeySlot.create(secret, own.master, self.vault_id, label=label, kdf=kdf)
        return self._build(own, (*self.key_slots, slot))

    def remove_slot(self, keyring: Keyring, label_or_id: str) -> VaultHeader:
        """One slot less.  Whoever saved the old header can still use the removed secret until ``key rotate``.

        Args:
            keyring: of this header, unlocked.
            label_or_id: of the slot; a label goes first.

        Raises:
            UsageError: no slot is named so, or it is the last one.
            IntegrityError: the header is not as the holder of the key wrote it.
        """
        own = self._verified(keyring)
        named = [slot for slot in self.key_slots if slot.label == label_or_id] or [
            slot for slot in self.key_slots if slot.slot_id == label_or_id
        ]
        if not named:
            raise UsageError(f"no key slot is called {label_or_id!r}; 'vaultfs key list' shows them")
        if len(self.key_slots) == 1:
            raise UsageError("this is the last key slot; without it nothing would open the vault")
        return self._build(own, tuple(slot for slot in self.key_slots if slot is not named[0]))

    def replace_secret(
        self, keyring: Keyring, old_secret: Secret, new_secret: Secret, kdf: KdfParameters
    ) -> VaultHeader:
        """Change the password of the slot that the old one opens.  No data is rewritten.

        Args:
            keyring: of this header, unlocked.
            old_secret: opens the slot.
            new_secret: shall open it; may be of another kind.
            kdf: what a guess at the new secret shall cost.

        Raises:
            WrongPasswordError: the old secret opens no slot.
            IntegrityError: the header is not as the holder of the key wrote it.
        """
        own = self._verified(keyring)
        for index, slot in enumerate(self.key_slots):
            if slot.open(old_secret, self.vault_id) is not None:
                changed = KeySlot.create(new_secret, own.master, self.vault_id, label=slot.label, kdf=kdf)
                return self._build(own, (*self.key_slots[:index], changed, *self.key_slots[index + 1 :]))
        raise WrongPasswordError(WRONG_PASSWORD)

    # ------------------------------------------------------------------------------------------ changing the master key

    def rotate(
        self, keyring: Keyring, survivors: Sequence[tuple[str, Secret]], kdf: KdfParameters
    ) -> tuple[VaultHeader, Keyring]:
        """A new master key, one epoch later.  All slots but the survivors' are gone.

        Args:
            keyring: of this header, unlocked.
            survivors: label and secret of each slot to keep; the secret must open the slot.
            kdf: what a guess at the secrets shall cost from now on.

        Returns:
            The new header, and the keyring with the old master keys and the new one.

        Raises:
            UsageError: there is no survivor, a label twice, no slot of that label, or 1024 older epochs are left.
            WrongPasswordError: a survivor's secret does not open its slot.
            IntegrityError: the header is not as the holder of the key wrote it.
        """
        own = self._verified(keyring)
        by_label = {slot.label: slot for slot in self.key_slots}
        labels = [label for label, _ in survivors]
        if not labels or len(set(labels)) != len(labels) or not by_label.keys() >= set(labels):
            raise UsageError("a rotation needs at least one key slot to keep, each named once; see 'vaultfs key list'")
        if len(own.epochs) > _MOST_OLDER_EPOCHS:
            raise UsageError("too many rotations are unfinished; let one finish before you begin another")
        for label, secret in survivors:
            if by_label[label].open(secret, self.vault_id) is None:
                raise WrongPasswordError(WRONG_PASSWORD)
        renewed = Keyring(self.vault_id, (*own.masters, MasterKey.generate(KeyEpoch(own.epoch + 1))))
        slots = tuple(
            KeySlot.create(
                secret, renewed.master, self.vault_id, label=label, kdf=kdf, created_s=by_label[label].created_s
            )
            for label, secret in survivors
        )
        return self._build(renewed, slots), renewed

    def with_older(self, keyring: Keyring) -> tuple[VaultHeader, Keyring]:
        """The same slots, and older master keys besides those that the header holds.

        Args:
            keyring: has the header's current key, and older ones of the same vault.

        Raises:
            IntegrityError: it has not; or the header is not as the holder of the key wrote it.
        """
        own = self.unlock_with(keyring)
        known = set(own.epochs)
        older = (each for each in keyring.masters if each.epoch not in known and each.epoch < own.epoch)
        larger = Keyring(self.vault_id, (*own.masters, *older))
        return self._build(larger, self.key_slots), larger

    def retire_epochs(self, keyring: Keyring, keep: Iterable[int]) -> tuple[VaultHeader, Keyring]:
        """Forget older master keys that nothing is encrypted with any more.

        Args:
            keyring: of this header, unlocked.
            keep: epochs to keep; the current one always is.

        Raises:
            UsageError: an epoch to keep is not in the ring.
            IntegrityError: the header is not as the holder of the key wrote it.
        """
        own = self._verified(keyring)
        kept = {*keep, own.epoch}
        if not kept <= set(own.epochs):
            raise UsageError("an epoch that shall be kept is not in the keyring")
        smaller = Keyring(self.vault_id, (master for master in own.masters if master.epoch in kept))
        return self._build(smaller, self.key_slots), smaller

    # ------------------------------------------------------------------------------------------ sealing and checking

    @classmethod
    def _build(cls, keyring: Keyring, slots: tuple[KeySlot, ...]) -> VaultHeader:
        """A header with a fresh keyring record and MAC."""
        older = b"".join(master.encode() for master in keyring.masters[:-1])
        sealed = seal_record(keyring.current.record, b"keyring" + keyring.vault_id, older)
        header = cls(keyring.vault_id, keyring.epoch, slots, sealed, b"")
        return dataclasses.replace(header, mac=header._signed(keyring.current))

    def _signed(self, subkeys: Subkeys) -> bytes:
        """HMAC-SHA256 over all fields, framed: each after its length, u32 LE."""
        parts = [
            b"vaultfs 1 header",
            self.vault_id,
            self.epoch.to_bytes(4, "little"),
            len(self.key_slots).to_bytes(4, "little"),
        ]
        for slot in self.key_slots:
            parts += [slot.public_bytes(self.vault_id), slot.sealed, slot.mac]
        parts.append(self.sealed_keyring)
        return hmac.digest(subkeys.header_mac, frame(*parts), "sha256")

    def _believe(self, master: MasterKey) -> Keyring:
        """The keyring, if the header is what the holder of this master key wrote."""
        subkeys = Subkeys(master, self.vault_id)
        if master.epoch != self.epoch or not hmac.compare_digest(self._signed(subkeys), self.mac):
            raise IntegrityError(
                "vault.json is not as it was written: a key slot was removed, put back or changed; restore the file"
            )
        older = open_record(subkeys.record, b"keyring" + self.vault_id, self.sealed_keyring)
        masters = [
            MasterKey.decode(older[start : start + MASTER_BYTES]) for start in range(0, len(older), MASTER_BYTES)
        ]
        masters.append(master)
        # Else someone who was revoked, and so knows an old master key, could name a "current" one of his own here.
        if any(first.epoch >= second.epoch for first, second in itertools.pairwise(masters)):
            raise IntegrityError("vault.json is forged: its key epochs are out of order; restore the file")
        return Keyring(self.vault_id, masters)

    def _verified(self, keyring: Keyring) -> Keyring:
        """The keyring that this very header holds; the given one may be older or newer than the header.

        Refuses to sign again a header that someone else wrote, say between two reads of the file.
        """
        if keyring.vault_id != self.vault_id:
            raise UsageError("this keyring is of another vault")
        return self._believe(keyring.master)
