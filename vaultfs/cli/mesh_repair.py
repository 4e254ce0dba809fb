"""``vaultfs mesh repair``: bring what has too few copies to the peers that are to have it; trim what is too much."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import trio
from cyclopts import Parameter

from vaultfs.cli.mesh_lacks import SHOWN, lacks_json, tell_lacks
from vaultfs.cli.mesh_trim import require_told, show_trimmed, signer, surplus_of, tell_surplus, trim, trimmed_json
from vaultfs.cli.mesh_work import MeshWork, asked
from vaultfs.cli.output import counted, emit_json, error_line, say
from vaultfs.cli.progress import Progress, ProgressStyle, progress
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sizes import format_size, parse_duration
from vaultfs.cli.targets import check_connections, parse_rate
from vaultfs.errors import ExitCode, UsageError
from vaultfs.mesh.client import MeshClient, Signer
from vaultfs.mesh.coded_repair import CodedRepair
from vaultfs.mesh.health import incomplete
from vaultfs.mesh.identity import format_peer_id, short_peer_id
from vaultfs.mesh.local_copy import LocalCopy
from vaultfs.mesh.looking import Look, Lookout
from vaultfs.mesh.repairing import Planned, Repair, Repaired
from vaultfs.mesh.spreading import Spread, Spreader
from vaultfs.mesh.surplus import Surplus
from vaultfs.mesh.trimming import Trimmed
from vaultfs.remotes.limiting import TokenBucket


@dataclass
class Mended:
    """What a repair found, did, and left.

    Attributes:
        before: as it was.
        after: as it is; the same in a dry run.
        plan: of a dry run.
        repaired: what was copied.
        spread: what was put on all peers.
        surplus: what is too much, and was not to be trimmed.
        trimmed: what was deleted; None: nothing was to be.
    """

    before: Look
    after: Look
    plan: Planned | None
    repaired: Repaired
    spread: Spread
    surplus: Sequence[Surplus] = ()
    trimmed: Trimmed | None = None


def repair(
    vault: str,
    /,
    *,
    grace: str = "0",
    dry_run: bool = False,
    wants_trim: Annotated[bool, Parameter(name="--trim", negative="")] = False,
    bwlimit: str | None = None,
    connections: int = 4,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Bring what has too few copies to peers that lack it, from this disk or from other peers.

    Needed is what the snapshots on the peers need. No password is asked for, but with --trim: peers delete only what
    the vault's key has signed. What was copied stays, also if this is interrupted.

    Args:
        vault: A vault, a folder where one is mounted, or the 32 digits of a vault's id.
        grace: Peers that were there so lately, as in 36h or 7d, count as if they were.
        dry_run: Copy and delete nothing; tell what would be.
        wants_trim: Then delete copies and shares beyond those there are to be, when these were proved to be there.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        connections: So many copies at once.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from, with --trim.
    """
    check_connections(connections)
    grace_ns = int(parse_duration(grace, "--grace") * 1e9)
    rate = parse_rate(bwlimit)
    work = MeshWork.of(vault)
    if secret is not None and secret.given() and not (wants_trim and not dry_run):
        raise UsageError(f"{secret.given()[0]} goes with --trim; without it, and with --dry-run, no password is needed")
    if wants_trim:
        require_told(work)
    sign = signer(work, secret) if wants_trim and not dry_run else None
    style: ProgressStyle = "none" if quiet or dry_run else "json" if json else "auto"
    with work.locked():
        mended = mend(
            work,
            progress(f"repair {vault}", style, resumable=True),
            grace_ns=grace_ns,
            dry_run=dry_run,
            rate=rate,
            connections=connections,
            wants_trim=wants_trim,
            sign=sign,
        )
    if json:
        emit_json(mended_json(work, mended))
    else:
        show(work, mended)
    return mended_exit_code(mended)


class _NotAllError(Exception):
    """Something is left undone, so the progress does not end with a success."""


