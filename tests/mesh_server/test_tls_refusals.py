"""Who is not let in: by TLS, by its certificate, or because it speaks something else."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from datetime import UTC, datetime
from typing import NoReturn

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from vaultfs.errors import IntegrityError, RemoteUnreachableError
from vaultfs.ids import PeerId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.dialing import dial
from vaultfs.mesh.identity import authority_key, authority_pem
from vaultfs.mesh.message_codec import encode
from vaultfs.mesh.message_stream import ConnectionLostError, MessageStream
from vaultfs.mesh.messages import Ping, Pong, Welcome
from vaultfs.mesh.server import EventKind
from vaultfs.mesh.tls import APPLICATION, client_context
from vaultfs.mesh.tls_stream import TlsStream

from .running import ALICE, BOB, HELLO, PEER, STRANGER, Peer

Key = Ed25519PrivateKey | ec.EllipticCurvePrivateKey


def context_of(
    key: Key | None,
    issuer: Ed25519PrivateKey | None = None,
    issuer_name: str = "vaultfs mesh 1",
    application: str | None = APPLICATION,
) -> ssl.SSLContext:
    """A client's, with a certificate for a key, signed by whom a test wants; or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority_pem())
    if application is not None:
        context.set_alpn_protocols([application])
    if key is None:
        return context
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 1, 1, tzinfo=UTC))
        .sign(issuer or authority_key(), None)
    )
    pem = certificate.public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


async def is_let_in(peer: Peer, context: ssl.SSLContext) -> bool:
    """Whether a connection gets as far as a welcome; one that does not leaves the server as it was."""
    socket = await peer.open_socket()
    try:
        tls = TlsStream(socket, context, is_server=False)
        await tls.do_handshake()
        stream = MessageStream(tls)
        await stream.send(HELLO)
        return await stream.receive_payload() is not None
    except (trio.BrokenResourceError, ConnectionLostError):
        return False
    finally:
        socket.socket.close()


async def serves_others(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.ask(Ping(1), Pong)


async def test_certificates_made_here_are_let_in(peer: Peer) -> None:
    assert await is_let_in(peer, context_of(Ed25519PrivateKey.generate()))


@pytest.mark.parametrize(
    "context",
    [
        context_of(None),
        context_of(Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()),
        context_of(Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), "somebody"),
        context_of(ec.generate_private_key(ec.SECP256R1())),
    ],
    ids=["no certificate", "forged authority", "self-made", "another kind of key"],
)
async def test_other_certificates_are_refused(peer: Peer, context: ssl.SSLContext) -> None:
    assert not await is_let_in(peer, context)
    await peer.until_connections(0)
    assert peer.count(EventKind.REFUSED) == 1
    assert peer.count(EventKind.CONNECTED) == 0
    await serves_others(peer)


async def test_tls_1_2_is_refused(peer: Peer) -> None:
    context = client_context(ALICE)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert not await is_let_in(peer, context)
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    assert await is_let_in(peer, context)


async def test_another_protocol_inside_tls_is_refused(peer: Peer) -> None:
    context = client_context(ALICE)
    context.set_alpn_protocols(["http/1.1"])
    assert not await is_let_in(peer, context)
    await serves_others(peer)


async def test_no_protocol_inside_tls_is_refused(peer: Peer) -> None:
    context = context_of(Ed25519PrivateKey.generate(), application=None)
    assert not await is_let_in(peer, context)
    await serves_others(peer)


async def test_a_certificate_of_another_identity_gives_its_rights_only(peer: Peer) -> None:
    """Who says in its certificate that it is Alice, and has another key, is not Alice."""
    async with peer.connected(STRANGER) as caller:
        assert not (await caller.ask(HELLO, Welcome)).is_known


class _NoNames(trio.abc.HostnameResolver):
    async def getaddrinfo(self, *_args: object, **_more: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_args: object, **_more: object) -> NoReturn:
        raise AssertionError


async def test_a_name_that_nobody_has_is_told_in_words() -> None:
    trio.socket.set_custom_hostname_resolver(_NoNames())
    with pytest.raises(RemoteUnreachableError, match=r"nas:7741 cannot be reached: name or service not known$"):
        await dial(client_context(ALICE), Address("nas", 7741), None)


async def test_a_caller_leaves_a_peer_that_is_not_the_one_it_wants(peer: Peer) -> None:
    address = Address("127.0.0.1", peer.port)
    connection = await dial(client_context(ALICE), address, PEER.peer_id)
    connection.abort()
    with pytest.raises(IntegrityError, match="another peer"):
        await dial(client_context(ALICE), address, PeerId(BOB.peer_id))
    await peer.until_connections(0)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + os.urandom(100),
        os.urandom(5000),
        encode(HELLO),
    ],
    ids=["http", "long record", "noise", "no TLS"],
)
async def test_garbage_before_the_handshake_ends_its_connection_only(peer: Peer, said: bytes) -> None:
    async with peer.call() as other:
        socket = await peer.open_socket()
        async with socket:
            await socket.send_all(said)
            await socket.send_eof()
            try:
                while await socket.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        await peer.until_connections(1)
        assert peer.count(EventKind.REFUSED) == 1
        await other.ask(Ping(1), Pong)


@pytest.mark.parametrize("said", ["header", "record"])
async def test_garbage_in_place_of_a_record_ends_its_connection_only(peer: Peer, said: str) -> None:
    async with peer.call() as other, peer.call() as caller:
        junk = os.urandom(64)
        await caller.socket.send_all(junk if said == "header" else b"\x17\x03\x03\x00\x40" + junk)
        with contextlib.suppress(ConnectionLostError):
            assert await caller.stream.receive_payload() is None
        await peer.until_connections(1)
        await other.ask(Ping(1), Pong)
