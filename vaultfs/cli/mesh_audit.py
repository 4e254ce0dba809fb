"""``vaultfs mesh audit``: do peers have what they say they have?  No password is needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

from cyclopts import Parameter

from vaultfs.cli.mesh_work import MeshWork, asked
from vaultfs.cli.output import counted, emit_json, error_line, note, printable, say, table
from vaultfs.cli.sizes import format_size
from vaultfs.errors import ExitCode, UsageError
from vaultfs.ids import SegmentName
from vaultfs.mesh.asking import worst_of
from vaultfs.mesh.audit_questions import AuditReport
from vaultfs.mesh.auditing import DEFAULT_SAMPLES, MOST_SAMPLES, PeerAudit, Verdict, chance_of_finding, remember
from vaultfs.mesh.auditor import Auditor
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.identity import format_peer_id, short_peer_id
from vaultfs.mesh.local_segments import LocalSegments

_SHOWN: Final = 20
"""Failures of a peer that are printed; JSON has more."""
_LOST_SHARE: Final = 0.01


def audit(
    vault: str,
    /,
    *,
    peer: str | None = None,
    samples: int | None = None,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    json: bool = False,
) -> int:
    """Let peers prove that they have the segments and shares they say they have: random parts, by keyed hashes.

    What they answer is compared with the vault on this machine, and where it has not a segment itself, with what
    other peers answer. It costs some KiB for each peer, besides the list of what it has; for shares of segments that
    are not here up to 64 MiB in all. No password is needed.

    Args:
        vault: The vault's directory, a folder where it is mounted, or a vault's id.
        peer: Audit this peer only: its id, or its first 8 characters or more.
        samples: How many ranges, of 4 to 64 KiB, each peer has to prove; 200 if not given.
        every: Ask for one range of every segment and share.
        json: Print JSON.
    """
    count = DEFAULT_SAMPLES if samples is None else samples
    if not 1 <= count <= MOST_SAMPLES:
        raise UsageError(f"--samples: {count} is not from 1 to {MOST_SAMPLES}; --all asks for everything")
    if every and samples is not None:
        raise UsageError("--all and --samples exclude each other: --all asks for one range of every segment and share")
    work = MeshWork.of(vault)
    wanted = [each.id for each in work.page.peers] if peer is None else [work.page.peer(peer).id]
    needed = _needed(work)
    local = LocalSegments(work.vault.layout)

    async def run(client: MeshClient) -> AuditReport:
        auditor = Auditor(client, work.page, local, needed, scratch=work.scratch())
        return await auditor.run(wanted, None if every else count)

    report = asked(work, run)
    audits = list(report.peers.values())
    standing = work.file.load()
    remember(standing, audits, time.time_ns())
    work.file.save(standing)
    if all(each.verdict is Verdict.UNANSWERED for each in audits):
        raise worst_of([each.error for each in audits if each.error is not None], "a proof")
    if json:
        emit_json(_as_json(work.page, report))
    else:
        _show(work.page, report)
    return _exit_code(audits)


def _needed(work: MeshWork) -> dict[SegmentName, int]:
    """The segments that manifests here name, and their sizes; a damaged manifest says nothing."""
    found: dict[SegmentName, int] = {}
    here = work.here()
    if here is None:
        return found
    for manifest in here.manifests:
        content = here.content(manifest)
        if content is not None:
            found.update(content[1].segments)
    return found


def _exit_code(audits: Sequence[PeerAudit]) -> ExitCode:
    verdicts = {each.verdict for each in audits}
    if Verdict.FAILED in verdicts:
        return ExitCode.INTEGRITY
    return ExitCode.PARTIAL if verdicts & {Verdict.UNANSWERED, Verdict.UNPROVEN} else ExitCode.OK


def _as_json(page: VaultPeers, report: AuditReport) -> dict[str, Any]:
    addresses = {peer.id: str(peer.address) for peer in page.peers}
    return {
        "vault_id": page.vault_id.hex(),
        "peers": [
            {
                "id": format_peer_id(each.peer),
                "address": addresses[each.peer],
                "verdict": each.verdict.name.lower(),
                "claimed_segments": each.claimed_segments,
                "claimed_bytes": each.claimed_bytes,
                "claimed_shares": each.claimed_shares,
                "claimed_share_bytes": each.claimed_share_bytes,
                "asked": each.asked,
                "proven": each.proven,
                "uncompared": each.uncompared,
                "chance_of_finding_1_percent": _chance(each),
                "failures": [failure._asdict() for failure in each.failures],
                "error": None if each.error is None else str(each.error),
            }
            for each in report.peers.values()
        ],
        "proof_bytes": report.proof_bytes,
        "fetched_bytes": report.fetched_bytes,
    }


def _chance(audit: PeerAudit) -> float:
    if audit.is_complete and not audit.uncompared:
        return 1.0
    return chance_of_finding(_LOST_SHARE, audit.proven)


def _show(page: VaultPeers, report: AuditReport) -> None:
    addresses = {peer.id: str(peer.address) for peer in page.peers}
    rows = [
        (
            short_peer_id(each.peer),
            printable(addresses[each.peer]),
            _claims_text(each),
            str(each.proven),
            each.verdict.value,
        )
        for each in report.peers.values()
    ]
    table(("PEER", "ADDRESS", "CLAIMS", "PROVEN", "RESULT"), rows, right=(3,))
    for each in report.peers.values():
        _tell(each)
    proven = [each for each in report.peers.values() if each.verdict is Verdict.PROVEN]
    if proven:
        least = min(proven, key=_chance)
        percent = min(99, round(_chance(least) * 100))
        what = f"with a probability of {percent} %" if _chance(least) < 1 else "for certain"
        kinds = " and ".join(
            word
            for word, is_there in (
                ("segments", any(each.claimed_segments for each in proven)),
                ("shares", any(each.claimed_shares for each in proven)),
            )
            if is_there
        )
        say(f"A peer that had lost 1 % of the {kinds} it claims would have been found {what}.")
    fetched = f", and {format_size(report.fetched_bytes)} to compare" if report.fetched_bytes else ""
    say(f"Questions and proofs took {format_size(report.proof_bytes)}{fetched}.")


def _claims_text(audit: PeerAudit) -> str:
    parts = []
    if audit.claimed_segments or not audit.claimed_shares:
        parts.append(f"{counted(audit.claimed_segments, 'segment')}, {format_size(audit.claimed_bytes)}")
    if audit.claimed_shares:
        parts.append(f"{counted(audit.claimed_shares, 'share')}, {format_size(audit.claimed_share_bytes)}")
    return "; ".join(parts)


def _tell(audit: PeerAudit) -> None:
    name = f"peer {short_peer_id(audit.peer)}"
    for failure in audit.failures[:_SHOWN]:
        part = "" if failure.share is None else f"share {failure.share} of "
        say(f"{name}: {part}segment {failure.segment[:16]}: {failure.reason}")
    if len(audit.failures) > _SHOWN:
        say(f"{name}: and more, of {counted(audit.asked, 'range')}")
    if audit.failures:
        note(f"{name} does not have all that it says; 'vaultfs mesh repair' stores its share elsewhere")
    if audit.uncompared:
        note(
            f"{name}: {counted(audit.uncompared, 'answer')} could be compared with nothing: this machine does not have "
            "these segments, and too few other peers that answer have them, or shares of them"
        )
    if audit.error is not None:
        error_line(str(audit.error))
