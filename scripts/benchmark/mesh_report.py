"""The mesh table in Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmark.inputs import Sizes
from benchmark.mesh import AT_REST, COMMAND, RSYNC, RSYNC_SYNCED, SEGMENTS, SYSTEMS, MeshOutcome, Transfer
from benchmark.mesh_driver import FEWER, PLANNED_PEERS, PLANNED_SEGMENTS, REQUESTS, WAYS
from benchmark.report import number, verdict

LEAST_RATE = 300.0
LEAST_RATIO = 0.8
LEAST_GAIN = 5.0
PLAN_LIMIT_S = 1.0
MEMORY_LIMIT_MIB = 100.0

FLOOD_TITLES = {
    AT_REST: "one object of 32 MiB",
    "objects": "128 connections, each sending an object as fast as it is taken",
    "crumbs": "128 connections, each sending an object in frames of one byte",
    "unread-objects": "128 connections, each asking for an object and reading nothing",
    "unread-answers": "128 connections, asking 2,000 times each for 4,096 segments, reading nothing",
    "unread-listings": "128 connections, asking 2,000 times each for a listing, reading nothing",
    "half-frames": "128 connections, each with the longest frame but for its last byte",
    "long-frames": "128 connections, each with a frame that says it has 4 GiB",
    "listings": "8 connections, each listing {objects:,} objects",
    "audits": "8 connections, each asking for proofs of 64 MiB and more",
    "manifests": "4 manifests of 16 MiB at once",
}


def mesh_markdown(outcome: MeshOutcome, sizes: Sizes, rounds: int) -> str:
    """Return the table and what there is to know of it."""
    turns = f"{rounds} round{'s' if rounds != 1 else ''}"
    out = [
        f"Replication of {sizes.mesh_mib / 1024:.3g} GiB in sealed segments of 64 MiB to one peer on loopback, and of",
        f"the same files to rsync's daemon.  Medians of {turns}, all in turn.  MB/s, and in brackets seconds of",
        "processor time for each GB, of the sender and of the receiver.",
        "",
        f"| on | {' | '.join(_TITLES[name] for name in SYSTEMS)} |",
        "|---|" + "---:|" * len(SYSTEMS),
    ]
    for kind, by_name in outcome.transfers.items():
        out.append(f"| {kind} | {' | '.join(_cell(by_name.get(name)) for name in SYSTEMS)} |")
    out += ["", "| figure | value | wanted | reached |", "|---|---:|---:|---|", *_transfer_lines(outcome)]
    out += [*_request_lines(outcome), *_other_lines(outcome, sizes)]
    if outcome.requests:
        out += ["", f"| microseconds for each request | {' | '.join(WAYS)} |", "|---|" + "---:|" * len(WAYS)]
        for kind in REQUESTS:
            cells = [number(statistics.median(outcome.requests[f"{kind}, {way}"]) * 1e6) for way in WAYS]
            out.append(f"| {kind} | {' | '.join(cells)} |")
        counts = ", ".join(f"{way}: {sizes.mesh_requests // FEWER[way]:,}" for way in WAYS)
        out += ["", f"Requests made in each round, of each kind: {counts}."]
    if outcome.failures:
        out += ["", "What failed:", "", *(f"- {failure}" for failure in outcome.failures)]
    return "\n".join(out) + "\n"


_TITLES = {
    SEGMENTS: "vaultfs, the segments",
    COMMAND: "vaultfs mesh replicate, the whole command",
    RSYNC: "rsync -a --whole-file",
    RSYNC_SYNCED: "the same with --fsync",
}


def _cell(transfers: list[Transfer] | None) -> str:
    if not transfers:
        return "-"
    rate = statistics.median(each.rate for each in transfers)
    sides = [
        statistics.median(seconds / (each.sent_bytes / 1e9) for each, seconds in found)
        for found in (
            [(each, each.caller_s) for each in transfers],
            [(each, each.server_s) for each in transfers],
        )
    ]
    return f"{rate:.0f} ({sides[0]:.2f} + {sides[1]:.2f})"


def ratio_of(by_name: dict[str, list[Transfer]], ours: str, theirs: str) -> float | None:
    """Return the throughput of one system over that of another; None if either is lacking."""
    if not by_name.get(ours) or not by_name.get(theirs):
        return None
    medians = [statistics.median(each.rate for each in by_name[name]) for name in (ours, theirs)]
    return medians[0] / medians[1]


def _line(title: str, value: float | None, unit: str, wanted: float | None, *, is_least: bool) -> str:
    shown = "-" if value is None else f"{number(value)} {unit}".strip()
    bound = "-" if wanted is None else f"at {'least' if is_least else 'most'} {wanted:g} {unit}".strip()
    reached = None if value is None or wanted is None else value >= wanted if is_least else value <= wanted
    return f"| {title} | {shown} | {bound} | {verdict(reached)} |"


def _transfer_lines(outcome: MeshOutcome) -> Iterator[str]:
    for kind, by_name in outcome.transfers.items():
        if by_name.get(SEGMENTS):
            rate = statistics.median(each.rate for each in by_name[SEGMENTS])
            yield _line(f"segments on {kind}", rate, "MB/s", LEAST_RATE, is_least=True)
        for theirs, wanted in ((RSYNC, LEAST_RATIO), (RSYNC_SYNCED, None)):
            title = f"segments over {theirs}, on {kind}"
            yield _line(title, ratio_of(by_name, SEGMENTS, theirs), "", wanted, is_least=True)


def _request_lines(outcome: MeshOutcome) -> Iterator[str]:
    for kind in REQUESTS if outcome.requests else ():
        many, one, each = (statistics.median(outcome.requests[f"{kind}, {way}"]) for way in WAYS)
        yield _line(f"{kind}: a connection each over pooled, {WAYS[0]}", each / many, "", LEAST_GAIN, is_least=True)
        yield _line(f"{kind}: a connection each over pooled, {WAYS[1]}", each / one, "", None, is_least=True)


def _other_lines(outcome: MeshOutcome, sizes: Sizes) -> Iterator[str]:
    for key, title in (("first_s", "a first replication"), ("repair_s", "repair after the loss of two peers")):
        if outcome.plans:
            seconds = statistics.median(plan[key] for plan in outcome.plans)
            what = f"planning {title}: {PLANNED_PEERS} peers, {PLANNED_SEGMENTS:,} segments"
            yield _line(what, seconds, "s", PLAN_LIMIT_S, is_least=False)
    for key, title in FLOOD_TITLES.items():
        if key in outcome.peaks_mib:
            what = f"peak memory of a peer: {title.format(objects=sizes.mesh_objects)}"
            yield _line(what, outcome.peaks_mib[key], "MiB", MEMORY_LIMIT_MIB, is_least=False)


def mesh_json(outcome: MeshOutcome) -> dict[str, object]:
    """Return everything that was measured."""
    return {
        "transfers": {
            kind: {name: [each.__dict__ for each in transfers] for name, transfers in by_name.items()}
            for kind, by_name in outcome.transfers.items()
        },
        "requests": dict(outcome.requests),
        "plans": outcome.plans,
        "peaks_mib": outcome.peaks_mib,
        "failures": outcome.failures,
    }
