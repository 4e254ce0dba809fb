"""Decodes a golden vault step by step as docs/format.md says, without a line of vaultfs: a second opinion.

The functions stand in the order of the document's worked example.  What they find is written down under the names that
the document uses, so that the two can be compared.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import blake3
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FILE = (b"documents", b"hello.txt")
COMPRESSED_FILE = (b"documents", b"numbers.txt")


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def frame(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def open_record(key: bytes, purpose: bytes, sealed: bytes) -> bytes:
    """Nonce 12, ciphertext, tag 16, under a key derived from the record's."""
    cipher_key = hkdf(key, b"", b"vaultfs 1 record", 64)[:32]
    return AESGCM(cipher_key).decrypt(sealed[:12], sealed[12:], purpose)


@dataclass
class Decoded:
    """One vault, as far as it has been decoded."""

    root: Path
    password: str
    values: dict[str, str] = field(default_factory=dict)
    master: bytes = b""
    vault_id: bytes = b""
    subkeys: dict[str, bytes] = field(default_factory=dict)

    def note(self, **values: bytes | int | str) -> None:
        for name, value in values.items():
            self.values[name] = value.hex() if isinstance(value, bytes) else str(value)


def slot_public(vault_id: bytes, slot: dict[str, Any]) -> bytes:
    return frame(
        b"vaultfs 1 slot",
        vault_id,
        bytes.fromhex(slot["id"]),
        slot["label"].encode(),
        slot["kind"].encode(),
        struct.pack("<Q", slot["created_s"]),
        struct.pack("<III", *slot.get("argon2id", (0, 0, 0))),
        bytes.fromhex(slot["salt"]),
    )


def unlock(vault: Decoded) -> None:
    """Step 1: from the password to the master key."""
    header = json.loads((vault.root / "vault.json").read_bytes())
    assert header["type"] == "vaultfs vault"
    assert header["format"] == 1
    vault.vault_id = bytes.fromhex(header["vault_id"])
    slot = header["slots"][0]
    memory_kib, passes, lanes = slot["argon2id"]
    salt, sealed, mac = (bytes.fromhex(slot[name]) for name in ("salt", "sealed", "mac"))
    kdf = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory_kib)
    root = kdf.derive(vault.password.encode())
    keys = hkdf(root, salt, b"vaultfs 1 slot " + slot["kind"].encode(), 64)
    wrapping_key, mac_key = keys[:32], keys[32:]
    public = slot_public(vault.vault_id, slot)
    assert hmac.digest(mac_key, frame(public, sealed), "sha256") == mac
    opened = open_record(wrapping_key, public, sealed)
    epoch, vault.master = struct.unpack("<I32s", opened)
    assert epoch == header["epoch"]
    vault.note(
        vault_id=vault.vault_id,
        slot_salt=salt,
        slot_public=public,
        argon2id=f"{memory_kib} {passes} {lanes}",
        argon2id_output=root,
        wrapping_key=wrapping_key,
        slot_mac_key=mac_key,
        slot_mac=mac,
        epoch=epoch,
        master_key=vault.master,
    )


def derive_subkeys(vault: Decoded) -> None:
    """Step 2: the subkeys, and the header's MAC, which only now can be verified."""
    for purpose in ("chunk", "fingerprint", "metadata", "manifest", "record", "header_mac", "device"):
        vault.subkeys[purpose] = hkdf(vault.master, vault.vault_id, b"vaultfs 1 " + purpose.encode())
        vault.note(**{f"{purpose}_key": vault.subkeys[purpose]})
    header = json.loads((vault.root / "vault.json").read_bytes())
    parts = [
        b"vaultfs 1 header",
        vault.vault_id,
        struct.pack("<I", header["epoch"]),
        struct.pack("<I", len(header["slots"])),
    ]
    for slot in header["slots"]:
        parts += [slot_public(vault.vault_id, slot), bytes.fromhex(slot["sealed"]), bytes.fromhex(slot["mac"])]
    keyring = bytes.fromhex(header["keyring"])
    parts.append(keyring)
    mac = hmac.digest(vault.subkeys["header_mac"], frame(*parts), "sha256")
    assert mac.hex() == header["mac"]
    assert open_record(vault.subkeys["record"], b"keyring" + vault.vault_id, keyring) == b""
    vault.note(header_mac=mac)


def read_head(vault: Decoded) -> None:
    """Step 3: HEAD, and what it says of the database."""
    sealed = (vault.root / "heads" / "HEAD").read_bytes()
    plain = open_record(vault.subkeys["record"], b"head" + vault.vault_id, sealed)
    state, has_manifest, generation, database_hash, manifest_hash = struct.unpack("<BBQ32s32s", plain)
    hash_key = hkdf(vault.subkeys["record"], b"", b"vaultfs 1 database hash")
    database = (vault.root / "metadata.db").read_bytes()
    assert blake3.blake3(database, key=hash_key).digest() == database_hash
    assert (state, has_manifest) == (0, 1)
    vault.note(
        head_plain=plain,
        generation=generation,
        database_hash=database_hash,
        manifest_hash=manifest_hash,
        database_hash_key=hash_key,
        witness=json.dumps(
            {"generation": generation, "epoch": 1, "head": blake3.blake3(sealed).hexdigest()}, separators=(",", ":")
        ),
    )


