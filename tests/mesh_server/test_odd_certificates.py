"""Certificates that OpenSSL takes and another library does not: each is refused or works, quietly."""

from __future__ import annotations

import contextlib
import os
import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh_server.test_tls_refusals import is_let_in
from vaultfs.mesh.identity import authority_key, authority_pem
from vaultfs.mesh.messages import Ping, Pong
from vaultfs.mesh.server import EventKind
from vaultfs.mesh.tls import APPLICATION

from .running import ALICE, Peer

ED25519 = bytes.fromhex("300506032b6570")
VERSION_3 = bytes.fromhex("a003020102")


def _tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 1 << 7:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _context(
    certificate_der: bytes, key: Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority_pem())
    context.set_alpn_protocols([APPLICATION])
    pem = ssl.DER_cert_to_PEM_cert(certificate_der).encode()
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def _changed(before: bytes, after: bytes) -> ssl.SSLContext:
    """Alice's own certificate with something changed, signed anew by the authority, as anybody can."""
    pem = ALICE.certificate_pem()
    tbs = x509.load_pem_x509_certificate(pem).tbs_certificate_bytes
    assert tbs.count(before) == 1
    content = tbs[4:] if tbs[1] == 0x82 else tbs[3:]
    changed = _tlv(0x30, content.replace(before, after))
    signature = authority_key().sign(changed)
    der = _tlv(0x30, changed + ED25519 + _tlv(0x03, b"\0" + signature))
    return _context(der, ALICE._key)


@pytest.mark.parametrize("version", [0, 1, 3, 4, 127])
async def test_versions_that_there_are_not(peer: Peer, caplog: pytest.LogCaptureFixture, version: int) -> None:
    async with peer.call() as other:
        with contextlib.suppress(ssl.SSLError):
            await is_let_in(peer, _changed(VERSION_3, VERSION_3[:-1] + bytes([version])))
        await peer.until_connections(1)
        await other.ask(Ping(1), Pong)
    assert not [record for record in caplog.records if "fault" in record.message]


@pytest.mark.parametrize("kind", ["rsa", "ed448"])
async def test_keys_of_other_kinds(peer: Peer, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ed448.Ed448PrivateKey.generate()
    builder = x509.CertificateBuilder(
        x509.Name([]),
        x509.load_pem_x509_certificate(authority_pem().encode()).subject,
        key.public_key(),
        7,
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 1, 1, tzinfo=UTC),
    )
    der = builder.sign(authority_key(), None).public_bytes(Encoding.DER)
    assert not await is_let_in(peer, _context(der, key))
    await peer.until_connections(0)
    assert peer.count(EventKind.CONNECTED) == 0
    assert not [record for record in caplog.records if "fault" in record.message]
