"""The manifest of a snapshot: which segments it needs, signed by the device, chained to the manifest before.

    magic     8 bytes, the last of which is the format version
    signature 64 bytes, Ed25519 over magic and body
    body      msgpack array: vault id, device, seq, created_ns, previous, names, sizes, private

``names`` is the concatenation of the segments' 32-byte hashes, ascending; ``sizes`` is an array of as many integers.
There is exactly one encoding of a manifest, and only that decodes.  This module neither signs nor verifies: it has no
keys.  Until the caller has verified the signature, the content is what anybody may have written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import blake3
import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError
from vaultfs.ids import SegmentName, SnapshotSeq, VaultId
from vaultfs.storage.layout import is_segment_name

FORMAT_VERSION: Final = 1
SIGNATURE_BYTES: Final = 64
MAX_MANIFEST_BYTES: Final = 64 << 20
"""A manifest with its private part; also bounds what decoding allocates."""

_MAGIC: Final = b"VFSMAN\0"
_PREFIX: Final = _MAGIC + bytes([FORMAT_VERSION])
_ID_BYTES: Final = 16
_HASH_BYTES: Final = 32
_NUMBER_LIMIT: Final = 1 << 63
_MAX_SEGMENTS: Final = 1 << 20
"""64 TiB in segments of 64 MiB; decoded, that many take some 200 MB."""

_Bytes = Annotated[bytes, msgspec.Meta(max_length=MAX_MANIFEST_BYTES)]
_Sizes = Annotated[list[int], msgspec.Meta(max_length=_MAX_SEGMENTS)]
_BODY: Final = msgspec.msgpack.Decoder(tuple[_Bytes, _Bytes, int, int, _Bytes | None, _Bytes, _Sizes, _Bytes])


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        vault_id: 16 bytes.
        device: 32 bytes, the Ed25519 public key that must have signed it.
        seq: the snapshot's number, from 1.
        created_ns: nanoseconds since 1970.
        previous: 32 bytes, the BLAKE3 of the manifest before; None for the first.
        segments: name and size in bytes of each segment; kept in ascending order of names.
        private: sealed for holders of the key.

    Raises:
        ValueError: a value out of its bounds, or a segment twice.
    """

    vault_id: VaultId
    device: bytes
    seq: SnapshotSeq
    created_ns: int
    previous: bytes | None
    segments: tuple[tuple[SegmentName, int], ...]
    private: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(sorted(self.segments)))
        names = [name for name, _ in self.segments]
        valid = (
            len(self.vault_id) == _ID_BYTES
            and len(self.device) == _HASH_BYTES
            and 0 < self.seq < _NUMBER_LIMIT
            and -_NUMBER_LIMIT <= self.created_ns < _NUMBER_LIMIT
            and (self.previous is None or len(self.previous) == _HASH_BYTES)
            and len(set(names)) == len(names) <= _MAX_SEGMENTS
            and all(map(is_segment_name, names))
            and all(0 < size < _NUMBER_LIMIT for _, size in self.segments)
        )
        if not valid:
            raise ValueError("a manifest's value is out of its bounds, or a segment occurs twice")

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything but itself."""
        names = bytes.fromhex("".join(name for name, _ in self.segments))
        sizes = [size for _, size in self.segments]
        body = (self.vault_id, self.device, self.seq, self.created_ns, self.previous, names, sizes, self.private)
        return _PREFIX + msgspec.msgpack.encode(body)

    def encode(self, signature: bytes) -> bytes:
        """The manifest's file.

        Args:
            signature: `SIGNATURE_BYTES` bytes over `signed_bytes`.

        Raises:
            ValueError: a signature of another length, or more than `MAX_MANIFEST_BYTES` in all.
        """
        signed = self.signed_bytes()
        if len(signature) != SIGNATURE_BYTES or len(signed) + SIGNATURE_BYTES > MAX_MANIFEST_BYTES:
            raise ValueError(f"a manifest has {SIGNATURE_BYTES} bytes of signature and {MAX_MANIFEST_BYTES} in all")
        return _PREFIX + signature + signed[len(_PREFIX) :]

    @classmethod
    def decode(cls, data: bytes) -> tuple[Manifest, bytes]:
        """A manifest and its signature, which is not verified yet.

        Raises:
            FormatTooNewError: a newer version of vaultfs wrote it.
            IntegrityError: not a manifest.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise IntegrityError(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, not {len(data)}")
        if len(data) < len(_PREFIX) + SIGNATURE_BYTES or not data.startswith(_MAGIC):
            raise IntegrityError("not a manifest: it does not begin with VFSMAN, or it was cut; restore it")
        version = data[len(_MAGIC)]
        if version > FORMAT_VERSION:
            raise FormatTooNewError(f"the manifest has format {version}, newer than this vaultfs knows; update vaultfs")
        signature = data[len(_PREFIX) : len(_PREFIX) + SIGNATURE_BYTES]
        body = data[len(_PREFIX) + SIGNATURE_BYTES :]
        try:
            vault_id, device, seq, created_ns, previous, names, sizes, private = _BODY.decode(body)
            hashes = [names[start : start + _HASH_BYTES].hex() for start in range(0, len(names), _HASH_BYTES)]
            segments = tuple(zip(map(SegmentName, hashes), sizes, strict=True))
            manifest = cls(VaultId(vault_id), device, SnapshotSeq(seq), created_ns, previous, segments, private)
        except ValueError as error:  # msgspec's DecodeError is one
            raise IntegrityError(f"the manifest is damaged: {error}; restore it") from error
        # Also refuses version 0, names out of order, and integers or strings in more bytes than they need.
        if data[: len(_PREFIX)] + body != manifest.signed_bytes():
            raise IntegrityError("the manifest is damaged: it is not encoded as vaultfs does; restore it")
        return manifest, signature


def manifest_hash(data: bytes) -> str:
    """The 64 hexadecimal digits that name a manifest's file, and to which the next one is chained."""
    return blake3.blake3(data).hexdigest()
