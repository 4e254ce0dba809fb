"""Sealing and opening: the only module that imports an AEAD.  No caller ever passes or sees a nonce.

Everything is AES-256-GCM.  A sealed thing is ``nonce 12 | ciphertext | tag 16``, so ``OVERHEAD_BYTES`` longer than
what is in it.

**Keys.**  A segment's keys are HKDF-SHA256(chunk key, salt = the segment's 32 random bytes, info ``vaultfs 1
segment``), 96 bytes: the key of its chunks, the key of their nonces, the key of its records.  A record's keys are
HKDF-SHA256(record key, no salt, info ``vaultfs 1 record``), 64 bytes: the cipher's key, the nonces' key.

**Nonces are hedged.**  A chunk's is the first 12 bytes of keyed BLAKE3 over 64 bytes: 16 random ones, chunk id u64 LE,
length u32 LE, stored length u32 LE, and the 32 bytes of the plaintext's fingerprint.  Where the random source works,
they are random; where it repeats (a fork, a cloned machine, a disk put back), a nonce repeats only for the very same
chunk, which shows no more than that.  Id and lengths are in it because one nonce under two associated data would give
away GCM's authentication key.  A record's nonce is the same over 16 random bytes, the purpose's length u32 LE, the
purpose and the data.

**Limits.**  At most 2**16 chunks per segment key: 2**16 nonces of 96 bits collide with probability 2**-65, and 2**16
chunks of 4 MiB are 2**34 blocks, where GCM's bound on telling ciphertext from noise is 2**-61.

Random bytes come from the kernel one call (0.3 µs) at a time; a buffer would be copied by fork and by machine clones.
"""

from __future__ import annotations

import itertools
import os
import struct
from typing import Final

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultfs.crypto.keys import FINGERPRINT_BYTES, KEY_BYTES, VAULT_ID_BYTES, Buffer, Hidden, derive_key, require_key
from vaultfs.errors import ChunkIntegrityError, IntegrityError, UsageError
from vaultfs.ids import ChunkId, VaultId

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = NONCE_BYTES + TAG_BYTES
"""A sealed chunk or record is this much longer than its plaintext."""
SALT_BYTES: Final = 32
LARGEST_SEAL_COUNT: Final = 2**16
"""Chunks that one segment key may seal."""

_RANDOM_BYTES: Final = 16
_CHUNK_AAD: Final = struct.Struct("<5s16sQI")
_CHUNK_NONCE_INPUT: Final = struct.Struct("<16sQII32s")


def _does_not_open(chunk_id: ChunkId, stored_bytes: int) -> ChunkIntegrityError:
    return ChunkIntegrityError(
        f"chunk {chunk_id} does not open: its {stored_bytes} stored bytes are damaged or of another place; "
        "run vaultfs fsck"
    )