def open_database(path: Path, key: bytes) -> apsw.Connection:
    connection = apsw.Connection(f"file:{path}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    connection.execute("PRAGMA cipher='aegis'")
    connection.execute(f"PRAGMA key='raw:{key.hex()}'")
    return connection


def row(database: apsw.Connection, sql: str, *bindings: Any) -> tuple[Any, ...]:
    found = database.execute(sql, bindings).fetchall()
    assert len(found) == 1, sql
    return tuple(found[0])


def find_inode(database: apsw.Connection, path: tuple[bytes, ...]) -> int:
    number = 1
    for name in path:
        (number,) = row(database, "SELECT inode FROM entry WHERE parent=? AND name=?", number, name)
    return number


def find_chunk(vault: Decoded) -> tuple[Any, ...]:
    """Step 4: from the path to where the chunk lies: the columns of chunk, then those of segment."""
    database = open_database(vault.root / "metadata.db", vault.subkeys["metadata"])
    try:
        (version,) = row(database, "PRAGMA user_version")
        (chunk_size,) = row(database, "SELECT value FROM setting WHERE name='chunk_size'")
        (directory,) = row(database, "SELECT inode FROM entry WHERE parent=1 AND name=?", FILE[0])
        inode = find_inode(database, FILE)
        (size,) = row(database, "SELECT size FROM inode WHERE id=?", inode)
        (chunk,) = row(database, "SELECT chunk FROM extent WHERE inode=? AND idx=0", inode)
        segment, offset, stored, length = row(
            database, "SELECT segment, offset, stored, length FROM chunk WHERE id=?", chunk
        )
        name, epoch, salt = row(database, "SELECT name, epoch, salt FROM segment WHERE id=?", segment)
    finally:
        database.close()
    vault.note(
        user_version=version,
        chunk_size=chunk_size,
        directory_inode=directory,
        inode=inode,
        size=size,
        chunk=chunk,
        segment=segment,
        offset=offset,
        stored=stored,
        length=length,
        segment_name=name,
        segment_epoch=epoch,
        segment_salt=salt,
    )
    return chunk, offset, stored, length, name


def segment_keys(vault: Decoded, data: bytes) -> tuple[bytes, bytes, bytes]:
    """The keys of a segment's chunks, nonces and records, from its header."""
    magic, version, vault_id, epoch, zero, salt = struct.unpack("<7sB16sI4s32s", data[:64])
    assert (magic, version, vault_id, epoch, zero) == (b"VFSSEG\0", 1, vault.vault_id, 1, bytes(4))
    keys = hkdf(vault.subkeys["chunk"], salt, b"vaultfs 1 segment", 96)
    return keys[:32], keys[32:64], keys[64:]


def segment_path(vault: Decoded, name: str) -> Path:
    return vault.root / "segments" / name[:2] / f"{name}.seg"


def open_chunk(vault: Decoded, place: tuple[Any, ...]) -> bytes:
    """Step 5: the plaintext."""
    chunk, offset, stored, length, name = place
    data = segment_path(vault, name).read_bytes()
    assert blake3.blake3(data).hexdigest() == name
    chunk_key, nonce_key, record_key = segment_keys(vault, data)
    sealed = data[offset : offset + stored]
    associated = b"chunk" + vault.vault_id + struct.pack("<QI", chunk, length)
    plaintext = AESGCM(chunk_key).decrypt(sealed[:12], sealed[12:], associated)
    vault.note(
        segment_header=data[:64],
        segment_chunk_key=chunk_key,
        segment_nonce_key=nonce_key,
        segment_record_key=record_key,
        sealed_chunk=sealed,
        nonce=sealed[:12],
        associated_data=associated,
        plaintext=plaintext,
        fingerprint=blake3.blake3(plaintext, key=vault.subkeys["fingerprint"]).digest(),
    )
    return plaintext


def read_index(vault: Decoded, name: str) -> list[tuple[int, ...]]:
    """Step 6: trailer and index of the segment, as rows (chunk, offset, stored, length, inode, index)."""
    data = segment_path(vault, name).read_bytes()
    record_key = segment_keys(vault, data)[2]
    plain = open_record(record_key, b"recordtrailer" + vault.vault_id, data[-60:])
    offset, length, count, zero = struct.unpack("<4Q", plain)
    assert zero == 0
    index = open_record(record_key, b"recordindex" + vault.vault_id, data[offset : offset + length])
    rows: list[tuple[int, ...]] = []
    chunk, end, inode, number = 0, 64, 0, 0
    for chunk_step, gap, stored, size, inode_step, index_step in zip(*msgspec.msgpack.decode(index), strict=True):
        chunk, inode, number = chunk + chunk_step, inode + inode_step, number + index_step
        rows.append((chunk, end + gap, stored, size, inode, number))
        end += gap + stored
    assert len(rows) == count
    vault.note(trailer_plain=plain, index_offset=offset, index_length=length, index_entries=count, index_plain=index)
    return rows


def read_compressed_file(vault: Decoded) -> bytes:
    """Step 7: a file of several chunks, of which some are compressed."""
    database = open_database(vault.root / "metadata.db", vault.subkeys["metadata"])
    try:
        inode = find_inode(database, COMPRESSED_FILE)
        (size,) = row(database, "SELECT size FROM inode WHERE id=?", inode)
        extents: list[tuple[Any, ...]] = database.execute(
            "SELECT idx, chunk.id, offset, stored, length, name FROM extent"
            " JOIN chunk ON chunk.id = extent.chunk JOIN segment ON segment.id = chunk.segment WHERE inode=?",
            (inode,),
        ).fetchall()
    finally:
        database.close()
    result = bytearray(size)
    stored_sizes = []
    for index, chunk, offset, stored, length, name in sorted(extents):
        data = segment_path(vault, name).read_bytes()
        sealed = data[offset : offset + stored]
        associated = b"chunk" + vault.vault_id + struct.pack("<QI", chunk, length)
        opened = AESGCM(segment_keys(vault, data)[0]).decrypt(sealed[:12], sealed[12:], associated)
        piece = zstd.decompress(opened) if stored < length + 28 else opened
        assert len(piece) == length
        result[index * 4096 : index * 4096 + length] = piece
        stored_sizes.append(f"{stored}/{length}")
    vault.note(
        numbers_inode=inode,
        numbers_stored_and_length=" ".join(stored_sizes),
        numbers_sha256=hashlib.sha256(result).hexdigest(),
    )
    return bytes(result)


def read_manifest(vault: Decoded) -> bytes:
    """Step 8: the snapshot's manifest, and the image of the database that it leads to."""
    (path,) = (vault.root / "heads").glob("*.manifest")
    data = path.read_bytes()
    snapshot = blake3.blake3(data).hexdigest()
    assert path.name == f"0000000001-{snapshot}.manifest"
    assert data[:8] == b"VFSMAN\0\x01"
    signature, body = data[8:72], data[72:]
    vault_id, device, seq, created_ns, previous, names, sizes, sealed = msgspec.msgpack.decode(body)
    public = Ed25519PrivateKey.from_private_bytes(vault.subkeys["device"]).public_key().public_bytes_raw()
    assert (vault_id, device, seq, previous) == (vault.vault_id, public, 1, None)
    Ed25519PublicKey.from_public_bytes(device).verify(signature, data[:8] + body)
    purpose = b"manifest" + vault.vault_id + struct.pack("<Q", seq)
    private = msgspec.msgpack.decode(open_record(vault.subkeys["manifest"], purpose, sealed))
    version, own_seq, own_ns, label, files, plaintext_bytes, chunk_size, database_bytes, segments, *columns = private
    assert (version, own_seq, own_ns, chunk_size) == (1, seq, created_ns, 4096)
    assert [segment[0] for segment in segments] == [names[start : start + 32] for start in range(0, len(names), 32)]
    assert [segment[3] for segment in segments] == sizes
    image = b""
    for number, offset, stored, length, chunk in zip(*columns, strict=True):
        content = segment_path(vault, segments[number][0].hex()).read_bytes()
        piece = content[offset : offset + stored]
        associated = b"chunk" + vault.vault_id + struct.pack("<QI", chunk, length)
        opened = AESGCM(segment_keys(vault, content)[0]).decrypt(piece[:12], piece[12:], associated)
        image += zstd.decompress(opened) if stored < length + 28 else opened
    assert len(image) == database_bytes
    vault.note(
        manifest_device=device,
        manifest_signature=signature,
        manifest_created_ns=created_ns,
        manifest_label=label,
        manifest_files=files,
        manifest_plaintext_bytes=plaintext_bytes,
        manifest_segments=" ".join(segment[0].hex() for segment in segments),
        manifest_pieces=len(columns[0]),
        image_bytes=len(image),
        image_sha256=hashlib.sha256(image).hexdigest(),
    )
    return image


def decode(root: Path, password: str) -> Decoded:
    """All steps."""
    vault = Decoded(root, password)
    unlock(vault)
    derive_subkeys(vault)
    read_head(vault)
    place = find_chunk(vault)
    open_chunk(vault, place)
    read_index(vault, place[-1])
    read_compressed_file(vault)
    read_manifest(vault)
    return vault


if __name__ == "__main__":
    target = Path(sys.argv[1])
    facts = json.loads(Path(f"{target}.json").read_bytes())
    for name, value in decode(target, facts["password"]).values.items():
        print(f"{name} = {value}")
