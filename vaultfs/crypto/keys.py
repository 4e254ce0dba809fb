"""The master key of each epoch, the subkeys derived from it by purpose, and the keyed fingerprint of plaintext.

A master key is 32 random bytes and never encrypts anything itself: HKDF-SHA256 (RFC 5869) with the vault's id as salt
and one ``info`` string per purpose gives the keys that do.  Nothing here prints a key: every class that holds one hides
it in its repr and refuses to be pickled or copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, NoReturn, TypeAlias

import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import KeyEpoch, VaultId

KEY_BYTES: Final = 32
VAULT_ID_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 32
LARGEST_EPOCH: Final = 2**32 - 1
"""Epochs are stored in four bytes."""
MASTER_BYTES: Final = 4 + KEY_BYTES
"""Of a master key as :meth:`MasterKey.encode` gives it."""

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes in memory.  A memoryview must be contiguous and of format ``B``."""


def derive_key(key: bytes, *, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256: a key for one purpose.

    Args:
        key: secret input of at least 16 bytes of entropy; a password needs :mod:`vaultfs.crypto.kdf` first.
        salt: public.
        info: names the purpose; two purposes never share it.
        length: bytes wanted; a shorter output is the beginning of a longer one.
    """
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def require_key(key: bytes, what: str) -> None:
    """Refuse a key that is not exactly 256 bits, because AES would take 128 without a word.

    Args:
        key: the key.
        what: its name, for the message.

    Raises:
        UsageError: it has another length.
    """
    if len(key) != KEY_BYTES:
        raise UsageError(f"the {what} has {len(key)} bytes; it must have {KEY_BYTES}")


def fingerprint(key: bytes, plaintext: Buffer) -> bytes:
    """The keyed BLAKE3 hash of plaintext: equal for equal chunks of one vault and epoch, meaningless without the key.

    Args:
        key: :attr:`Subkeys.fingerprint`.
        plaintext: the chunk as the program wrote it, before compression.

    Returns:
        32 bytes; secret as the plaintext is, so they are stored encrypted only.
    """
    return blake3.blake3(plaintext, key=key).digest()


class Hidden:
    """Base of classes that hold secrets: their repr shows none, and no copy leaves by pickling."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, hidden>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds a secret and cannot be pickled or copied")


class MasterKey(Hidden):
    """256 random bits and the number of the epoch in which they rule.

    Args:
        key: 32 bytes.
        epoch: from 1.

    Raises:
        UsageError: the key has another length, or the epoch is out of range.
    """

    __slots__ = ("epoch", "key")

    def __init__(self, key: bytes, epoch: KeyEpoch) -> None:
        require_key(key, "master key")
        if not 1 <= epoch <= LARGEST_EPOCH:
            raise UsageError(f"key epoch {epoch} is not from 1 to {LARGEST_EPOCH}")
        self.key: Final = key
        self.epoch: Final = epoch

    @classmethod
    def generate(cls, epoch: KeyEpoch) -> MasterKey:
        """A new key from the kernel's random source.

        Args:
            epoch: its number.
        """
        return cls(os.urandom(KEY_BYTES), epoch)

    def encode(self) -> bytes:
        """The epoch, u32 LE, and the key: 36 bytes to be sealed, never stored as they are."""
        return self.epoch.to_bytes(MASTER_BYTES - KEY_BYTES, "little") + self.key

    @classmethod
    def decode(cls, data: bytes) -> MasterKey:
        """What :meth:`encode` gave.

        Args:
            data: 36 bytes that were opened, so that a holder of the key wrote them.

        Raises:
            IntegrityError: they hold no master key.
        """
        epoch = int.from_bytes(data[:-KEY_BYTES], "little")
        if len(data) != MASTER_BYTES or epoch == 0:
            raise IntegrityError("vault.json holds a master key that vaultfs never writes; restore the file")
        return cls(data[-KEY_BYTES:], KeyEpoch(epoch))


class Subkeys(Hidden):
    """What is derived from one master key for one vault; 32 bytes each.

    Attributes:
        epoch: of the master key.
        chunk: from it every segment's key is derived.
        fingerprint: of plaintext, to find equal chunks.
        metadata: SQLite's raw key.
        manifest: seals the private part of manifests.
        record: seals HEAD and, in the header, older master keys.
        header_mac: authenticates ``vault.json``.
        device: seed of the Ed25519 key that signs manifests.

    Args:
        master: the key to derive from.
        vault_id: 16 bytes.

    Raises:
        UsageError: the vault's id has another length.
    """

    __slots__ = ("chunk", "device", "epoch", "fingerprint", "header_mac", "manifest", "metadata", "record")

    def __init__(self, master: MasterKey, vault_id: VaultId) -> None:
        if len(vault_id) != VAULT_ID_BYTES:
            raise UsageError(f"a vault id has {VAULT_ID_BYTES} bytes, not {len(vault_id)}")

        def derived(purpose: bytes) -> bytes:
            return derive_key(master.key, salt=vault_id, info=b"vaultfs 1 " + purpose)

        self.epoch: Final = master.epoch
        self.chunk: Final = derived(b"chunk")
        self.fingerprint: Final = derived(b"fingerprint")
        self.metadata: Final = derived(b"metadata")
        self.manifest: Final = derived(b"manifest")
        self.record: Final = derived(b"record")
        self.header_mac: Final = derived(b"header_mac")
        self.device: Final = derived(b"device")


class Keyring(Hidden):
    """Every master key of an unlocked vault that something may still be encrypted with.

    The newest epoch is the current one: everything new is written with it.  Immutable.

    Args:
        vault_id: 16 bytes.
        masters: at least one, each of another epoch.

    Raises:
        UsageError: there is none, or two have one epoch.
    """

    __slots__ = ("_masters", "_subkeys", "vault_id")

    def __init__(self, vault_id: VaultId, masters: Iterable[MasterKey]) -> None:
        ordered = sorted(masters, key=lambda master: master.epoch)
        if not ordered:
            raise UsageError("a keyring needs a master key")
        if len({master.epoch for master in ordered}) != len(ordered):
            raise UsageError("two master keys of one epoch")
        self.vault_id: Final = vault_id
        self._masters: Final = tuple(ordered)
        self._subkeys: Final = {master.epoch: Subkeys(master, vault_id) for master in ordered}

    @property
    def masters(self) -> tuple[MasterKey, ...]:
        """All master keys, oldest first; only the header needs them."""
        return self._masters

    @property
    def master(self) -> MasterKey:
        """The current master key; only the header needs it."""
        return self._masters[-1]

    @property
    def epoch(self) -> KeyEpoch:
        """The current epoch."""
        return self._masters[-1].epoch

    @property
    def epochs(self) -> tuple[KeyEpoch, ...]:
        """All epochs in the ring, oldest first."""
        return tuple(self._subkeys)

    @property
    def current(self) -> Subkeys:
        """The keys that everything new is written with."""
        return self._subkeys[self.epoch]

    def subkeys(self, epoch: KeyEpoch) -> Subkeys:
        """The keys of one epoch.

        Args:
            epoch: as a segment's header or a row gives it.

        Raises:
            IntegrityError: the ring has no such epoch: the number is forged, or its key was retired.
        """
        try:
            return self._subkeys[epoch]
        except KeyError:
            raise IntegrityError(
                f"something refers to key epoch {epoch}, which this vault does not have; run vaultfs fsck"
            ) from None