def mend(
    work: MeshWork,
    bar: Progress,
    *,
    grace_ns: int,
    dry_run: bool,
    rate: int | None,
    connections: int,
    wants_trim: bool = False,
    sign: Signer | None = None,
) -> Mended:
    """Look, repair, and look again.

    Args:
        work: the vault and its peers, locked.
        bar: shows the progress.
        grace_ns: peers that were there so lately count as if they were.
        dry_run: only look, and plan.
        rate: bytes per second; None: no limit.
        connections: copies at once.
        wants_trim: then delete what is too much.
        sign: signs the orders for that; None: only tell what would be deleted.

    Raises:
        KeyboardInterrupt, Terminated: a signal came; what was copied stays.
        VaultError: no peer answers, or this machine's disk failed.
    """
    bucket = None if rate is None else TokenBucket(rate)

    async def run(client: MeshClient) -> Mended:
        run = _Run(client, work, bar, bucket, connections)
        mended = await run.mend(grace_ns=grace_ns, dry_run=dry_run)
        return await run.trim(mended, sign) if wants_trim else mended

    with suppress(_NotAllError), bar:
        mended = asked(work, run, hurry=_no_hurry if bucket is None else bucket.open)
        if not mended.after.health.is_safe:
            raise _NotAllError
    return mended


class _Run:
    """One run, with a client."""

    def __init__(
        self, client: MeshClient, work: MeshWork, bar: Progress, bucket: TokenBucket | None, connections: int
    ) -> None:
        self._client: Final = client
        self._work: Final = work
        self._bar: Final = bar
        self._bucket: Final = bucket
        self._connections: Final = connections
        self._lookout: Lookout | None = None
        self._here: LocalCopy | None = None

    async def mend(self, *, grace_ns: int, dry_run: bool) -> Mended:
        """Look, repair, and look again."""
        client, work = self._client, self._work
        self._here = here = await trio.to_thread.run_sync(work.here)
        self._lookout = lookout = Lookout(client, work.page, work.file, here, work.shelf, grace_ns=grace_ns)
        before = await lookout.look()
        before.survey.require_any()
        run = self._repair(before)
        if dry_run:
            return Mended(before, before, run.planned(), Repaired(), Spread(), surplus_of(work, before, lookout))
        repaired = await run.run()
        spreader = Spreader(client, work.page.vault_id, before.survey, lookout.reader, lookout.manifests)
        spread = await spreader.run(
            before.needs,
            incomplete(before.needs, before.survey),
            before.headers,
            None if here is None else here.header.data,
        )
        after = await lookout.look()
        return Mended(before, after, None, repaired, spread, surplus_of(work, after, lookout))

    async def trim(self, mended: Mended, sign: Signer | None) -> Mended:
        """Delete what is too much; what a peer has lost meanwhile is made again."""
        lookout = self._lookout
        assert lookout is not None, "it was looked before"
        trimmed = await trim(self._client, self._work, mended.after, lookout, sign, self._bar)
        if sign is None:
            return replace(mended, surplus=(), trimmed=trimmed)
        after = await lookout.look()
        if trimmed.segments & after.health.short.keys():  # a peer was lost while others were being trimmed
            again = await self._repair(after).run()
            mended.repaired.copies += again.copies
            mended.repaired.bytes += again.bytes
            mended.repaired.errors.update(again.errors)
            after = await lookout.look()
        return replace(mended, after=after, surplus=(), trimmed=trimmed)

    def _repair(self, look: Look) -> Repair | CodedRepair:
        work, lookout = self._work, self._lookout
        assert lookout is not None, "it was looked before"
        layout, local = work.vault.layout, frozenset() if self._here is None else frozenset(self._here.segments)
        placement, needed = lookout.placement(look), look.needs.segments
        if look.kept.coding is not None:
            return CodedRepair(
                self._client,
                work.page,
                look.kept.coding,
                look.survey,
                look.claims,
                placement,
                needed,
                layout=layout,
                local=local,
                scratch=work.scratch(),
                report=self._bar,
                at_once=self._connections,
            )
        return Repair(
            self._client,
            work.page,
            look.survey,
            look.claims,
            placement,
            needed,
            layout=layout,
            local=local,
            scratch=work.scratch(),
            take=_no_limit if self._bucket is None else self._bucket.take,
            report=self._bar,
            at_once=self._connections,
        )


