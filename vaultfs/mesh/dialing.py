"""Calling a peer: TCP, TLS with its pinned identity, hello.  Everything has a deadline, and nothing is left behind."""

from __future__ import annotations

import os
import ssl
from typing import Final

import trio

from vaultfs.errors import IntegrityError, RemoteError, RemoteUnreachableError
from vaultfs.ids import PeerId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.connection import Peer, PeerConnection, say_hello
from vaultfs.mesh.identity import short_peer_id
from vaultfs.mesh.message_stream import MessageStream
from vaultfs.mesh.tls import handshake

DIAL_S: Final = 10.0


def peer_name(peer_id: PeerId, address: Address) -> str:
    """What a peer is called in messages."""
    return f"peer {short_peer_id(peer_id)} at {address}"


async def dial(context: ssl.SSLContext, address: Address, expected: PeerId | None) -> PeerConnection:
    """Call a peer.

    Args:
        context: `vaultfs.mesh.tls.client_context`.
        address: where it listens.
        expected: who it must be; None: whoever is there, for pairing.

    Raises:
        RemoteUnreachableError: nobody answers in time.
        IntegrityError: somebody else is there.
        RemoteError: no peer is there, or none that speaks this protocol.
    """
    what = f"the peer at {address}" if expected is None else peer_name(expected, address)
    with trio.move_on_after(DIAL_S):
        try:
            socket = await trio.open_tcp_stream(address.host, address.port)
        except OSError as error:
            raise RemoteUnreachableError(f"{what} cannot be reached: {_reason(error)}") from error
        try:
            return await _greet(context, socket, address, what, expected)
        except BaseException:
            socket.socket.close()  # at once: nothing is to be said any more
            raise
    raise RemoteUnreachableError(f"{what} cannot be reached: it does not answer within {DIAL_S:.0f} s")


def _reason(error: OSError) -> str:
    """Why nobody could be called; trio keeps that of each address in what an error came from."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    found = cause if isinstance(cause, OSError) and cause.errno is not None else error
    if found.errno is not None and found.errno > 0:
        return os.strerror(found.errno).lower()
    return (found.strerror or str(found)).lower()  # a name that cannot be resolved has a number of another list


async def _greet(
    context: ssl.SSLContext, socket: trio.SocketStream, address: Address, what: str, expected: PeerId | None
) -> PeerConnection:
    try:
        stream, found = await handshake(socket, context, server_side=False)
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLError):
            raise RemoteError(f"{what} is no peer of vaultfs: the TLS handshake failed ({cause.reason})") from error
        raise RemoteUnreachableError(f"{what} has closed the connection") from error
    if expected is not None and found != expected:
        raise IntegrityError(
            f"another peer, {short_peer_id(found)}, answers at {address} where {short_peer_id(expected)} was expected: "
            "its address or key has changed; compare 'vaultfs peer id' there"
        )
    return await say_hello(MessageStream(stream), Peer(found, peer_name(found, address)))
