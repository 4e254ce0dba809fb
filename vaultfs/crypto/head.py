"""HEAD: the authenticated record that says which database, which snapshot and which generation are the newest.

A page of the database that was put back from an older copy decrypts without a word, so HEAD holds the keyed hash of
the whole file.  It is written at each clean unmount and snapshot, and verified at mount.

Inside the seal, little-endian: state u8 (0 clean, 1 open), 1 if there is a manifest else 0 u8, generation u64, hash of
the database 32, hash of the newest manifest 32 (zeros if there is none).
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import blake3

from vaultfs.crypto.aead import open_record, seal_record
from vaultfs.crypto.keys import Keyring, Subkeys, derive_key
from vaultfs.errors import IntegrityError, StorageError, UsageError
from vaultfs.ids import Generation, KeyEpoch, VaultId

HASH_BYTES: Final = 32
_STATES: Final[tuple[Literal["clean", "open"], ...]] = ("clean", "open")
_RECORD: Final = struct.Struct("<BBQ32s32s")
_READ_BYTES: Final = 1 << 20
"""Large enough that BLAKE3 uses its widest instructions, small enough for the processor's cache."""


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """What HEAD says.

    Args:
        generation: of this state; it never goes back.
        state: ``clean`` after an unmount or snapshot; ``open`` while mounted, and after a crash.
        database_hash: :func:`hash_database`; in state ``open`` it says nothing, as the database changes.
        manifest_hash: of the newest snapshot's manifest; None if there is no snapshot.
        epoch: set by :meth:`open`: the keys it was sealed with.  The database's hash was made with the same.
    """

    generation: Generation
    state: Literal["clean", "open"]
    database_hash: bytes
    manifest_hash: bytes | None
    epoch: KeyEpoch | None = field(default=None, compare=False)

    def seal(self, subkeys: Subkeys, vault_id: VaultId) -> bytes:
        """Encrypt and authenticate.

        Args:
            subkeys: of the current epoch.
            vault_id: bound into the record.

        Raises:
            UsageError: a hash has another length than 32 bytes, or the generation is out of range.
        """
        manifest_hash = bytes(HASH_BYTES) if self.manifest_hash is None else self.manifest_hash
        if not (len(self.database_hash) == len(manifest_hash) == HASH_BYTES and 0 <= self.generation < 2**64):
            raise UsageError(f"HEAD: generation {self.generation} or the length of a hash is out of range")
        data = _RECORD.pack(
            _STATES.index(self.state),
            self.manifest_hash is not None,
            self.generation,
            self.database_hash,
            manifest_hash,
        )
        return seal_record(subkeys.record, b"head" + vault_id, data)

    @classmethod
    def open(cls, keyring: Keyring, data: bytes) -> HeadRecord:
        """Decrypt and check.

        Args:
            keyring: the current epoch is tried first, then the older ones: a crash can come between a rotation and
                the next HEAD.
            data: HEAD's bytes.

        Raises:
            IntegrityError: no key of this vault sealed it.
        """
        for epoch in reversed(keyring.epochs):
            try:
                plain = open_record(keyring.subkeys(epoch).record, b"head" + keyring.vault_id, data)
            except IntegrityError:
                continue
            return cls._decode(plain, epoch)
        raise IntegrityError("HEAD is damaged or of another vault; restore it, or run vaultfs fsck")

    @classmethod
    def _decode(cls, plain: bytes, epoch: KeyEpoch) -> HeadRecord:
        if len(plain) != _RECORD.size:
            raise IntegrityError(f"HEAD holds {len(plain)} bytes instead of {_RECORD.size}")
        state, has_manifest, generation, database_hash, manifest_hash = _RECORD.unpack(plain)
        if state >= len(_STATES) or has_manifest > 1:
            raise IntegrityError("HEAD holds a state that vaultfs never writes")
        return cls(
            Generation(generation), _STATES[state], database_hash, manifest_hash if has_manifest else None, epoch
        )


def hash_database(subkeys: Subkeys, path: Path) -> bytes:
    """The keyed BLAKE3 hash of the checkpointed database.

    Args:
        subkeys: the key is HKDF-SHA256(record key, no salt, info ``vaultfs 1 database hash``).
        path: ``metadata.db``, which nobody writes meanwhile.

    Returns:
        32 bytes.

    Raises:
        StorageError: the file cannot be read, or is a symlink.
        IntegrityError: it is no regular file.
    """
    hasher = blake3.blake3(key=derive_key(subkeys.record, salt=b"", info=b"vaultfs 1 database hash"))
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        # O_NONBLOCK, so that a FIFO in the file's place does not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IntegrityError("metadata.db is no regular file; restore it")
            while count := os.readv(descriptor, [buffer]):
                hasher.update(buffer[:count])
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"metadata.db cannot be read: {error.strerror}") from error
    return hasher.digest()
