"""``vaultfs peer add``: have a peer hold a vault, by its id or by a pairing code."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Final

from vaultfs.cli.mesh_vault import MeshVault, mesh_vault
from vaultfs.cli.output import emit_json, error_line, printable, say
from vaultfs.cli.pairing_code import obtain_code_key
from vaultfs.cli.peer_grants import require_label
from vaultfs.cli.peer_visits import Visited, acceptance, peer_title, visit_json, visited_all
from vaultfs.cli.sizes import format_size
from vaultfs.errors import RemoteUnreachableError, UsageError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address, parse_peer_address
from vaultfs.mesh.book import Book, KnownPeer, require_zone
from vaultfs.mesh.grants import LARGEST_LABEL_CHARACTERS
from vaultfs.mesh.identity import Identity, format_peer_id, require_identity
from vaultfs.mesh.places import book_path, identity_path
from vaultfs.remotes.configured import Remote, load_remotes, save_remotes
from vaultfs.remotes.store import Features

REMOTE_NAME: Final = "mesh"


def add(
    vault: str,
    peer: str,
    /,
    *,
    zone: str | None = None,
    code_fd: int | None = None,
    code_file: Path | None = None,
    label: str | None = None,
    json: bool = False,
) -> int:
    """Have a peer hold a vault: from now on it is asked, and given ciphertext.

    With its id, the peer has to accept this machine as well, by 'vaultfs peer accept' there. Without, both machines
    come to know each other by the code that 'vaultfs peer pair' shows there, which is asked for. A peer that cannot be
    reached now is added all the same. Given again, it changes the address, and the zone if one is given.

    Args:
        vault: A vault, a folder where one is mounted, or the 32 digits of a vault's id, to restore it from peers.
        peer: ID@HOST:PORT, or HOST:PORT to pair; the port is 7741 if not given.
        zone: What the peer would be lost with, as a house or an office; copies are spread over zones.
        code_fd: Pair, and read the code from this file descriptor.
        code_file: Pair, and read the code from this file.
        label: With a code, what the peer shall call this machine; its host name if not given.
        json: Print JSON.
    """
    identity = require_identity(identity_path())
    peer_id, address = parse_peer_address(peer, "PEER")
    if peer_id == identity.peer_id:
        raise UsageError("that is the id of this machine; 'vaultfs peer id' on the other prints the one that is meant")
    require_zone(zone or "")
    meant = mesh_vault(vault)
    has_remote = _has_remote(meant)
    book = Book(book_path())
    # A code counts once: it is not used up for what could not be written down.
    before = {known.id: known for known in book.peers_of(meant.vault_id).peers}
    is_pairing = peer_id is None or code_fd is not None or code_file is not None
    if label is not None and not is_pairing:
        raise UsageError("--label goes with a pairing code; without one, 'vaultfs peer accept' there has it")
    if is_pairing:
        own_label = socket.gethostname()[:LARGEST_LABEL_CHARACTERS] if label is None else require_label(label)
        key = obtain_code_key(code_fd, code_file, address.host)
        peer_id = _paired(identity, address, peer_id, key, meant.vault_id, own_label)
    assert peer_id is not None
    if is_pairing:
        book.add(meant.vault_id, peer_id, address, zone)  # at once: the code is used up
    (visited,) = visited_all(identity, [KnownPeer(peer_id, address)], meant.vault_id)
    if visited.error is not None and not isinstance(visited.error, RemoteUnreachableError) and not is_pairing:
        raise visited.error
    added = book.add(meant.vault_id, peer_id, address, zone)
    if not has_remote:
        _add_remote(meant)
    if json:
        emit_json(
            {
                "vault_id": meant.vault_id.hex(),
                **visit_json(visited),
                "zone": added.zone,
                "is_new": peer_id not in before,
                "own_id": format_peer_id(identity.peer_id),
            }
        )
    else:
        was = before.get(peer_id)
        say(_what_changed(added, was))
        _tell(identity, meant, vault, visited, "it is added" if was is None else "that was written down")
    return 0


def _has_remote(meant: MeshVault) -> bool:
    """Whether the vault has the remote for its peers already.

    Raises:
        UsageError: another remote has its name.
        VaultError: the list cannot be read.
    """
    from vaultfs.mesh.store import mesh_url  # noqa: PLC0415  # trio takes long to load

    if meant.layout is None:
        return False
    known = load_remotes(meant.layout)
    if any(remote.url == mesh_url(meant.vault_id) for remote in known):
        return True
    if any(remote.name == REMOTE_NAME for remote in known):
        raise UsageError(
            f"the vault has a remote {REMOTE_NAME!r} that is something else; its peers need that name: remove it with "
            f"'vaultfs remote remove {meant.layout.root} {REMOTE_NAME}', and add it under another"
        )
    return False


def _add_remote(meant: MeshVault) -> None:
    """Have the vault know its peers as a remote; it is not tried out, as peers may be away now."""
    from vaultfs.mesh.store import mesh_url  # noqa: PLC0415  # trio takes long to load

    if meant.layout is not None:
        remote = Remote(REMOTE_NAME, mesh_url(meant.vault_id), features=Features(range_reads=True))
        save_remotes(meant.layout, [*load_remotes(meant.layout), remote])


def _paired(
    identity: Identity, address: Address, expected: PeerId | None, key: bytes, vault_id: VaultId, label: str
) -> PeerId:
    from vaultfs.cli.async_calls import completed  # noqa: PLC0415  # trio takes long to load
    from vaultfs.mesh.first_contact import pair  # noqa: PLC0415

    return completed(
        partial(pair, identity, address, expected, key, vault_id, label),
        lambda: f"no answer yet from the peer at {address}; waiting for it",
    )


def _what_changed(now: KnownPeer, before: KnownPeer | None) -> str:
    """What has become of the address book, in one line.

    Args:
        now: the entry.
        before: as it was; None: there was none.
    """
    if before is None:
        return f"Added the peer {peer_title(now)}: {format_peer_id(now.id)}"
    changes = []
    if now.address != before.address:
        changes.append(f"its address was {before.address}")
    if now.zone != before.zone:
        zone = f"its zone is {now.zone!r} now" if now.zone else "it has no zone any more"
        changes.append(f"{zone}, and was {before.zone!r}" if before.zone else f"{zone}, and it had none")
    if not changes:
        return f"The peer {peer_title(now)} was added before; nothing was changed."
    return printable(f"Changed the peer {peer_title(now)}: {'; '.join(changes)}")


def _tell(identity: Identity, meant: MeshVault, vault: str, visited: Visited, done: str) -> None:
    if visited.error is not None:
        error_line(f"warning: {visited.error}; {done} all the same")
    state = None if visited.visit is None else visited.visit.state
    if state is not None:
        say(
            f"It knows this machine, and has room for {format_size(state.free_bytes)}."
            if state.may_write
            else "It knows this machine, which may read there, but store nothing."
        )
    elif visited.visit is not None:
        say("It does not know this machine yet, or not for this vault; run there:")
        say(f"  {acceptance(identity, meant.vault_id)}")
    else:
        say("So that it knows this machine, run there:")
        say(f"  {acceptance(identity, meant.vault_id)}")
    if meant.layout is not None:
        say(f"Copy the vault to its peers with: vaultfs mesh replicate {vault}")
