"""Prints the tables of docs/mesh-durability.md: ``scripts/durability``.  Seeds are fixed, so they come out the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from .durability import (
    YEAR_H,
    Mesh,
    Outcome,
    Simulation,
    expected_loss_per_year,
    expected_vault_losses_per_year,
    markov_loss_per_year,
)

SCHEMES: Final = {"R = 2": (2, 1), "R = 3": (3, 1), "4 of 7": (7, 4)}
DAY_H: Final = 24.0
WINDOWS_H: Final = {"6 hours": 6.0, "1 day": 24.0, "3 days": 72.0, "1 week": 168.0, "2 weeks": 336.0, "1 month": 730.0}

_TOP, _BOTTOM = -1, -13
"""Powers of ten, of the chart."""


def formula_tables() -> Iterator[str]:
    """What follows from the formulas."""
    yield table(["copies replaced after", *(f"{name}, {years} y" for years in (3, 1) for name in SCHEMES)], _windows())
    yield _chart(mttf_h=3 * YEAR_H)
    yield table(["peers", "replaced after", *SCHEMES], _vaults())


def simulated_tables() -> Iterator[str]:
    """What the simulation gave."""
    yield table(["scheme", "D / MTTF", "lost", "±", "formula, intervals", "formula, Markov"], _agreement())
    yield table(["grace", "lost per segment and year", "formula", "copies sent per segment and year"], _graces())
    yield table(["a peer takes, segments per hour", "lost per segment and year"], _bandwidths())
    yield table(["the placement", "zones lost", "segments lost", "zones with which segments were lost"], _zones())


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def chance(rate: float) -> str:
    """The chance that something happens in a year, to two digits."""
    value = -math.expm1(-rate)
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}" if value >= 0.001 else f"{value:.0e}"


def ran(mesh: Mesh, hours: float, seed: int = 1) -> Outcome:
    """Simulate, after a time in which the mesh comes to its ordinary state."""
    simulation = Simulation(mesh, seed)
    simulation.run(5 * (mesh.grace_h + mesh.repair_every_h))
    outcome = simulation.run(hours)
    simulation.check()
    return outcome


def _windows() -> Iterator[list[str]]:
    for label, window_h in WINDOWS_H.items():
        rates = [
            markov_loss_per_year(*scheme, years * YEAR_H, window_h) for years in (3, 1) for scheme in SCHEMES.values()
        ]
        yield [label, *map(chance, rates)]


def _chart(mttf_h: float) -> str:
    """One row a decade, one column a window; 2, 3 and E stand where the curves of the three schemes are."""
    windows = [1, 3, 6, 12, 24, 48, 96, 168, 336, 730]
    grid = {power: [" "] * len(windows) for power in range(_TOP, _BOTTOM - 1, -1)}
    for mark, scheme in zip("23E", SCHEMES.values(), strict=True):
        for column, window_h in enumerate(windows):
            power = round(math.log10(markov_loss_per_year(*scheme, mttf_h, window_h)))
            if power in grid:
                old = grid[power][column].strip()
                grid[power][column] = old + mark
    lines = [f"1e{power:+03d} |" + "".join(f"{cell:^5}" for cell in grid[power]) for power in grid]
    labels = ["1 h", "3 h", "6 h", "12 h", "1 d", "2 d", "4 d", "1 w", "2 w", "1 m"]
    lines += ["      +" + "-" * 5 * len(windows), "       " + "".join(f"{label:^5}" for label in labels)]
    return "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


def _vaults() -> Iterator[list[str]]:
    for peers in (5, 8, 12, 50):
        for label in ("1 day", "1 week"):
            cells = []
            for shares, enough in SCHEMES.values():
                # Repairs that take no time, so that the window is the grace period alone.
                mesh = Mesh(peers, 1000, shares, enough, 3 * YEAR_H, 1e-6, WINDOWS_H[label])
                cells.append(chance(expected_vault_losses_per_year(mesh)) if peers >= shares else "-")
            yield [str(peers), label, *cells]


def _agreement() -> Iterator[list[str]]:
    runs = {
        "R = 2": [(250.0, 2000), (500.0, 6000), (2000.0, 60_000)],
        "R = 3": [(250.0, 4000), (500.0, 20_000), (1000.0, 80_000)],
        "4 of 7": [(250.0, 1500), (500.0, 8000), (1000.0, 50_000)],
    }
    for name, (shares, enough) in SCHEMES.items():
        for mttf_h, hours in runs[name]:
            mesh = Mesh(200, 400, shares, enough, mttf_h, 24, 12)
            outcome = ran(mesh, hours)
            scale = mesh.segments * hours / YEAR_H
            markov = markov_loss_per_year(shares, enough, mttf_h, 24)
            yield [
                name,
                f"{24 / mttf_h:.3f}",
                str(outcome.lost),
                f"{outcome.deviation:.0f}",
                f"{expected_loss_per_year(mesh) * scale:.0f}",
                f"{markov * scale:.0f}",
            ]


def _graces() -> Iterator[list[str]]:
    for grace_h in (0, 12, 24, 48, 96):
        mesh = Mesh(50, 400, 2, 1, 2000, 12, grace_h, present_h=40, absent_h=8)
        outcome = ran(mesh, 20_000)
        yield [
            f"{grace_h} h",
            f"{outcome.lost_per_segment_year:.2f}",
            f"{expected_loss_per_year(mesh):.2f}",
            f"{outcome.copies_per_segment_year:.1f}",
        ]


def _bandwidths() -> Iterator[list[str]]:
    for copies_per_h in (math.inf, 1, 0.5, 0.2, 0.1):
        mesh = Mesh(50, 400, 2, 1, 1000, 24, 12, copies_per_h=copies_per_h)
        outcome = ran(mesh, 10_000)
        yield [
            "any number" if math.isinf(copies_per_h) else f"{copies_per_h:g}",
            f"{outcome.lost_per_segment_year:.2f}",
        ]


def _zones() -> Iterator[list[str]]:
    for label, are_known in (("knows the zones", True), ("does not", False)):
        mesh = Mesh(40, 400, 2, 1, 1000 * YEAR_H, 24, 24, zones=4, zone_mttf_h=YEAR_H, are_zones_known=are_known)
        outcome = ran(mesh, 50 * YEAR_H)
        yield [label, str(outcome.deaths // 10), str(outcome.lost), str(len(outcome.losses))]


def main() -> None:
    for block in (*formula_tables(), *simulated_tables()):
        print(block, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
