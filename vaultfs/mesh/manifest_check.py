"""Checks a manifest for who has no keys and little memory: it accepts exactly what `Manifest.decode` accepts.

`Manifest` makes a string and a tuple of every segment's name: 200 MB for the largest.  A peer must stay below 100 MiB,
and wants to know only that the bytes are a manifest in its one encoding, whose it is, and that its device signed it.
So names and the private part are looked at where they lie, and only the small fields and the sizes are encoded again to
be compared.  The signature is over everything but itself, which takes one copy.  Checking 16 MiB takes 25 MiB beside
them.
"""

from __future__ import annotations

from typing import Annotated, Final

import blake3
import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError
from vaultfs.ids import VaultId
from vaultfs.mesh.identity import verify_signature
from vaultfs.storage.manifest_format import FORMAT_VERSION, SIGNATURE_BYTES

_MAGIC: Final = b"VFSMAN\0"
_PREFIX: Final = _MAGIC + bytes([FORMAT_VERSION])
_BODY_START: Final = len(_PREFIX) + SIGNATURE_BYTES
_ID_BYTES: Final = 16
_HASH_BYTES: Final = 32
_LIMIT: Final = 1 << 63
_MOST_SEGMENTS: Final = 1 << 20
_FIELDS: Final = 8

_Sizes = Annotated[list[int], msgspec.Meta(max_length=_MOST_SEGMENTS)]
_BODY: Final = msgspec.msgpack.Decoder(tuple[bytes, bytes, int, int, bytes | None, memoryview, _Sizes, memoryview])
_ENCODER: Final = msgspec.msgpack.Encoder()


def check_manifest(data: bytes, vault: VaultId, device: bytes, seq: int, digest: bytes) -> None:
    """Check the bytes of a manifest.

    Args:
        data: the whole file; the caller has bounded it.
        vault: whose it must be.
        device: 32 bytes, the key that must have signed it.
        seq: the number that it must have.
        digest: the BLAKE3 that it must have.

    Raises:
        FormatTooNewError: a newer version of vaultfs wrote it.
        IntegrityError: it is no manifest, or another one, or its device did not sign it.
    """
    if blake3.blake3(data).digest() != digest:
        raise IntegrityError("the manifest's bytes are not those that its name tells")
    if len(data) < _BODY_START or not data.startswith(_MAGIC):
        raise IntegrityError("not a manifest: it does not begin with VFSMAN, or it was cut")
    if data[len(_MAGIC)] > FORMAT_VERSION:
        raise FormatTooNewError(f"the manifest has format {data[len(_MAGIC)]}, newer than this peer knows; update it")
    if not data.startswith(_PREFIX):
        raise IntegrityError("the manifest has a format that there never was")
    # the signature first: what follows is then at least what somebody meant to write
    if not verify_signature(device, _signed(data), data[len(_PREFIX) : _BODY_START]):
        raise IntegrityError("the manifest was not signed by the device that its key names")
    found_vault, found_device, found_seq = _checked_body(memoryview(data)[_BODY_START:])
    if (found_vault, found_device, found_seq) != (vault, device, seq):
        raise IntegrityError("the manifest is of another vault, device or number than its key tells")


def _signed(data: bytes) -> bytes:
    return b"".join((_PREFIX, memoryview(data)[_BODY_START:]))


def _checked_body(body: memoryview) -> tuple[bytes, bytes, int]:
    """Vault, device and number, if the body is in its one encoding."""
    try:
        vault, device, seq, created_ns, previous, names, sizes, private = _BODY.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise IntegrityError(f"the manifest is damaged: {error}") from error
    is_valid = (
        len(vault) == _ID_BYTES
        and len(device) == _HASH_BYTES
        and 0 < seq < _LIMIT
        and -_LIMIT <= created_ns < _LIMIT
        and (previous is None or len(previous) == _HASH_BYTES)
        and len(names) == _HASH_BYTES * len(sizes)
        and all(0 < size < _LIMIT for size in sizes)
        and _ascends(names)
    )
    if not is_valid:
        raise IntegrityError("the manifest is damaged: a value is out of its bounds, or names are not ascending")
    # The decoder has read all of the body, field behind field: if each begins and ends as it must, nothing is between.
    expected = (
        bytes([0x90 | _FIELDS]) + b"".join(map(_ENCODER.encode, (vault, device, seq, created_ns, previous))),
        _bytes_header(len(names)),
        len(names),
        _ENCODER.encode(sizes),
        _bytes_header(len(private)),
        len(private),
    )
    position = 0
    for part in expected:
        if isinstance(part, int):
            position += part
        elif body[position : position + len(part)] == part:
            position += len(part)
        else:
            raise IntegrityError("the manifest is damaged: it is not encoded as vaultfs does")
    return vault, device, seq


def _ascends(names: memoryview) -> bool:
    """Whether each name is greater than the one before."""
    before = b""
    for start in range(0, len(names), _HASH_BYTES):
        name = bytes(names[start : start + _HASH_BYTES])
        if name <= before:
            return False
        before = name
    return True


def _bytes_header(length: int) -> bytes:
    """How msgpack begins a byte string, in the shortest form."""
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")
