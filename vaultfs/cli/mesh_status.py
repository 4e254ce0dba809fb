"""``vaultfs mesh status``: is it safe to close?  What the peers of a vault hold, asked of them now.  No password."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

import trio

from vaultfs.cli.dates import format_moment
from vaultfs.cli.mesh_lacks import lacks_json, tell_lacks
from vaultfs.cli.mesh_work import MeshWork, asked
from vaultfs.cli.output import counted, emit_json, note, printable, say, table
from vaultfs.cli.sizes import format_age, format_size
from vaultfs.errors import ExitCode, IntegrityError, RemoteRefusedError, VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.identity import format_peer_id, short_peer_id
from vaultfs.mesh.looking import Look, Lookout
from vaultfs.mesh.pool import PoolLimits, PoolSnapshot
from vaultfs.mesh.witnessing import FallenBack, ask_witnesses, remember

log = logging.getLogger(__name__)

_LIMITS: Final = PoolLimits(connect_timeout_s=5.0, wait_s=10.0)
"""A peer that is out of reach costs five seconds."""


def status(vault: str, /, *, json: bool = False) -> int:
    """Ask the peers of a vault what they hold, and tell what is lacking. No password is needed.

    The exit code is 3 while a segment has too few copies, or a peer that answers lacks the newest snapshot or
    vault.json.

    Args:
        vault: A vault, a folder where one is mounted, or the 32 digits of a vault's id.
        json: Print JSON.
    """
    work = MeshWork.of(vault)

    async def run(client: MeshClient) -> tuple[Look, _Seen, PoolSnapshot]:
        here = await trio.to_thread.run_sync(work.here)
        look = await Lookout(client, work.page, work.file, here, work.shelf).look()
        seen = await _Seen.ask(client, work, look)
        return look, seen, client.pool.snapshot()

    look, seen, pool = asked(work, run, limits=_LIMITS)
    if json:
        emit_json(_as_json(work, look, seen, pool))
    else:
        _show(work, look)
        seen.tell(look)
    return ExitCode.OK if look.health.is_safe else ExitCode.PARTIAL


@dataclass
class _Seen:
    """What the peers that answer have witnessed.

    Attributes:
        newest: by peer, the number of the newest snapshot that it says it has seen; 0: none.
        fallen: peers that say less than they once did.
    """

    newest: dict[PeerId, int]
    fallen: list[FallenBack]

    @classmethod
    async def ask(cls, client: MeshClient, work: MeshWork, look: Look) -> Self:
        """Ask them, and remember what they say."""
        present = frozenset(view.known.id for view in look.survey.present)
        heard = await ask_witnesses(
            client, replace(work.page, peers=tuple(peer for peer in work.page.peers if peer.id in present))
        )
        fallen = remember(look.standing, heard, time.time_ns())
        try:
            await trio.to_thread.run_sync(work.file.save, look.standing)
        except VaultError as error:  # hints only
            log.warning("%s", error)
        newest = {
            peer: max((head.seq for head in statement.heads), default=0) for peer, statement in heard.statements.items()
        }
        return cls(newest, fallen)

    def tell(self, look: Look) -> None:
        """A line for each thing that looks like an older state."""
        for each in self.fallen:
            note(f"warning: peer {short_peer_id(each.peer)} {each.text}")
        shown = 0 if look.health.newest is None else look.health.newest.seq
        for peer, seq in self.newest.items():
            if seq > shown:
                note(
                    f"warning: peer {short_peer_id(peer)} says that it has seen snapshot {seq}, and no peer that "
                    "answers has one as new, nor this machine"
                )


def _show(work: MeshWork, look: Look) -> None:
    rows = [_row(look, peer.id) for peer in work.page.peers]
    table(("PEER", "ADDRESS", "ZONE", "STATE", "HOLDS", "SNAPSHOT", "ROOM"), rows, right=(6,))
    health = look.health
    if health.needed_segments:
        unit = "copies" if health.coding is None else f"shares, any {health.coding.needed} of which are enough"
        say(f"{counted(health.needed_segments, 'needed segment')}, {format_size(health.needed_bytes)}, by {unit}:")
        for count, number in sorted(health.copies.items()):
            if number or count == health.replicas:
                least = "at least " if count == health.replicas else ""
                say(f"  {least}{count}: {number}")
        say(f"They lie in {counted(health.zones, 'zone')}.")
        if health.one_zone:
            say(f"All copies of {counted(health.one_zone, 'segment')} lie in one zone.")
    tell_lacks(work, look)
    if work.vault.layout is None:
        note("the vault is not on this machine, so nobody has verified that the snapshots are its own")
    say(f"safe to close: {'yes' if health.is_safe else 'no'}")


def _row(look: Look, peer: PeerId) -> tuple[str, ...]:
    view, state = look.survey.views[peer], look.health.peers[peer]
    holds = f"{counted(state.segments, 'segment')}, {format_size(state.bytes)}"
    return (
        short_peer_id(peer),
        printable(str(view.known.address)),
        view.known.zone,
        _state_text(look, peer),
        holds if view.is_present else f"{holds} then" if state.segments else "",
        "" if state.newest is None else str(state.newest),
        "" if view.state is None else format_size(view.state.free_bytes),
    )


def _state_text(look: Look, peer: PeerId) -> str:
    view = look.survey.views[peer]
    if view.is_present:
        if look.health.peers[peer].is_distrusted:
            return "failed an audit"
        return "present" if view.takes else "read only"
    if isinstance(view.error, RemoteRefusedError):
        return "refuses this machine"
    if isinstance(view.error, IntegrityError):
        return "not the peer that was added"
    seen_ns = look.standing.of(peer).seen_ns
    if not seen_ns:
        return "never seen"
    return f"away for {format_age(max(0.0, time.time() - seen_ns / 1e9))}, since {format_moment(seen_ns)}"


def _as_json(work: MeshWork, look: Look, seen: _Seen, pool: PoolSnapshot) -> dict[str, Any]:
    return {
        "vault_id": work.page.vault_id.hex(),
        "is_verified": work.vault.layout is not None,
        **lacks_json(look),
        "peers": [_peer_json(look, seen, peer.id) for peer in work.page.peers],
        "pool": {
            **asdict(pool.counters),
            "failing": [
                {
                    "id": format_peer_id(peer),
                    "state": breaker.state.name.lower(),
                    "failures": breaker.failures,
                    "retry_in_s": round(breaker.retry_in_s, 1),
                    "last_error": breaker.last_error,
                }
                for peer, breaker in pool.breakers.items()
            ],
        },
    }


def _peer_json(look: Look, seen: _Seen, peer: PeerId) -> dict[str, Any]:
    view, state, remembered = look.survey.views[peer], look.health.peers[peer], look.standing.of(peer)
    return {
        "id": format_peer_id(peer),
        "host": view.known.address.host,
        "port": view.known.address.port,
        "zone": view.known.zone,
        "is_present": view.is_present,
        "may_write": view.takes,
        "error": None if view.error is None else str(view.error),
        "seen_ns": remembered.seen_ns or None,
        "quota_bytes": None if view.state is None else view.state.quota_bytes,
        "free_bytes": None if view.state is None else view.state.free_bytes,
        "vault_bytes": None if view.state is None else view.state.vault_bytes,
        "segments": state.segments,
        "segment_bytes": state.bytes,
        "newest": state.newest,
        "witnessed": seen.newest.get(peer),
        "has_fallen_back": any(each.peer == peer for each in seen.fallen),
        "lacks_newest": state.lacks_newest,
        "lacks_manifests": state.lacks_heads,
        "lacks_header": state.lacks_header,
        "failed_audit_ns": remembered.failed_audit_ns or None,
    }
