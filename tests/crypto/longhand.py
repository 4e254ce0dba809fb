"""The formats written out a second time, from the documents and with other primitives, to check vaultfs against.

HKDF is built from hmac, GCM's authentication from integers; nothing of vaultfs is imported.
"""

from __future__ import annotations

import hmac
import struct

import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """RFC 5869 with SHA-256."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
        out += block
        counter += 1
    return out[:length]


def aes_block(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # one block is what GCM is made of
    return encryptor.update(block) + encryptor.finalize()


def gf_multiply(x: int, y: int) -> int:
    """In GCM's field, where the leftmost bit is the coefficient of 1."""
    product = 0
    for bit in range(127, -1, -1):
        if y >> bit & 1:
            product ^= x
        x = (x >> 1) ^ (0xE1 << 120 if x & 1 else 0)
    return product


def gf_inverse(x: int) -> int:
    """x to the power of 2**128 - 2."""
    result = 1 << 127
    for _ in range(127):
        x = gf_multiply(x, x)
        result = gf_multiply(result, x)
    return result


def gcm_blocks(associated: bytes, ciphertext: bytes) -> list[int]:
    """What GHASH hashes: padded associated data, padded ciphertext, their lengths in bits."""
    padded = b"".join(part + bytes(-len(part) % 16) for part in (associated, ciphertext))
    padded += struct.pack(">QQ", 8 * len(associated), 8 * len(ciphertext))
    return [int.from_bytes(padded[start : start + 16], "big") for start in range(0, len(padded), 16)]


def gcm_hash_key(key: bytes) -> int:
    return int.from_bytes(aes_block(key, bytes(16)), "big")


def gcm_mask(key: bytes, nonce: bytes) -> int:
    """What GHASH's result is hidden with to give the tag."""
    return int.from_bytes(aes_block(key, nonce + b"\0\0\0\1"), "big")


def gcm_tag(key: bytes, nonce: bytes, associated: bytes, ciphertext: bytes) -> bytes:
    state = 0
    for block in gcm_blocks(associated, ciphertext):
        state = gf_multiply(state ^ block, gcm_hash_key(key))
    return (state ^ gcm_mask(key, nonce)).to_bytes(16, "big")


def gcm_crypt(key: bytes, nonce: bytes, data: bytes) -> bytes:
    """Encrypt or decrypt, without the tag."""
    out = b""
    for index in range(0, len(data), 16):
        stream = aes_block(key, nonce + (index // 16 + 2).to_bytes(4, "big"))
        out += bytes(a ^ b for a, b in zip(data[index : index + 16], stream, strict=False))
    return out


def gcm_seal(key: bytes, nonce: bytes, associated: bytes, data: bytes) -> bytes:
    """Nonce, ciphertext, tag."""
    ciphertext = gcm_crypt(key, nonce, data)
    return nonce + ciphertext + gcm_tag(key, nonce, associated, ciphertext)


def keyed_blake3(key: bytes, data: bytes) -> bytes:
    return blake3.blake3(data, key=key).digest()


def seal_chunk(
    chunk_key: bytes,
    vault_id: bytes,
    salt: bytes,
    chunk_id: int,
    length: int,
    data: bytes,
    fingerprint: bytes,
    random: bytes,
) -> bytes:
    keys = hkdf(chunk_key, salt, b"vaultfs 1 segment", 96)
    hedge = random + struct.pack("<QII", chunk_id, length, len(data)) + fingerprint
    nonce = keyed_blake3(keys[32:64], hedge)[:12]
    return gcm_seal(keys[:32], nonce, b"chunk" + vault_id + struct.pack("<QI", chunk_id, length), data)


def seal_record(key: bytes, purpose: bytes, data: bytes, random: bytes) -> bytes:
    keys = hkdf(key, b"", b"vaultfs 1 record", 64)
    nonce = keyed_blake3(keys[32:], random + struct.pack("<I", len(purpose)) + purpose + data)[:12]
    return gcm_seal(keys[:32], nonce, purpose, data)


def frame(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def slot_public(
    vault_id: bytes, slot_id: bytes, label: str, kind: str, created_s: int, costs: tuple[int, int, int], salt: bytes
) -> bytes:
    return frame(
        b"vaultfs 1 slot",
        vault_id,
        slot_id,
        label.encode(),
        kind.encode(),
        struct.pack("<Q", created_s),
        struct.pack("<III", *costs),
        salt,
    )
