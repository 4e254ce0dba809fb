"""TLS 1.3 between peers: mutual, with the identities of `vaultfs.mesh.identity`.

Neither side is known when the handshake ends; `peer_of` says who it is, and the caller decides.
"""

from __future__ import annotations

import os
import ssl
from typing import Final

import trio

from vaultfs.errors import IntegrityError
from vaultfs.ids import PeerId
from vaultfs.mesh.identity import Identity, authority_pem, peer_id_of
from vaultfs.mesh.tls_stream import TlsStream

APPLICATION: Final = "vaultfs-mesh"
"""ALPN: something else that listens there is noticed in the handshake."""


def server_context(identity: Identity) -> ssl.SSLContext:
    """For who is called."""
    context = _context(identity, ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a connection is resumed by a new handshake, 1.5 ms, so that it proves the key each time
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """For who calls."""
    return _context(identity, ssl.PROTOCOL_TLS_CLIENT)


async def handshake(
    socket: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool
) -> tuple[TlsStream, PeerId]:
    """Agree on keys, and learn who is on the other side.  Failed, the socket is still the caller's to close.

    Args:
        socket: connected.
        context: `server_context` or `client_context`.
        server_side: whether this side was called.

    Raises:
        trio.BrokenResourceError: the other side went away, or speaks no TLS that is accepted here.
        IntegrityError: it is no peer, or speaks something else.
    """
    stream = TlsStream(socket, context, is_server=server_side)
    await stream.do_handshake()
    return stream, peer_of(stream)


def peer_of(stream: TlsStream) -> PeerId:
    """Who is on the other side, after the handshake.

    Raises:
        IntegrityError: it is no peer, or speaks something else.
    """
    if stream.selected_alpn_protocol() != APPLICATION:
        raise IntegrityError("the other side is not a peer of vaultfs")
    return peer_id_of(stream.certificate())


def _context(identity: Identity, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names say nothing here; the key does
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority_pem())
    context.set_alpn_protocols([APPLICATION])
    # ssl takes certificates from files only; this one is in memory, and gone when it has been read
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.certificate_pem())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
