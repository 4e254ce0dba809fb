"""``vaultfs peer list | ping | remove``: which peers hold a vault, and how they are."""

from __future__ import annotations

from typing import Any

from vaultfs.cli.mesh_vault import mesh_vault
from vaultfs.cli.output import counted, emit_json, note, printable, say, table
from vaultfs.cli.peer_visits import Visited, acceptance, joint_exit_code, visit_json, visited_all
from vaultfs.cli.sizes import format_size
from vaultfs.errors import UsageError, VaultError
from vaultfs.mesh.book import Book, KnownPeer, VaultPeers
from vaultfs.mesh.discovery import Sighting, heard, require_discovery
from vaultfs.mesh.identity import format_peer_id, require_identity, short_peer_id
from vaultfs.mesh.places import book_path, identity_path, vault_state_path
from vaultfs.mesh.standing import StandingFile


def list_(vault: str | None = None, /, *, discover: bool = False, json: bool = False) -> int:
    """List the peers that hold a vault, or the peers of all vaults.

    Args:
        vault: A vault, a folder where one is mounted, or a vault's id.
        discover: Show also who announces himself on the local network now; it takes two seconds, and proves nothing.
        json: Print JSON.
    """
    if discover:
        require_discovery()
    book = Book(book_path())
    pages = book.load() if vault is None else [book.peers_of(mesh_vault(vault).vault_id)]
    seen = heard() if discover else None
    known = {peer.id for page in pages for peer in page.peers}
    if json:
        answer: dict[str, Any] = {"vaults": [_page_json(page) for page in pages]}
        if seen is not None:
            answer["seen"] = [_sighting_json(each) | {"is_known": each.peer_id in known} for each in seen]
        emit_json(answer)
        return 0
    if not known:
        say("There are no peers.")
    for page in pages:
        if page.peers:
            _show(page)
    if seen is not None:
        say(f"On the local network {counted(len(seen), 'peer')} can be heard; who it is, only connecting proves.")
        if seen:
            table(("ID", "ADDRESS", "KNOWN"), [_sighting_row(each, is_known=each.peer_id in known) for each in seen])
    return 0


def ping(vault: str, peer: str | None = None, /, *, json: bool = False) -> int:
    """Ask the peers of a vault how they are: time, whether they know this machine, room.

    Args:
        vault: A vault, a folder where one is mounted, or a vault's id.
        peer: The id of one of them, or its first 8 characters or more; all if not given.
        json: Print JSON.
    """
    identity = require_identity(identity_path())
    vault_id = mesh_vault(vault).vault_id
    page = Book(book_path()).peers_of(vault_id)
    peers = list(page.peers) if peer is None else [page.peer(peer)]
    if not peers:
        raise UsageError(f"{vault} has no peers; add one with 'vaultfs peer add {vault} ID@HOST'")
    found = visited_all(identity, peers, vault_id)
    if json:
        emit_json({"peers": [visit_json(each) for each in found]})
        return joint_exit_code(found)
    table(("PEER", "ADDRESS", "TIME", "ROOM", "STATE"), [_visit_row(each) for each in found], right=(2, 3))
    if any(each.visit is not None and each.visit.state is None for each in found):
        note(f"to be known there, run there: {acceptance(identity, vault_id)}")
    return joint_exit_code(found)


def remove(vault: str, peer: str, /, *, json: bool = False) -> int:
    """Have a peer hold a vault no more. What it holds stays there, and does not count any more.

    Args:
        vault: A vault, a folder where one is mounted, or a vault's id.
        peer: The id of the peer, or its first 8 characters or more.
        json: Print JSON.
    """
    meant = mesh_vault(vault)
    book = Book(book_path())
    gone = book.peers_of(meant.vault_id).peer(peer)
    book.remove(meant.vault_id, gone.id)
    page = book.peers_of(meant.vault_id)
    left = len(page.peers)
    try:
        StandingFile(vault_state_path(meant.vault_id)).removed(gone.id, [each.id for each in page.peers], page.replicas)
    except VaultError as error:  # it is removed all the same
        note(f"what it held is not remembered: {printable(str(error))}")
    if json:
        emit_json({"vault_id": meant.vault_id.hex(), **_peer_json(gone), "peers_left": left})
        return 0
    say(f"Removed the peer {short_peer_id(gone.id)} at {gone.address}.  What it holds stays there.")
    if left:
        verb = "repair" if meant.layout is None else "replicate"  # a snapshot that only that peer had is sent again
        say(f"{counted(left, 'peer')} left; what is missing there now is copied by: vaultfs mesh {verb} {vault}")
    elif meant.layout is not None:
        say(f"No peer is left; syncing to them ends with: vaultfs remote remove {vault} mesh")
    return 0


def _show(page: VaultPeers) -> None:
    how = counted(page.replicas, "copy").replace("copys", "copies")
    if page.coding is not None:
        how = f"{page.coding.total} shares, of which {page.coding.needed} are enough,"
    learned = "" if page.is_told else ", or shares if its peers have these"
    say(f"Vault {page.vault_id.hex()}: there are to be {how} of each segment{learned}")
    rows = [(format_peer_id(peer.id), printable(str(peer.address)), peer.zone) for peer in page.peers]
    table(("ID", "ADDRESS", "ZONE"), rows)


def _visit_row(visited: Visited) -> tuple[str, ...]:
    peer, visit = visited.peer, visited.visit
    who = (short_peer_id(peer.id), printable(str(peer.address)))
    if visit is None:
        return (*who, "", "", printable(str(visited.error)))
    time = f"{visit.round_trip_s * 1000:.1f} ms"
    if visit.state is None:
        return (*who, time, "", "does not know this machine, or not for this vault")
    return (*who, time, format_size(visit.state.free_bytes), "ready" if visit.state.may_write else "read only")


def _page_json(page: VaultPeers) -> dict[str, Any]:
    return {
        "vault_id": page.vault_id.hex(),
        "replicas": page.replicas,
        "coding": None if page.coding is None else str(page.coding),
        "peers": [_peer_json(peer) for peer in page.peers],
    }


def _peer_json(peer: KnownPeer) -> dict[str, Any]:
    return {
        "id": format_peer_id(peer.id),
        "host": peer.address.host,
        "port": peer.address.port,
        "zone": peer.zone,
        "added_ns": peer.added_ns,
    }


def _sighting_row(sighting: Sighting, *, is_known: bool) -> tuple[str, ...]:
    addresses = " ".join(map(str, sighting.addresses))
    return format_peer_id(sighting.peer_id), printable(addresses), "yes" if is_known else "no"


def _sighting_json(sighting: Sighting) -> dict[str, Any]:
    return {"id": format_peer_id(sighting.peer_id), "addresses": [str(address) for address in sighting.addresses]}