def _no_limit(_count: int) -> None:
    """Nobody has to wait."""


def _no_hurry() -> None:
    """Nobody waits."""


def mended_exit_code(mended: Mended) -> ExitCode:
    """15 if something needed is nowhere, 3 if something has too few copies or a peer lacks what is small.

    Of what was to be trimmed: 15 if a peer failed to prove what it says, 3 if something stays.
    """
    health, trimmed = mended.after.health, mended.trimmed
    if health.lost or (trimmed is not None and trimmed.audits):
        return ExitCode.INTEGRITY
    is_trimmed = trimmed is None or not (trimmed.errors or trimmed.unproven)
    return ExitCode.OK if health.is_safe and is_trimmed else ExitCode.PARTIAL


def show(work: MeshWork, mended: Mended) -> None:
    """The outcome for people; what is wrong on standard error."""
    plan, done, spread = mended.plan, mended.repaired, mended.spread
    if plan is not None:
        size = format_size(plan.bytes)
        say(
            f"would copy {counted(plan.segments, 'segment')}, {size}" if plan.segments else "no segment would be copied"
        )
        for peer, count in sorted(plan.bytes_to.items()):
            say(f"  to peer {short_peer_id(peer)}: {format_size(count)}")
    else:
        parts = []
        if done.copies:
            what = counted(done.copies, "segment" if mended.before.kept.coding is None else "share")
            parts.append(f"copied {what}, {format_size(done.bytes)}")
        if spread.heads or spread.headers or spread.notes:
            small = counted(spread.heads, "manifest")
            parts.append(f"sent {small}{' and vault.json' if spread.headers else ''}")
        say("; ".join(parts) if parts else "nothing had to be copied")
    for name in sorted(done.damaged_here)[:SHOWN]:
        error_line(f"the segment {name} is damaged on this machine; 'vaultfs mesh fetch --check' mends it from peers")
    for peer, names in sorted(done.wrong.items()):
        error_line(
            f"peer {short_peer_id(peer)} has not, or has other bytes of, {counted(len(names), 'segment')} that it says "
            "it holds; 'vaultfs mesh audit' asks it for proof"
        )
    for failure in done.failures[:SHOWN]:
        error_line(str(failure))
    if mended.trimmed is not None:
        show_trimmed(mended.trimmed, is_dry=plan is not None)
    tell_surplus(mended.surplus)
    tell_lacks(work, mended.after, {**spread.errors, **done.errors})


def mended_json(work: MeshWork, mended: Mended) -> dict[str, Any]:
    """The outcome for machines."""
    plan, done, spread = mended.plan, mended.repaired, mended.spread
    errors = {**spread.errors, **done.errors}
    return {
        "vault_id": work.page.vault_id.hex(),
        "dry_run": plan is not None,
        "planned_segments": None if plan is None else plan.segments,
        "planned_bytes": None if plan is None else plan.bytes,
        "copied_segments": done.copies,
        "copied_bytes": done.bytes,
        "sent_manifests": spread.heads,
        "sent_headers": spread.headers,
        "damaged_here": sorted(done.damaged_here),
        "wrong": {format_peer_id(peer): sorted(names) for peer, names in done.wrong.items()},
        "errors": {format_peer_id(peer): str(error) for peer, error in errors.items()},
        **({} if mended.trimmed is None else trimmed_json(mended.trimmed)),
        **lacks_json(mended.after),
    }
