"""``vaultfs peer accept | revoke | accepted | pair | confirm-device``: on the machine that stores, who may use it.

All of them change or read files that the server looks at; it need not run, and is not restarted.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

from vaultfs.cli.dates import format_moment
from vaultfs.cli.mesh_vault import parse_vault_id
from vaultfs.cli.output import counted, emit_json, note, printable, say, table
from vaultfs.cli.sizes import format_size, parse_size
from vaultfs.errors import UsageError
from vaultfs.mesh.confirmations import Confirmations, Confirmed
from vaultfs.mesh.grants import LARGEST_LABEL_CHARACTERS, Grant, Grants
from vaultfs.mesh.identity import Identity, format_peer_id, parse_peer_id, require_identity, short_peer_id
from vaultfs.mesh.pairing import ANY_VAULT, LONGEST_MINUTES, Pairings
from vaultfs.mesh.peer_words import meant_peer
from vaultfs.mesh.places import confirmations_path, default_store, grants_path, identity_path, pairing_path
from vaultfs.storage.private_files import make_private_directory

_ANY: Final = "any"
_DEVICE: Final = re.compile(r"[0-9a-fA-F]{64}")


def accept(
    peer: str,
    /,
    *,
    vault: str | None = None,
    read: bool = False,
    quota: str | None = None,
    label: str | None = None,
    json: bool = False,
) -> int:
    """Let a peer store a vault on this machine, or any vault.

    Given again for the same peer and vault, it replaces what was said before.

    Args:
        peer: The id of the peer, as 'vaultfs peer id' prints it there.
        vault: The id of the one vault; any vault if not given.
        read: Let him only read what is here.
        quota: What he may store at most, in all vaults together, as in 500G; as much as the whole store if not given.
        label: What to call him.
        json: Print JSON.
    """
    peer_id = parse_peer_id(peer)
    own = Identity.load(identity_path())
    if own is not None and own.peer_id == peer_id:
        raise UsageError("that is the id of this machine; what is to be accepted is that of the other")
    grant = Grant(
        peer_id,
        None if vault is None else parse_vault_id(vault, "--vault"),
        "read" if read else "write",
        parse_quota(quota),
        require_label(label),
        time.time_ns(),
    )
    make_private_directory(grants_path().parent)
    grants = Grants(grants_path())
    grants.add(grant)
    if json:
        emit_json(_as_json(grant))
        return 0
    what = "any vault" if grant.vault is None else f"the vault {grant.vault.hex()}"
    limit = "" if grant.quota_bytes is None or read else f", up to {format_size(grant.quota_bytes)} in all"
    say(f"The peer {_called(grant)} may {'read' if read else 'store'} {what} here{limit}.")
    single = [each for each in grants.all() if each.peer == peer_id and each.vault is not None]
    if grant.vault is None and single:
        note(
            f"what was said before of {counted(len(single), 'single vault')} counts first there; 'vaultfs peer "
            "accepted' shows it, and 'vaultfs peer revoke' with --vault ends it"
        )
    return 0


def revoke(peer: str, /, *, vault: str | None = None, json: bool = False) -> int:
    """End what a peer may do on this machine, at once. What he has stored stays.

    Args:
        peer: The id of the peer, or its first 8 characters or more.
        vault: End it for this vault only, or for 'any'; for all if not given.
        json: Print JSON.
    """
    grants = Grants(grants_path())
    known = grants.all()
    peer_id = meant_peer(peer, dict.fromkeys(grant.peer for grant in known), "the list of those who are accepted")
    wanted = None if vault is None or vault == _ANY else parse_vault_id(vault, "--vault")
    if vault is not None and not any(grant.peer == peer_id and grant.vault == wanted for grant in known):
        raise UsageError(f"the peer {short_peer_id(peer_id)} is not accepted for {vault}; see 'vaultfs peer accepted'")
    count = grants.remove(peer_id, wanted, every=vault is None)
    if json:
        emit_json({"id": format_peer_id(peer_id), "revoked": count})
    else:
        say(f"Revoked {counted(count, 'grant')} of the peer {short_peer_id(peer_id)}.  What he has stored here stays.")
    return 0


def accepted(*, json: bool = False) -> int:
    """List who may store on this machine, and what.

    Args:
        json: Print JSON.
    """
    grants = Grants(grants_path()).all()
    if json:
        emit_json({"grants": [_as_json(grant) for grant in grants]})
    elif not grants:
        say("No peer is accepted.")
    else:
        table(("ID", "LABEL", "VAULT", "MAY", "QUOTA", "SINCE"), [_row(grant) for grant in grants], right=(4,))
    return 0


def pair(
    *,
    vault: str | None = None,
    read: bool = False,
    minutes: int = 10,
    quota: str | None = None,
    label: str | None = None,
    json: bool = False,
) -> int:
    """Show a code, with which another machine is accepted by this one, once and for some minutes.

    On the other machine the code is typed, at the prompt of 'vaultfs peer add VAULT HOST'. Whoever has the code first
    is accepted, so tell it to nobody else.

    Args:
        vault: The id of the vault that may be stored; the one that the other machine asks for if not given.
        read: Let the other machine only read what is here.
        minutes: So long the code counts, 1 to 1440.
        quota: What the other machine may store at most, in all vaults together, as in 500G.
        label: What to call the other machine; what it calls itself if not given.
        json: Print JSON.
    """
    own = require_identity(identity_path())
    if not 1 <= minutes <= LONGEST_MINUTES:
        raise UsageError(f"--minutes: {minutes} is not from 1 to {LONGEST_MINUTES}")
    wanted = ANY_VAULT if vault is None else parse_vault_id(vault, "--vault")
    code = Pairings(pairing_path()).offer(
        vault=wanted,
        may_write=not read,
        quota_bytes=parse_quota(quota),
        label=require_label(label),
        minutes=minutes,
    )
    if json:
        emit_json({"code": code, "minutes": minutes, "id": format_peer_id(own.peer_id)})
        return 0
    say(f"The pairing code, which counts once, and for {counted(minutes, 'minute')}:")
    say(f"  {code}")
    say("On the other machine, while 'vaultfs peer serve' runs here: vaultfs peer add VAULT HOST")
    return 0


def confirm_device(vault_id: str, device: str, /, *, json: bool = False) -> int:
    """Let a device of a vault delete on this machine now, instead of after seven days.

    Only an order that a device of the vault has signed deletes anything. The device that stored first is known. One
    that turns up later, as after 'vaultfs key rotate', has to wait, so that nobody who stole a machine can empty its
    peers before somebody notices. Confirm only what the vault's owner has told you.

    Args:
        vault_id: The id of the vault.
        device: The key of the device in 64 digits, which the refused command has shown.
        json: Print JSON.
    """
    vault = parse_vault_id(vault_id, "VAULT-ID")
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"DEVICE: {device!r} is no key of a device, which has 64 hexadecimal digits")
    Confirmations(confirmations_path()).add(Confirmed(vault, bytes.fromhex(device)))
    from vaultfs.mesh.replica_vault import remembered_devices  # noqa: PLC0415  # no other verb here needs the store

    is_seen = bytes.fromhex(device) in remembered_devices(default_store(), vault)
    if json:
        emit_json({"vault_id": vault.hex(), "device": device.lower(), "is_seen": is_seen})
        return 0
    say(f"The device {device.lower()} may delete of the vault {vault.hex()}.")
    say("'vaultfs peer serve' takes that up within some seconds, or when it is started.")
    if not is_seen:
        note(
            "no snapshot of that device is known here: if the peer stores elsewhere (--store), or none came yet, that "
            "is right; else compare the 64 digits once more"
        )
    return 0


def parse_quota(text: str | None) -> int | None:
    """Bytes from ``--quota``; None: none was given.

    Raises:
        UsageError: it is no size, or larger than any disk.
    """
    if text is None:
        return None
    quota = parse_size(text, "--quota")
    if quota >= 1 << 63:
        raise UsageError(f"--quota: {text} is larger than any disk")
    return quota


def require_label(label: str | None) -> str:
    """What a peer is to be called; nothing if that was not said.

    Raises:
        UsageError: it cannot be called so.
    """
    if label is None:
        return ""
    if len(label) > LARGEST_LABEL_CHARACTERS or not label.isprintable():
        raise UsageError(f"--label: at most {LARGEST_LABEL_CHARACTERS} printable characters")
    return label


def _called(grant: Grant) -> str:
    return short_peer_id(grant.peer) + (f" ({printable(grant.label)})" if grant.label else "")


def _row(grant: Grant) -> tuple[str, ...]:
    return (
        format_peer_id(grant.peer),
        printable(grant.label),
        _ANY if grant.vault is None else grant.vault.hex(),
        "store" if grant.may_write else "read",
        "" if grant.quota_bytes is None else format_size(grant.quota_bytes),
        format_moment(grant.added_ns)[:10],
    )


def _as_json(grant: Grant) -> dict[str, Any]:
    return {
        "id": format_peer_id(grant.peer),
        "label": grant.label,
        "vault_id": None if grant.vault is None else grant.vault.hex(),
        "may_write": grant.may_write,
        "quota_bytes": grant.quota_bytes,
        "added_ns": grant.added_ns,
    }
