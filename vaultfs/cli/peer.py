"""``vaultfs peer``: the machines that hold copies of a vault for each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vaultfs.cli.output import emit_json, say
from vaultfs.cli.peer_add import add
from vaultfs.cli.peer_grants import accept, accepted, confirm_device, pair, revoke
from vaultfs.cli.peer_list import list_, ping, remove
from vaultfs.cli.peer_serve import serve
from vaultfs.errors import UsageError
from vaultfs.mesh.identity import Identity, format_peer_id, require_identity
from vaultfs.mesh.places import identity_path


def init(*, json: bool = False) -> int:
    """Make the identity of this machine: a key, whose hash is the id by which other peers know it.

    Args:
        json: Print JSON.
    """
    path = identity_path()
    known = Identity.load(path)
    if known is not None:
        raise UsageError(f"this machine has an identity already, {format_peer_id(known.peer_id)}, in {path}")
    made = Identity.new()
    made.save(path)
    if json:
        emit_json({"id": format_peer_id(made.peer_id), "path": str(path)})
        return 0
    say("This machine is the peer:")
    say(f"  {format_peer_id(made.peer_id)}")
    return 0


def id_(*, json: bool = False) -> int:
    """Print the id of this machine as a peer.

    Args:
        json: Print JSON.
    """
    text = format_peer_id(require_identity(identity_path()).peer_id)
    if json:
        emit_json({"id": text})
    else:
        say(text)
    return 0


SUBVERBS: Mapping[str, Callable[..., int]] = {
    "init": init,
    "id": id_,
    "serve": serve,
    "accept": accept,
    "revoke": revoke,
    "accepted": accepted,
    "pair": pair,
    "confirm-device": confirm_device,
    "add": add,
    "list": list_,
    "remove": remove,
    "ping": ping,
}
