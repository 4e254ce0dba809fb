"""``vaultfs mesh repair --trim``: delete what peers hold beyond what there is to be.  They want a signature."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import trio

from vaultfs.cli.mesh_work import MeshWork
from vaultfs.cli.output import counted, error_line, note, say
from vaultfs.cli.remote_place import RemotePlace
from vaultfs.cli.secret_sources import SecretOptions
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import Stores
from vaultfs.errors import UsageError
from vaultfs.mesh.auditing import remember
from vaultfs.mesh.client import MeshClient, Signer
from vaultfs.mesh.identity import format_peer_id, short_peer_id
from vaultfs.mesh.local_segments import LocalSegments
from vaultfs.mesh.looking import Look, Lookout
from vaultfs.mesh.repairing import Report
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.store import mesh_url
from vaultfs.mesh.surplus import Surplus, find_surplus
from vaultfs.mesh.trimming import Trimmed, Trimming

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN: Final = 20


def require_told(work: MeshWork) -> None:
    """See that it is known how many copies there are to be: more than a guess says another machine may want.

    Raises:
        UsageError: nobody has said so on this machine.
    """
    if not work.page.is_told:
        raise UsageError(
            "--trim: nobody has said on this machine how many copies or shares there are to be, so what is too many; "
            f"say it with 'vaultfs mesh replicate {work.word} --replicas N', or --coding K/N"
        )


def signer(work: MeshWork, secret: SecretOptions | None) -> Signer:
    """Asks for the password, and signs orders to delete with the vault's key.

    Raises:
        VaultError: there is no secret, or it does not open the vault.
    """
    from vaultfs.cli.delete_orders import SignedOrders  # noqa: PLC0415  # loads ciphers

    place = RemotePlace(work.word, mesh_url(work.page.vault_id), {}, work.vault.layout)
    with Stores() as stores:
        return SignedOrders.unlock(place, stores, secret).sign


def surplus_of(work: MeshWork, look: Look, lookout: Lookout) -> list[Surplus]:
    """What could go; nothing where nobody has said how much there is to be."""
    if not work.page.is_told:
        return []
    views = [look.survey.views[peer] for peer in look.claims.present]
    return find_surplus(look.needs.segments, views, lookout.placement(look), work.page.replicas, look.kept.coding)


async def trim(
    client: MeshClient, work: MeshWork, look: Look, lookout: Lookout, sign: Signer | None, report: Report
) -> Trimmed:
    """Delete what is too much, as far as the rest is proved.

    Args:
        client: to ask with.
        work: the vault and its peers, locked.
        look: at the peers, as they are now.
        lookout: that made it.
        sign: signs the orders; None: nothing is deleted.
        report: is told how far it is.

    Raises:
        VaultError: as `Trimming.run`.
    """
    trimmed = await Trimming(
        client,
        work.page,
        surplus_of(work, look, lookout),
        LocalSegments(work.vault.layout),
        look.needs.segments,
        sign=sign,
        scratch=work.scratch(),
        report=report,
    ).run()
    if trimmed.audits:

        def note_failures() -> None:
            standing = work.file.load()
            remember(standing, trimmed.audits.values(), time.time_ns())
            work.file.save(standing)

        await trio.to_thread.run_sync(note_failures)
    return trimmed


def show_trimmed(trimmed: Trimmed, *, is_dry: bool) -> None:
    """The outcome for people; what is wrong on standard error."""
    parts = [
        counted(count, word).replace("copys", "copies")
        for count, word in ((trimmed.copies, "copy"), (trimmed.shares, "share"))
        if count
    ]
    would = "would delete" if is_dry else "deleted"
    if parts:
        say(f"{would} {' and '.join(parts)} too many, {format_size(trimmed.bytes)}")
    else:
        say("there is nothing to delete" if not trimmed.unproven else "nothing was deleted")
    if trimmed.unproven:
        note(
            f"what is too much of {counted(len(trimmed.unproven), 'segment')} stays, as peers did not prove all that "
            "has to be there"
        )
    for peer, audit in sorted(trimmed.audits.items()):
        failure = audit.failures[0]
        part = "" if failure.share is None else f"share {failure.share} of "
        error_line(f"peer {short_peer_id(peer)}: {part}segment {failure.segment[:16]}: {failure.reason}")
    for error in list(trimmed.errors.values())[:_SHOWN]:
        error_line(str(error))


def tell_surplus(surplus: Sequence[Surplus]) -> None:
    """A line about what could go."""
    pieces = [piece for each in surplus for piece in each.spare]
    if pieces:
        shares = sum(isinstance(piece.held, ShareKey) for piece in pieces)
        copies = len(pieces) - shares
        parts = [
            counted(count, word).replace("copys", "copies")
            for count, word in ((copies, "copy"), (shares, "share"))
            if count
        ]
        size = format_size(sum(piece.size_bytes for piece in pieces))
        note(f"peers have {' and '.join(parts)} too many, {size}; 'vaultfs mesh repair --trim' deletes them")


def trimmed_json(trimmed: Trimmed) -> dict[str, Any]:
    """The outcome for machines."""
    return {
        "trimmed_copies": trimmed.copies,
        "trimmed_shares": trimmed.shares,
        "trimmed_bytes": trimmed.bytes,
        "trimmed_segments": len(trimmed.segments),
        "untrimmed_segments": len(trimmed.unproven),
        "trim_errors": {format_peer_id(peer): str(error) for peer, error in trimmed.errors.items()},
        "trim_failed_proofs": sorted(format_peer_id(peer) for peer in trimmed.audits),
    }
