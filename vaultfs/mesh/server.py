"""The peer that stores for others: it listens, decides whom it talks to, and goes down in order.

Whatever comes over the network ends at most its own connection.  How many there are is bounded in all, for one
identity, and for strangers (docs/mesh-protocol.md, section 14); who has not proved an identity yet gives way when all
places are taken, so strangers who only connect keep nobody out.
"""

from __future__ import annotations

import enum
import errno
import logging
import math
import signal
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from vaultfs.errors import IntegrityError, RemoteError, UsageError, VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.answers import Answers, RevokedError, failure
from vaultfs.mesh.conversation import IDLE_S, MOST_BODIES, Conversation, Resources
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import FrameError
from vaultfs.mesh.grants import Grants
from vaultfs.mesh.identity import Identity, short_peer_id
from vaultfs.mesh.message_stream import ConnectionLostError, MessageStream
from vaultfs.mesh.messages import Fail
from vaultfs.mesh.pairing import Pairings
from vaultfs.mesh.quiet_log import QuietLog
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.scrubbing import tend_replicas
from vaultfs.mesh.tls import handshake, server_context

log = logging.getLogger(__name__)

_FULL_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_FULL_PAUSE_S: Final = 0.5
_BACKLOG: Final = 128


@dataclass(frozen=True)
class Limits:
    """How much of this machine others may take.

    Attributes:
        connections: in all.
        of_one: of one identity.
        of_strangers: of identities without a grant, together.
        bodies: objects on their way at once.
        greeting_s: for the handshake of TLS and hello together.
        stranger_s: how long an identity without a grant may stay.
        idle_s: how long nothing may be asked.
        closing_s: for objects under way when the peer goes down.
        revocation_s: how often open connections are compared with the grants.
        scrub_bytes: read to find damage, in one step.
        scrub_pause_s: between two steps.
    """

    connections: int = 128
    of_one: int = 16
    of_strangers: int = 8
    bodies: int = MOST_BODIES
    greeting_s: float = 10.0
    stranger_s: float = 20.0
    idle_s: float = IDLE_S
    closing_s: float = 10.0
    revocation_s: float = 5.0
    scrub_bytes: int = 4 << 20
    scrub_pause_s: float = 1.0


class EventKind(enum.Enum):
    """What happened."""

    CONNECTED = "connected"
    REFUSED = "refused"
    ENDED = "ended"


class Event(NamedTuple):
    """Something that happened at the server.

    Attributes:
        kind: what.
        peer: with whom; None: it had not proved who it is.
        text: why, for people.
    """

    kind: EventKind
    peer: PeerId | None
    text: str


class _Connection:
    """One that is open.

    Attributes:
        scope: cancel it to cut the connection.
        conversation: from when the caller was admitted.
    """

    __slots__ = ("conversation", "peer", "scope")

    def __init__(self) -> None:
        self.scope: Final = trio.CancelScope()
        self.peer: PeerId | None = None
        self.conversation: Conversation | None = None