class SegmentCipher(Hidden):
    """Seals and opens what is in one segment.  Safe to use from several threads at once.

    Args:
        chunk_key: 32 bytes, :attr:`vaultfs.crypto.keys.Subkeys.chunk` of the segment's epoch.
        vault_id: 16 bytes.
        salt: the segment's 32 random bytes; never the same for two segments.

    Attributes:
        seal_count: chunks sealed so far, those included that never reached the disk.  A caller that begins another
            segment in time looks at this, and not at how many chunks the segment holds.

    Raises:
        UsageError: one of them has another length.
    """

    __slots__ = ("_aead", "_count_seal", "_nonce_key", "_record_key", "_vault_id", "seal_count")

    def __init__(self, chunk_key: bytes, vault_id: VaultId, salt: bytes) -> None:
        require_key(chunk_key, "chunk key")
        if len(vault_id) != VAULT_ID_BYTES or len(salt) != SALT_BYTES:
            raise UsageError(
                f"a vault id has {VAULT_ID_BYTES} bytes and a segment's salt {SALT_BYTES}; "
                f"these have {len(vault_id)} and {len(salt)}"
            )
        keys = derive_key(chunk_key, salt=salt, info=b"vaultfs 1 segment", length=3 * KEY_BYTES)
        self._aead: Final = AESGCM(keys[:KEY_BYTES])
        self._nonce_key: Final = keys[KEY_BYTES : 2 * KEY_BYTES]
        self._record_key: Final = keys[2 * KEY_BYTES :]
        self._vault_id: Final = bytes(vault_id)
        # One C call under the interpreter's lock, so that two threads never get one number.
        self._count_seal: Final = itertools.count(1).__next__
        self.seal_count = 0

    def seal_into(
        self, out: memoryview, chunk_id: ChunkId, plaintext: Buffer, fingerprint: bytes, *, length: int
    ) -> int:
        """Seal one chunk into a buffer.

        Args:
            out: writable; ``len(plaintext) + OVERHEAD_BYTES`` bytes of it are overwritten, the rest is left alone.
                It must not overlap ``plaintext``.
            chunk_id: bound into the ciphertext, u64.
            plaintext: the chunk, or its compressed form; at most ``length`` bytes.
            fingerprint: of the uncompressed chunk, 32 bytes.
            length: bytes of the uncompressed chunk, bound into the ciphertext, u32.

        Returns:
            Bytes written.

        Raises:
            UsageError: the buffer is too small, an argument is out of range, or this segment's key has sealed
                ``LARGEST_SEAL_COUNT`` chunks.
        """
        size = len(plaintext)
        end = size + OVERHEAD_BYTES
        if len(out) < end:
            raise UsageError(f"a buffer of {len(out)} bytes has no room for {size} bytes, a nonce and a tag")
        if size > length or len(fingerprint) != FINGERPRINT_BYTES:
            raise UsageError(
                f"chunk {chunk_id}: {size} bytes to seal of a chunk of {length}, fingerprint of {len(fingerprint)}"
            )
        count = self._count_seal()
        if count > LARGEST_SEAL_COUNT:
            raise UsageError(f"a segment takes {LARGEST_SEAL_COUNT} chunks at most; begin another one")
        self.seal_count = count
        try:
            associated = _CHUNK_AAD.pack(b"chunk", self._vault_id, chunk_id, length)
            hedge = _CHUNK_NONCE_INPUT.pack(os.urandom(_RANDOM_BYTES), chunk_id, length, size, fingerprint)
        except struct.error:
            raise UsageError(f"chunk id {chunk_id} or length {length} is out of range") from None
        nonce = blake3.blake3(hedge, key=self._nonce_key).digest(NONCE_BYTES)
        out[:NONCE_BYTES] = nonce
        self._aead.encrypt_into(nonce, plaintext, associated, out[NONCE_BYTES:end])
        return end

    def open_into(self, out: memoryview, chunk_id: ChunkId, sealed: Buffer) -> None:
        """Open one chunk that is not compressed, into a buffer.

        Args:
            out: writable, as long as the chunk; holds zeros if the chunk does not open.
            chunk_id: as it was sealed.
            sealed: nonce, ciphertext and tag, not a byte more.

        Raises:
            ChunkIntegrityError: not a bit of this was sealed so by this segment's key.
        """
        view = memoryview(sealed)
        length = len(out)
        if len(view) == length + OVERHEAD_BYTES:
            try:
                associated = _CHUNK_AAD.pack(b"chunk", self._vault_id, chunk_id, length)
                self._aead.decrypt_into(view[:NONCE_BYTES], view[NONCE_BYTES:], associated, out)
            except (InvalidTag, struct.error):
                pass
            else:
                return
        out[:] = bytes(length)  # decrypt_into leaves in it what was not authenticated
        raise _does_not_open(chunk_id, len(view))

    def open(self, chunk_id: ChunkId, sealed: Buffer, *, length: int) -> bytes:
        """Open one chunk.

        Args:
            chunk_id: as it was sealed.
            sealed: nonce, ciphertext and tag, not a byte more.
            length: bytes of the uncompressed chunk, as it was sealed.

        Returns:
            The plaintext, or its compressed form if it is shorter than ``length``.

        Raises:
            ChunkIntegrityError: not a bit of this was sealed so by this segment's key.
        """
        view = memoryview(sealed)
        if OVERHEAD_BYTES <= len(view) <= length + OVERHEAD_BYTES:
            try:
                associated = _CHUNK_AAD.pack(b"chunk", self._vault_id, chunk_id, length)
                return self._aead.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], associated)
            except (InvalidTag, struct.error):
                pass
        raise _does_not_open(chunk_id, len(view))

    def seal_record(self, kind: bytes, data: bytes) -> bytes:
        """Seal something else that stands in the segment.

        Args:
            kind: what it is, for example ``b"index"``.
            data: of any length.

        Returns:
            ``len(data) + OVERHEAD_BYTES`` bytes.
        """
        return seal_record(self._record_key, b"record" + kind + self._vault_id, data)

    def open_record(self, kind: bytes, sealed: Buffer) -> bytes:
        """Open what :meth:`seal_record` sealed.

        Args:
            kind: as it was sealed.
            sealed: not a byte more.

        Raises:
            IntegrityError: it was not sealed so by this segment's key.
        """
        try:
            return open_record(self._record_key, b"record" + kind + self._vault_id, sealed)
        except IntegrityError:
            raise IntegrityError(
                f"the {kind.decode('ascii', 'replace')} record of a segment is damaged or of another segment; "
                "run vaultfs fsck"
            ) from None


def seal_record(key: bytes, purpose: bytes, data: bytes) -> bytes:
    """Seal a piece of data that is no chunk.

    Args:
        key: 32 bytes.
        purpose: public, bound into the ciphertext.
        data: of any length.

    Returns:
        ``len(data) + OVERHEAD_BYTES`` bytes.

    Raises:
        UsageError: the key has another length.
    """
    aead, nonce_key = _record_cipher(key)
    hedge = blake3.blake3(os.urandom(_RANDOM_BYTES), key=nonce_key)
    hedge.update(len(purpose).to_bytes(4, "little")).update(purpose).update(data)
    nonce = hedge.digest(NONCE_BYTES)
    return nonce + aead.encrypt(nonce, data, purpose)


def open_record(key: bytes, purpose: bytes, sealed: Buffer) -> bytes:
    """Open what :func:`seal_record` sealed.

    Args:
        key: 32 bytes.
        purpose: as it was sealed.
        sealed: not a byte more.

    Raises:
        IntegrityError: it was not sealed so with this key.
        UsageError: the key has another length.
    """
    aead, _ = _record_cipher(key)
    view = memoryview(sealed)
    if len(view) >= OVERHEAD_BYTES:
        try:
            return aead.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], purpose)
        except InvalidTag:
            pass
    raise IntegrityError("a sealed record does not open: it is damaged, or of another vault or place")


def _record_cipher(key: bytes) -> tuple[AESGCM, bytes]:
    """The cipher and the nonce key of a record key."""
    require_key(key, "record key")
    keys = derive_key(key, salt=b"", info=b"vaultfs 1 record", length=2 * KEY_BYTES)
    return AESGCM(keys[:KEY_BYTES]), keys[KEY_BYTES:]
