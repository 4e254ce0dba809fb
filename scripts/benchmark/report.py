"""Turns measurements into medians, ratios, a table in Markdown, JSON and a chart in SVG."""

from __future__ import annotations

import html
import json
import math
import statistics
from dataclasses import asdict, dataclass

from benchmark.inputs import Sizes
from benchmark.own import Figure
from benchmark.rows import Row
from benchmark.runner import Results
from benchmark.systems import ANCHORS


@dataclass(frozen=True)
class Conditions:
    """Under what conditions the run took place.

    Args:
        date: the day, ISO 8601.
        machine: processors, memory, kernel.
        versions: one line for each system.
        places: the kinds of filesystem below the vaults.
        rounds: how many.
        caches_dropped: the kernel's caches were dropped where a row says cold.
        quick: the small input was used, whose figures are for trying out only.
        sizes: how much each row did.
    """

    date: str
    machine: str
    versions: dict[str, str]
    places: str
    rounds: int
    caches_dropped: bool
    quick: bool
    sizes: Sizes


@dataclass(frozen=True)
class Line:
    """One row's outcome.

    Args:
        row: which row.
        medians: by system, in the row's unit; None for one that fails.
        better: the anchor with the smaller median; None if neither has one.
        ratio: its time over the time of vaultfs.
    """

    row: Row
    medians: dict[str, float | None]
    better: str | None
    ratio: float | None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None if it cannot be said."""
        return None if self.ratio is None else self.ratio >= self.row.target


def lines_of(rows: list[Row], systems: list[str], results: Results) -> list[Line]:
    """Return one line per row.  A system that failed in any round has no median in that row."""
    lines = []
    for row in rows:
        medians: dict[str, float | None] = {}
        for system in systems:
            times = results.times[row.key][system]
            failed = system in results.failures[row.key]
            medians[system] = None if failed or not times else statistics.median(times)
        known = {name: value for name in ANCHORS if (value := medians.get(name)) is not None}
        better = min(known, key=known.__getitem__, default=None)
        ours = medians.get("vaultfs")
        ratio = known[better] / ours if better and ours else None
        lines.append(Line(row, medians, better, ratio))
    return lines


def number(value: float) -> str:
    """Return three significant digits without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def verdict(reached: bool | None) -> str:
    """Return one word."""
    return {True: "yes", False: "no", None: "-"}[reached]


def markdown(
    lines: list[Line], figures: list[Figure], results: Results, conditions: Conditions, backups: str = ""
) -> str:
    """Return the whole report as Markdown.

    Args:
        lines: the rows that all systems share.
        figures: of vaultfs alone.
        results: what failed.
        conditions: of the run.
        backups: the tables about them and about the mesh, if there are any.
    """
    systems = list(lines[0].medians) if lines else []
    turns = f"{conditions.rounds} round{'s' if conditions.rounds != 1 else ''}"
    out = [f"Measured {conditions.date}, {conditions.machine}."]
    if lines:
        out += [
            f"Medians of {turns}, all systems in turn in one run on the same input; {conditions.places}.",
            "Ratio: time of the better of gocryptfs and securefs over time of vaultfs; above 1, vaultfs is faster.",
        ]
    if conditions.quick:
        out.append("**A quick run on small input: for trying out, not for quoting.**")
    if not conditions.caches_dropped:
        out.append(
            "**Without root the kernel's caches were not dropped: cold means unmounted and mounted again only.**"
        )
    if lines:
        out += ["", "| row | unit | " + " | ".join(systems) + " | ratio | wanted | reached |"]
        out.append("|---|---|" + "---:|" * len(systems) + "---:|---:|---|")
    for line in lines:
        cells = ["fails" if value is None else number(value) for value in line.medians.values()]
        ratio = "-" if line.ratio is None else f"{line.ratio:.2f}"
        out.append(
            f"| {line.row.title} | {line.row.unit} | {' | '.join(cells)} "
            f"| {ratio} | {line.row.target:g} | {verdict(line.reached)} |"
        )
    reasons = [
        f"- {system}, {row.title}: {results.failures[row.key][system]}"
        for row in (line.row for line in lines)
        for system in systems
        if system in results.failures[row.key]
    ]
    if reasons:
        out += ["", "What failed:", "", *reasons]
    if backups:
        out += ["", backups.rstrip()]
    if figures:
        out += ["", "| vaultfs alone | value | at most | reached | |", "|---|---:|---:|---|---|"]
    for figure in figures:
        value = "fails" if figure.value is None else f"{number(figure.value)} {figure.unit}".strip()
        limit = "-" if figure.limit is None else f"{figure.limit:g} {figure.unit}".strip()
        within = None if figure.value is None or figure.limit is None else figure.value <= figure.limit
        out.append(f"| {figure.title} | {value} | {limit} | {verdict(within)} | {figure.remark} |")
    out += ["", "Versions: " + "; ".join(f"{name}: {text}" for name, text in conditions.versions.items()) + "."]
    return "\n".join(out) + "\n"


def as_json(
    lines: list[Line],
    figures: list[Figure],
    results: Results,
    conditions: Conditions,
    backups: dict[str, object],
    peers: dict[str, object],
) -> str:
    """Return everything, every single time included, as JSON."""
    rows = {
        line.row.key: {
            "title": line.row.title,
            "unit": line.row.unit,
            "on_disk": line.row.on_disk,
            "times": {system: results.times[line.row.key][system] for system in line.medians},
            "medians": line.medians,
            "failures": results.failures[line.row.key],
            "better_anchor": line.better,
            "ratio": line.ratio,
            "target": line.row.target,
            "reached": line.reached,
        }
        for line in lines
    }
    whole = {
        "conditions": asdict(conditions),
        "rows": rows,
        "backups": backups,
        "mesh": peers,
        "vaultfs_alone": [asdict(figure) for figure in figures],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def chart(lines: list[Line]) -> str:
    """Return an SVG picture: a bar per row for the ratio, on a logarithmic scale, with a mark where it should reach."""
    left, width, step, low, high = 330, 420, 26, 0.25, 16.0
    height = 60 + step * len(lines)
    font = 'font-family="sans-serif" font-size="13"'

    def x(ratio: float) -> float:
        return left + width * math.log(min(max(ratio, low), high) / low) / math.log(high / low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height}" {font}>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="10" y="20" font-weight="bold">times as fast as the better of {" and ".join(ANCHORS)}</text>',
    ]
    for tick in (0.25, 0.5, 1, 2, 4, 8, 16):
        colour = "#444444" if tick == 1 else "#dddddd"
        out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="34" y2="{height - 22}" stroke="{colour}"/>')
        out.append(f'<text x="{x(tick):.1f}" y="{height - 6}" text-anchor="middle" fill="#666666">{tick:g}</text>')
    for index, line in enumerate(lines):
        y = 38 + step * index
        out.append(f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{html.escape(line.row.title)}</text>')
        if line.ratio is None:
            out.append(f'<text x="{left + 6}" y="{y + 14}" fill="#b3261e">no ratio</text>')
            continue
        colour = "#2e7d32" if line.reached else "#c77700"
        begin, end = sorted((x(1), x(line.ratio)))
        out.append(f'<rect x="{begin:.1f}" y="{y}" width="{end - begin:.1f}" height="18" fill="{colour}"/>')
        out.append(f'<text x="{max(end, x(1)) + 5:.1f}" y="{y + 14}">{line.ratio:.2f}</text>')
        mark = x(line.row.target)
        out.append(f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="{y - 2}" y2="{y + 20}" stroke="#000" stroke-width="2"/>')
    return "\n".join([*out, "</svg>"]) + "\n"
