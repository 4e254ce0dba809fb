"""Who a peer is: an Ed25519 key, and the hash of its public half, which people compare and type.

    peer id     SHA-256("vaultfs mesh 1 peer" ‖ public key, 32 bytes)
    printed     base32 of peer id ‖ first 3 bytes of SHA-256("vaultfs mesh 1 peer id" ‖ peer id), in lower case,
                in seven groups of eight with "-" between

The checksum finds 16,777,215 of 16,777,216 typing errors.  Case, spaces and dashes do not count in what is typed.

The only module of the mesh that uses a cryptography library.  TLS itself is the standard library's.

**Certificates.**  TLS wants X.509, and Python's ``ssl`` lets nobody decide about a certificate but a list of
authorities.  So every certificate is signed by one authority whose key is public, `authority_key`: the check of it says
nothing, and is to say nothing.  What counts is that TLS 1.3 proves that the other side has the private key of its
certificate, and that the hash of that key is looked up (`peer_id_of`).  Dates in it do not matter, because clocks
are wrong: they span all that can be written.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import PeerId
from vaultfs.storage.durable import atomic_replace, storage_errors

PEER_ID_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_ID_PURPOSE: Final = b"vaultfs mesh 1 peer"
_CHECKSUM_PURPOSE: Final = b"vaultfs mesh 1 peer id"
_AUTHORITY_PURPOSE: Final = b"vaultfs mesh 1 everybody's authority"
_CHECKSUM_BYTES: Final = 3
_GROUP: Final = 8
_LARGEST_KEY_FILE_BYTES: Final = 4096
_FIRST_DAY: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_DAY: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def peer_id_of_key(public_key: bytes) -> PeerId:
    """The id of who has the private half of a key.

    Args:
        public_key: 32 bytes, Ed25519.
    """
    return PeerId(hashlib.sha256(_ID_PURPOSE + public_key).digest())


def format_peer_id(peer_id: PeerId) -> str:
    """An id as people see it: 62 characters."""
    text = base64.b32encode(peer_id + _checksum(peer_id)).decode().lower()
    return "-".join(text[start : start + _GROUP] for start in range(0, len(text), _GROUP))


def short_peer_id(peer_id: PeerId) -> str:
    """The first group, for messages and tables; who decides by it can be deceived."""
    return format_peer_id(peer_id)[:_GROUP]


def parse_peer_id(text: str) -> PeerId:
    """An id as people type it.

    Raises:
        UsageError: it is none, or was mistyped.
    """
    plain = "".join(character for character in text if character not in "- ").upper()
    try:
        data = base64.b32decode(plain)
    except ValueError:
        data = b""
    peer_id = PeerId(data[:PEER_ID_BYTES])
    if len(data) != PEER_ID_BYTES + _CHECKSUM_BYTES:
        raise UsageError(
            "that is not the id of a peer, which has 62 characters; 'vaultfs peer id' prints it on its machine"
        )
    if data[PEER_ID_BYTES:] != _checksum(peer_id):
        raise UsageError("the id of the peer was mistyped: its checksum is wrong; compare it with 'vaultfs peer id'")
    return peer_id


def _checksum(peer_id: bytes) -> bytes:
    return hashlib.sha256(_CHECKSUM_PURPOSE + peer_id).digest()[:_CHECKSUM_BYTES]


class Identity:
    """A machine's own key.

    Attributes:
        peer_id: its id.
        public_key: 32 bytes.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key: Final = key
        self.public_key: Final = key.public_key().public_bytes_raw()
        self.peer_id: Final = peer_id_of_key(self.public_key)

    def __repr__(self) -> str:
        return f"Identity({short_peer_id(self.peer_id)})"

    @classmethod
    def new(cls) -> Self:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def of_seed(cls, seed: bytes) -> Self:
        """The one of a seed of 32 bytes: for test vectors."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The one in a file; None if there is no file.

        Raises:
            IntegrityError: the file is no such key, or others may read it.
            StorageError: it cannot be read.
        """
        with storage_errors(f"cannot read {path}"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise IntegrityError(f"{path} is not a regular file: something took the place of this peer's key")
                data = file.read(_LARGEST_KEY_FILE_BYTES)
        if status.st_mode & 0o077:
            raise IntegrityError(
                f"others may read {path}, the key of this peer; run: chmod 600 {path}, and make a new one if they have"
            )
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise IntegrityError(f"{path} is damaged, or not the key of a peer; restore it, or move it away")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write it to a file that only this user may read, durably.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: it was not written.
            UsageError: there is one already.
        """
        if path.exists():
            raise UsageError(f"there is a key already: {path}")
        with storage_errors(f"cannot create {path.parent}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_replace(path, self._pem())

    def sign(self, data: bytes) -> bytes:
        """64 bytes; what is signed begins with a purpose of its own."""
        return self._key.sign(data)

    def certificate_pem(self) -> bytes:
        """Certificate and private key, for TLS; made anew each time, and never stored."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, format_peer_id(self.peer_id))])
        authority = authority_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(_authority_name())
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_FIRST_DAY)
            .not_valid_after(_LAST_DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
                critical=False,
            )
            .sign(authority, None)
        )
        return certificate.public_bytes(Encoding.PEM) + self._pem()

    def _pem(self) -> bytes:
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority_key() -> Ed25519PrivateKey:
    """The key that signs all certificates; everybody has it, so it vouches for nothing."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(_AUTHORITY_PURPOSE).digest())


def authority_pem() -> str:
    """The authority's own certificate, the same on every machine: Ed25519 signatures are deterministic."""
    key = authority_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_authority_name())
        .issuer_name(_authority_name())
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_FIRST_DAY)
        .not_valid_after(_LAST_DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def _authority_name() -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vaultfs mesh 1")])


def peer_id_of(certificate_der: bytes | None) -> PeerId:
    """Who showed this certificate, and proved by TLS to have its key.

    Raises:
        IntegrityError: there is none, or it holds no Ed25519 key.
    """
    if certificate_der is None:
        raise IntegrityError("the other side showed no certificate")
    try:
        key = x509.load_der_x509_certificate(certificate_der).public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):  # OpenSSL takes more
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise IntegrityError("the other side's certificate is not that of a peer")
    return peer_id_of_key(key.public_bytes_raw())


def verify_signature(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 key has signed data.

    Args:
        public_key: 32 bytes.
        data: what was signed.
        signature: 64 bytes.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def require_identity(path: Path) -> Identity:
    """The key of this machine.

    Raises:
        UsageError: there is none yet.
        IntegrityError, StorageError: as `Identity.load`.
    """
    identity = Identity.load(path)
    if identity is None:
        raise UsageError("this machine is no peer yet; run 'vaultfs peer init' first")
    return identity
