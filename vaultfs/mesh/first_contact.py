"""One visit to a peer, outside the pool: to see how it is, whether it knows this machine, or to pair with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import trio

from vaultfs.errors import IntegrityError, RemoteRefusedError, UsageError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.connection import PeerConnection
from vaultfs.mesh.dialing import dial
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.messages import Pair, Paired, State, Status
from vaultfs.mesh.pairing import Meeting, new_nonce
from vaultfs.mesh.tls import client_context

_T = TypeVar("_T")


class Visit(NamedTuple):
    """What a peer showed of itself.

    Attributes:
        round_trip_s: how long a question and its answer took.
        state: its room; None: it does not know this machine, or not for the vault.
    """

    round_trip_s: float
    state: State | None


async def look(identity: Identity, address: Address, expected: PeerId, vault: VaultId) -> Visit:
    """See how a peer is.

    Args:
        identity: of this machine.
        address: where it listens.
        expected: who it must be.
        vault: of whose room it is asked.

    Raises:
        RemoteUnreachableError: nobody answers in time.
        IntegrityError: somebody else is there.
        RemoteError: no peer is there, or it failed.
    """

    async def talk(connection: PeerConnection) -> Visit:
        began_s = trio.current_time()
        await connection.ping()
        round_trip_s = trio.current_time() - began_s
        try:
            return Visit(round_trip_s, await connection.ask(lambda number: Status(number, vault), State))
        except RemoteRefusedError:
            return Visit(round_trip_s, None)

    return await _visited(identity, address, expected, talk)


async def pair(
    identity: Identity, address: Address, expected: PeerId | None, key: bytes, vault: VaultId, label: str
) -> PeerId:
    """Pair with a peer, by a code that it shows.

    Args:
        identity: of this machine.
        address: where it listens.
        expected: who it must be; None: whoever knows the code.
        key: of the code.
        vault: what it is to hold.
        label: what this machine is called, at most 64 characters.

    Returns:
        who it is; it knows this machine from now on.

    Raises:
        UsageError: this machine itself is there; the code still counts.
        RemoteRefusedError: it does not know this code, or not for this vault.
        IntegrityError: somebody else is there, or who is there does not know the code himself.
        RemoteUnreachableError, RemoteError: as `look`.
    """

    async def talk(connection: PeerConnection) -> PeerId:
        peer = connection.peer
        if peer.peer_id == identity.peer_id:
            raise UsageError(f"it is this machine itself that answers at {address}; name the other one")
        meeting = Meeting(identity.peer_id, peer.peer_id, vault, new_nonce())
        proof = meeting.caller_proof(key)
        answer = await connection.ask(lambda number: Pair(number, vault, meeting.nonce, proof, label), Paired)
        if not meeting.is_peer_proof(key, answer.proof):
            raise IntegrityError(
                f"{peer.name} does not know the pairing code: it is not the peer that has shown it; nothing was added"
            )
        return peer.peer_id

    return await _visited(identity, address, expected, talk)


async def _visited(
    identity: Identity,
    address: Address,
    expected: PeerId | None,
    talk: Callable[[PeerConnection], Awaitable[_T]],
) -> _T:
    """Connect, talk and leave.  Cancelled, it closes the connection at once."""
    connection = await dial(client_context(identity), address, expected)
    failure: VaultError | None = None
    said: list[_T] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            said.append(await talk(connection))
            await connection.aclose()
        except VaultError as error:  # out of the nursery, which would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return said[0]
