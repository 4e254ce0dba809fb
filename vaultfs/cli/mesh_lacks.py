"""What the peers of a vault lack, in lines for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from vaultfs.cli.mesh_work import MeshWork
from vaultfs.cli.output import counted, error_line, printable, say
from vaultfs.cli.sizes import format_size
from vaultfs.errors import VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.health import Health
from vaultfs.mesh.identity import short_peer_id
from vaultfs.mesh.kept_as import KeptAs, Way
from vaultfs.mesh.looking import Look

SHOWN: Final = 20
"""Segments and snapshots that are named; JSON has them all."""


def tell_lacks(work: MeshWork, look: Look, errors: Mapping[PeerId, VaultError] | None = None) -> None:
    """A line for each thing that is lacking, and why, on standard error; one on standard output if nothing is."""
    health, needs = look.health, look.needs
    unit = "copies" if health.coding is None else "shares"
    if look.kept.otherwise:
        error_line(_otherwise_text(look.kept))
    if health.is_safe:
        size = format_size(health.needed_bytes)
        copies = "one copy" if health.replicas == 1 else f"{health.replicas} {unit}"
        say(f"{counted(health.needed_segments, 'segment')}, {size}: all have at least {copies}")
    if health.newest is None:
        error_line("no peer that answers has a snapshot of the vault")
    if health.short:
        error_line(f"{_short_text(health, unit)}; {format_size(health.missing_bytes)} are missing")
    for name in health.lost[:SHOWN]:
        error_line(f"lost: the segment {name} is on no peer, nor on this machine")
    if len(health.lost) > SHOWN:
        error_line(f"lost: and {len(health.lost) - SHOWN} more segments; --json names all")
    for head in needs.unsent[-SHOWN:]:
        error_line(
            f"snapshot {head.seq} ({head.hash[:12]}) is on no peer that answers; 'vaultfs mesh replicate' sends it"
        )
    for head, error in list(needs.unreadable.items())[:SHOWN]:
        error_line(f"snapshot {head.seq} ({head.hash[:12]}): nobody knows what it needs: {error}")
    for head in needs.strange[:SHOWN]:
        error_line(
            f"snapshot {head.seq} ({head.hash[:12]}) of the device {head.device[:12]} is passed over: one peer alone "
            "lists it, and nobody knows the device; or its number or device is wrong"
        )
    for peer, state in health.peers.items():
        what = [
            text
            for is_so, text in (
                (state.lacks_newest, "the newest snapshot"),
                (state.lacks_header, "the current vault.json"),
            )
            if is_so
        ]
        if what:
            error_line(f"peer {short_peer_id(peer)} lacks {' and '.join(what)}")
    if not health.is_safe:
        for line in _reasons(work, look, errors or {}):
            error_line(line)


def lacks_json(look: Look) -> dict[str, Any]:
    """What is lacking, for machines."""
    health, needs = look.health, look.needs
    return {
        "is_safe": health.is_safe,
        "replicas": health.replicas,
        "coding": None if health.coding is None else str(health.coding),
        "is_told": look.kept.is_told,
        "kept_otherwise": {"copies" if way is None else str(way): count for way, count in look.kept.otherwise.items()},
        "newest": None if health.newest is None else {"seq": health.newest.seq, "id": health.newest.hash},
        "needed_segments": health.needed_segments,
        "needed_bytes": health.needed_bytes,
        "segments_by_copies": [health.copies[count] for count in sorted(health.copies)],
        "short_segments": len(health.short),
        "missing_bytes": health.missing_bytes,
        "lost": list(health.lost),
        "zones": health.zones,
        "one_zone_segments": health.one_zone,
        "unsent_snapshots": [{"seq": head.seq, "id": head.hash} for head in needs.unsent],
        "unreadable_snapshots": [
            {"seq": head.seq, "id": head.hash, "error": printable(str(error))}
            for head, error in needs.unreadable.items()
        ],
        "strange_snapshots": [{"seq": head.seq, "id": head.hash, "device": head.device} for head in needs.strange],
    }


def _reasons(work: MeshWork, look: Look, failed: Mapping[PeerId, VaultError]) -> list[str]:
    """Why something may have too few copies: a line for each peer that is away, full, read-only or not believed."""
    lines = []
    for peer in work.page.peers:
        view = look.survey.views[peer.id]
        who = f"peer {short_peer_id(peer.id)} at {peer.address}"
        if view.error is not None:
            lines.append(str(view.error) if short_peer_id(peer.id) in str(view.error) else f"{who}: {view.error}")
        elif look.health.peers[peer.id].is_distrusted:
            lines.append(f"{who} failed an audit, so what it holds does not count; 'vaultfs mesh audit' asks it again")
        elif not view.takes:
            lines.append(f"{who} lets this machine only read")
        elif view.state is not None and not view.state.free_bytes:
            lines.append(f"{who} is full: it needs a larger quota for this machine, or a larger disk")
        elif peer.id in failed:
            lines.append(str(failed[peer.id]))
    if len(work.page.peers) < look.health.replicas:
        unit = "copies" if look.health.coding is None else "shares"
        lines.append(
            f"there are to be {look.health.replicas} {unit}, and the vault has {counted(len(work.page.peers), 'peer')}"
        )
    return lines


def _otherwise_text(kept: KeptAs) -> str:
    """That peers hold segments in another way than they are to be held."""
    parts = [f"{counted(count, 'segment')} only as {_way_text(way)}" for way, count in kept.otherwise.items()]
    why = "as was said on this machine" if kept.is_told else "as they have most"
    return (
        f"peers have {' and '.join(parts)}; there are to be {_way_text(kept.coding)}, {why}; 'vaultfs mesh replicate' "
        "with --coding or --replicas changes that"
    )


def _way_text(way: Way) -> str:
    return "whole copies" if way is None else f"{way} shares"


def _short_text(health: Health, unit: str) -> str:
    """What has too few copies, in one line without an end.

    Args:
        health: says it.
        unit: copies, or shares.
    """
    by_count = Counter(health.short.values())
    parts = [f"{by_count[count]} with {count or 'none'}" for count in sorted(by_count)]
    return f"{counted(len(health.short), 'segment')} with fewer than {health.replicas} {unit}: {', '.join(parts)}"