class PeerServer:
    """Everything that `serve` shares between its tasks."""

    def __init__(
        self, context: ssl.SSLContext, resources: Resources, limits: Limits, on_event: Callable[[Event], None] | None
    ) -> None:
        self._context: Final = context
        self._resources: Final = resources
        self._limits: Final = limits
        self._on_event: Final = on_event
        self._connections: Final[dict[_Connection, None]] = {}  # in the order in which they came
        self._all_ended = trio.Event()
        self._refusals: Final = QuietLog(log)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Take connections until cancelled."""
        while True:
            try:
                socket = await listener.accept()
            except OSError as error:
                if error.errno not in _FULL_ERRNOS:
                    raise
                self._refusals.warning("no further connection can be accepted now: %s", error.strerror)
                await trio.sleep(_FULL_PAUSE_S)
                continue
            if not self._make_room():
                self._tell_refused(None, f"{_host_of(socket)}: {self._limits.connections} connections are open")
                socket.socket.close()
                continue
            connection = _Connection()
            self._connections[connection] = None
            nursery.start_soon(self._keep, connection, socket)

    def _make_room(self) -> bool:
        """Whether one more may come; of those that have not said who they are, the oldest is cut for it."""
        if len(self._connections) < self._limits.connections:
            return True
        for connection in self._connections:
            if connection.conversation is None and not connection.scope.cancel_called:
                connection.scope.cancel()
                return True
        return False

    async def _keep(self, connection: _Connection, socket: trio.SocketStream) -> None:
        """One connection, from its first byte; whatever happens in it ends here."""
        host = _host_of(socket)
        why = "closed"
        try:
            connection.scope.deadline = trio.current_time() + self._limits.greeting_s
            with connection.scope:
                await self._talk(connection, socket, host)
            if connection.scope.cancelled_caught:
                why = "cut"
        except* (ConnectionLostError, trio.BrokenResourceError, IntegrityError) as errors:
            why = _first_text(errors)
        except* Exception as errors:  # a fault here must not take the others with it
            why = "a fault of vaultfs"
            log.error("a fault of vaultfs ended the connection of %s", host, exc_info=errors)  # noqa: TRY400
        finally:
            socket.socket.close()
            del self._connections[connection]
            if not self._connections:
                self._all_ended.set()
        if connection.conversation is None:
            self._tell_refused(connection.peer, f"{host}: {why}")
        else:
            self._tell(EventKind.ENDED, connection.peer, f"{host}: {why}")

    async def _talk(self, connection: _Connection, socket: trio.SocketStream, host: str) -> None:
        tls, peer = await handshake(socket, self._context, server_side=True)
        connection.peer = peer
        stream = MessageStream(tls)
        try:
            is_known = await self._resources.disk(self._resources.answers.is_known, peer)
        except VaultError as error:
            await stream.refuse(failure(0, error))
            return
        why = self._reason_against(peer, is_known=is_known)
        if why is not None:
            await stream.refuse(Fail(0, Code.BUSY, why))
            raise ConnectionLostError(why)

        def has_paired() -> None:
            connection.scope.deadline = math.inf

        conversation = Conversation(
            stream,
            peer,
            is_known=is_known,
            resources=self._resources,
            on_known=has_paired,
            idle_s=self._limits.idle_s,
        )
        connection.conversation = conversation
        try:
            if await conversation.greet():
                self._tell(EventKind.CONNECTED, peer, host)
                connection.scope.deadline = math.inf if is_known else trio.current_time() + self._limits.stranger_s
                await conversation.run()
        except* FrameError as errors:
            why = _first_text(errors)
            self._refusals.warning("peer %s at %s does not keep to the protocol: %s", short_peer_id(peer), host, why)
            await stream.refuse(Fail(0, Code.NOT_UNDERSTOOD, why))
        except* RevokedError as errors:
            await stream.refuse(Fail(0, Code.REFUSED, _first_text(errors)))

    def _reason_against(self, peer: PeerId, *, is_known: bool) -> str | None:
        """Why one more connection of an identity is not taken; None: it is."""
        conversations = [each.conversation for each in self._connections if each.conversation is not None]
        if sum(each.caller == peer for each in conversations) >= self._limits.of_one:
            return f"you have {self._limits.of_one} connections already"
        if not is_known and sum(not each.is_known for each in conversations) >= self._limits.of_strangers:
            return "too many that this peer does not know are connected"
        return None

    async def leave(self) -> None:
        """Say goodbye on all connections, and cut those that have not ended in time.  Nothing is accepted any more."""
        self._all_ended = trio.Event()
        for connection in self._connections:
            if connection.conversation is None:
                connection.scope.cancel()
            else:
                connection.conversation.leave("this peer goes down")
        if self._connections:
            with trio.move_on_after(self._limits.closing_s):
                await self._all_ended.wait()
        for connection in self._connections:
            connection.scope.cancel()

    async def watch_grants(self) -> None:
        """Cut the connections of callers that have no grant any more, until cancelled; objects under way included."""
        while True:
            await trio.sleep(self._limits.revocation_s)
            known = [c for c in self._connections if c.conversation is not None and c.conversation.is_known]
            peers = {c.conversation.caller for c in known if c.conversation is not None}
            try:
                revoked = await self._resources.disk(self._resources.answers.unknown_of, peers)
            except RemoteError:
                continue  # it was logged; requests are refused meanwhile
            for connection in known:
                if connection.conversation is not None and connection.conversation.caller in revoked:
                    connection.scope.cancel()

    def _tell_refused(self, peer: PeerId | None, text: str) -> None:
        self._refusals.warning("a connection was refused: %s", text)
        self._tell(EventKind.REFUSED, peer, text)

    def _tell(self, kind: EventKind, peer: PeerId | None, text: str) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, peer, text))


async def open_listeners(addresses: Sequence[Address]) -> list[trio.SocketListener]:
    """Listen.

    Args:
        addresses: host and port each; port 0: any that is free.

    Raises:
        UsageError: one cannot be listened on; none is then.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for address in addresses:
            listeners += await trio.open_tcp_listeners(address.port, host=address.host, backlog=_BACKLOG)
    except OSError as error:
        close_listeners(listeners)
        reason = error.strerror or str(error)
        raise UsageError(f"cannot listen on {address}: {reason}; choose another address or port") from error
    except BaseException:
        close_listeners(listeners)
        raise
    return listeners


def close_listeners(listeners: Sequence[trio.SocketListener]) -> None:
    """Close them at once; doing it twice is harmless."""
    for listener in listeners:
        listener.socket.close()


async def serve(
    identity: Identity,
    store: ReplicaStore,
    grants: Grants,
    pairings: Pairings,
    listeners: Sequence[trio.SocketListener],
    limits: Limits | None = None,
    *,
    stop: trio.Event,
    label: str = "",
    on_event: Callable[[Event], None] | None = None,
    task_status: trio.TaskStatus[PeerServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Store for others until `stop` is set; then say goodbye, and return within `Limits.closing_s` and a moment.

    Cancelled, it cuts all connections; what is half stored can go on later.

    Args:
        identity: of this machine.
        store: the replicas; still open on return.
        grants: who may do what.
        pairings: the codes that are shown.
        listeners: of `open_listeners`; closed on return.
        limits: how much others may take.
        stop: set it to go down in order; see `stop_at_signals`.
        label: what this peer calls itself to those who pair with it.
        on_event: hears of connections; must not raise.
        task_status: told when connections are taken.
    """
    limits = limits or Limits()
    resources = Resources(Answers(identity, store, grants, pairings, label), limits.bodies)
    server = PeerServer(server_context(identity), resources, limits, on_event)
    try:
        async with trio.open_nursery() as background:
            background.start_soon(tend_replicas, store, resources, limits.scrub_bytes, limits.scrub_pause_s)
            background.start_soon(server.watch_grants)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(server.accept, listener, connections)
                    task_status.started(server)
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                close_listeners(listeners)
                await server.leave()
            background.cancel_scope.cancel()
    finally:
        close_listeners(listeners)


async def stop_at_signals(stop: trio.Event) -> None:
    """Set an event when the process is asked to end (SIGTERM, SIGINT).  In the main thread only."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: saying goodbye", signal.Signals(number).name)
            stop.set()


def _host_of(socket: trio.SocketStream) -> str:
    try:
        return str(socket.socket.getpeername()[0])
    except OSError:  # it has gone already
        return "somebody"


def _first_text(errors: BaseExceptionGroup[BaseException]) -> str:
    """What the first of the errors within says."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
