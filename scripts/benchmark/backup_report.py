"""The backup table in Markdown and JSON."""

from __future__ import annotations

import statistics

from benchmark.backup import MEMORY_LIMIT_MIB, PUTS_PER_GIB_LIMIT, STEPS, Outcome, Outcomes, Step
from benchmark.backup_places import S3Place
from benchmark.backup_systems import VaultfsSync
from benchmark.inputs import MIB, Sizes
from benchmark.report import number, verdict


def backup_markdown(outcomes: Outcomes, sizes: Sizes, rounds: int, places: str) -> str:
    """Return the table and what there is to know of it."""
    out = [
        f"Backup of {sizes.backup_mib / 1024:.3g} GiB in {sizes.backup_files:,} files of random bytes, on {places}.",
        f"Medians of {rounds} round{'s' if rounds != 1 else ''}.  Seconds, and in brackets seconds of processor time.",
        "Ratio: time of the best other program over time of vaultfs.",
    ]
    names = list(dict.fromkeys(name for by_name in outcomes.values() for name in by_name))
    out += ["", "| to | step | " + " | ".join(names) + " | ratio | wanted | reached |"]
    out.append("|---|---|" + "---:|" * len(names) + "---:|---:|---|")
    for kind, by_name in outcomes.items():
        for step in STEPS:
            cells = [_cell(by_name[name], step) for name in names]
            found = ratio(by_name, step)
            shown = "-" if found is None else f"{found:.2f}"
            wanted = "-" if step.target is None else f"{step.target:g}"
            reached = None if found is None or step.target is None else found >= step.target
            out.append(f"| {kind} | {step.title} | {' | '.join(cells)} | {shown} | {wanted} | {verdict(reached)} |")
        out += [
            _line(kind, "peak memory of a backup, MiB",
                  {name: each.peak_mib or None for name, each in by_name.items()}, MEMORY_LIMIT_MIB),
            _line(kind, "peak memory of a restore, MiB",
                  {name: each.restore_peak_mib or None for name, each in by_name.items()}, None),
            _line(kind, "MiB stored by the first backup",
                  {name: each.first_bytes / MIB or None for name, each in by_name.items()}, None),
            _line(kind, "MiB added by 1 % of changes",
                  {name: each.changed_bytes / MIB or None for name, each in by_name.items()}, None),
        ]  # fmt: skip
        if kind == S3Place.kind:
            puts = {
                name: (each.first_puts or 0) / (each.first_bytes / 2**30) if each.first_bytes else None
                for name, each in by_name.items()
            }
            out.append(_line(kind, "PUT requests per GiB", puts, PUTS_PER_GIB_LIMIT))
    failures = [
        f"- {name} to {kind}: {each.failure}"
        for kind, by_name in outcomes.items()
        for name, each in by_name.items()
        if each.failure
    ]
    if failures:
        out += ["", "What failed:", "", *failures]
    return "\n".join(out) + "\n"


def _cell(outcome: Outcome, step: Step) -> str:
    usages = outcome.usages.get(step.key)
    if outcome.failure:
        return "fails"
    if not usages:
        return "-"
    wall_s = statistics.median(each.wall_s for each in usages)
    return f"{number(wall_s)} ({number(statistics.median(each.processor_s for each in usages))})"


def _line(kind: str, title: str, values: dict[str, float | None], limit: float | None) -> str:
    cells = ["-" if value is None else f"{value:.0f}" for value in values.values()]
    ours = values.get(VaultfsSync.name)
    reached = None if limit is None or ours is None else ours <= limit
    wanted = "-" if limit is None else f"at most {limit:g}"
    return f"| {kind} | {title} | {' | '.join(cells)} | - | {wanted} | {verdict(reached)} |"


def ratio(by_name: dict[str, Outcome], step: Step) -> float | None:
    """Return the time of the best other program over that of vaultfs; None if either is lacking."""
    medians = {
        name: statistics.median(each.wall_s for each in outcome.usages[step.key])
        for name, outcome in by_name.items()
        if outcome.usages.get(step.key) and not outcome.failure
    }
    ours = medians.pop(VaultfsSync.name, None)
    return min(medians.values()) / ours if ours and medians else None


def backup_json(outcomes: Outcomes) -> dict[str, object]:
    """Return everything that was measured."""
    return {
        kind: {
            name: {
                "rounds": {step: [usage.__dict__ for usage in usages] for step, usages in outcome.usages.items()},
                "peak_mib": outcome.peak_mib,
                "restore_peak_mib": outcome.restore_peak_mib,
                "first_bytes": outcome.first_bytes,
                "changed_bytes": outcome.changed_bytes,
                "first_puts": outcome.first_puts,
                "failure": outcome.failure,
            }
            for name, outcome in by_name.items()
        }
        for kind, by_name in outcomes.items()
    }
