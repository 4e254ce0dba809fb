"""Visiting peers to see how they are, several at once, and what is said of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vaultfs.errors import ExitCode, RemoteRefusedError, VaultError
from vaultfs.ids import VaultId
from vaultfs.mesh.book import KnownPeer
from vaultfs.mesh.identity import Identity, format_peer_id, short_peer_id

if TYPE_CHECKING:
    from vaultfs.mesh.first_contact import Visit

_AT_ONCE: Final = 64


class Visited(NamedTuple):
    """How a peer was found.

    Attributes:
        peer: which.
        visit: what it showed; None: it could not be visited.
        error: why not.
    """

    peer: KnownPeer
    visit: Visit | None
    error: VaultError | None

    @property
    def is_trusted(self) -> bool:
        """Whether it knows this machine, and may be asked about the vault."""
        return self.visit is not None and self.visit.state is not None

    @property
    def exit_code(self) -> ExitCode:
        """Of a command that is about this peer alone."""
        if self.error is not None:
            return self.error.exit_code
        return ExitCode.OK if self.is_trusted else RemoteRefusedError.exit_code


def visited_all(identity: Identity, peers: Sequence[KnownPeer], vault_id: VaultId) -> list[Visited]:
    """Visit peers, up to 64 at once; for whom it waits after three seconds it tells.

    Args:
        identity: of this machine.
        peers: whom, in any order.
        vault_id: of whose room they are asked.

    Returns:
        how each was found, in the same order.

    Raises:
        KeyboardInterrupt, Terminated: a signal came.
    """
    import trio  # noqa: PLC0415  # takes long to load, and most verbs need none

    from vaultfs.cli.async_calls import completed  # noqa: PLC0415
    from vaultfs.mesh.dialing import peer_name  # noqa: PLC0415
    from vaultfs.mesh.first_contact import look  # noqa: PLC0415
    from vaultfs.mesh.waiting import waiting_text  # noqa: PLC0415

    found: dict[int, Visited] = {}

    async def visit(number: int, peer: KnownPeer, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                found[number] = Visited(peer, await look(identity, peer.address, peer.id, vault_id), None)
            except VaultError as error:
                found[number] = Visited(peer, None, error)

    async def visit_all() -> None:
        limiter = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for number, peer in enumerate(peers):
                nursery.start_soon(visit, number, peer, limiter)

    def slow() -> str:
        late = {peer.id: peer for number, peer in enumerate(peers) if number not in found}
        return waiting_text(list(late), lambda peer: peer_name(peer, late[peer].address)) if late else ""

    completed(visit_all, slow)
    return [found[number] for number in range(len(peers))]


def joint_exit_code(all_visited: Sequence[Visited]) -> ExitCode:
    """Of a command about several peers: 3 if some are well and others are not, else the highest of their own."""
    codes = {visited.exit_code for visited in all_visited}
    return ExitCode.PARTIAL if ExitCode.OK in codes and len(codes) > 1 else max(codes, default=ExitCode.OK)


def acceptance(own: Identity, vault_id: VaultId) -> str:
    """What has to be run at a peer so that it knows this machine."""
    return f"vaultfs peer accept {format_peer_id(own.peer_id)} --vault {vault_id.hex()}"


def peer_title(peer: KnownPeer) -> str:
    """A peer in a line of its own."""
    return f"{short_peer_id(peer.id)} at {peer.address}"


def visit_json(visited: Visited) -> dict[str, Any]:
    """How a peer was found, as JSON shows it."""
    visit, state = visited.visit, None if visited.visit is None else visited.visit.state
    return {
        "id": format_peer_id(visited.peer.id),
        "host": visited.peer.address.host,
        "port": visited.peer.address.port,
        "is_reachable": visit is not None,
        "is_trusted": visited.is_trusted,
        "round_trip_s": None if visit is None else visit.round_trip_s,
        "may_write": None if state is None else state.may_write,
        "quota_bytes": None if state is None else state.quota_bytes,
        "used_bytes": None if state is None else state.used_bytes,
        "free_bytes": None if state is None else state.free_bytes,
        "vault_bytes": None if state is None else state.vault_bytes,
        "error": None if visited.error is None else str(visited.error),
        "exit_code": int(visited.exit_code),
    }
