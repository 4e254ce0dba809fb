"""What `PoolPolicy` says is to be done about connections, in the order in which it is to be done.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vaultfs.ids import PeerId
from vaultfs.mesh.backoff import Failure
from vaultfs.mesh.pool_records import ConnectionId, LeaseId


@dataclass(frozen=True)
class Assign:
    """The lease has this connection now."""

    lease: LeaseId
    connection: ConnectionId


@dataclass(frozen=True)
class Open:
    """Dial; tell `PoolPolicy.opened` or `PoolPolicy.open_failed`, or `PoolPolicy.closed` if neither came to be."""

    connection: ConnectionId
    peer: PeerId


@dataclass(frozen=True)
class Check:
    """Ping; tell `PoolPolicy.checked`."""

    connection: ConnectionId


@dataclass(frozen=True)
class GiveUp:
    """Stop dialling; tell `PoolPolicy.closed`."""

    connection: ConnectionId


@dataclass(frozen=True)
class SayGoodbye:
    """Close politely; tell `PoolPolicy.closed`."""

    connection: ConnectionId


@dataclass(frozen=True)
class Abort:
    """Close at once.  It is gone already for the policy."""

    connection: ConnectionId


class Reason(enum.Enum):
    """Why there is no connection."""

    FAILURE = enum.auto()
    TOO_LATE = enum.auto()
    POOL_CLOSED = enum.auto()


@dataclass(frozen=True)
class Fail:
    """The lease gets no connection.

    Attributes:
        failure: of the last dial, if this is the reason.
        retry_in_s: when the peer is dialled again, if this is the reason.
    """

    lease: LeaseId
    reason: Reason
    failure: Failure | None = None
    retry_in_s: float = 0.0


Action = Assign | Open | Check | GiveUp | SayGoodbye | Abort | Fail
