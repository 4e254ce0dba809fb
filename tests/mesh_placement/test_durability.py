"""The simulation and the formulas agree where both can be seen, and the schemes come in the order that they should.

Failures are some hundred times more frequent than real ones, or nothing would be seen.  Seeds are fixed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from .durability import (
    YEAR_H,
    Mesh,
    Outcome,
    Simulation,
    expected_loss_per_year,
    expected_vault_losses_per_year,
    markov_loss_per_year,
)
from .durability_tables import formula_tables, ran, simulated_tables

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "mesh-durability.md"

TWO = Mesh(peers=200, segments=400, shares=2, enough=1, mttf_h=250, repair_every_h=24, grace_h=12)
THREE = replace(TWO, shares=3)
FOUR_OF_SEVEN = replace(TWO, shares=7, enough=4)


outcome_of = functools.cache(ran)


def assert_agrees(mesh: Mesh, outcome: Outcome, *, doubt: float = 0.05) -> None:
    """Four deviations, and what the formula itself may be wrong by."""
    expected = expected_loss_per_year(mesh) * mesh.segments * outcome.hours / YEAR_H
    assert outcome.lost > 20
    assert abs(outcome.lost - expected) < 4 * max(outcome.deviation, math.sqrt(expected)) + doubt * expected


@pytest.mark.parametrize(
    ("mesh", "hours"), [(TWO, 400), (THREE, 1000), (FOUR_OF_SEVEN, 400)], ids=["R=2", "R=3", "4 of 7"]
)
def test_simulation_and_formula_agree(mesh: Mesh, hours: float) -> None:
    assert_agrees(mesh, outcome_of(mesh, hours))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize(
    ("mesh", "hours"),
    [
        (TWO, 4000),
        (replace(TWO, mttf_h=2000), 60_000),
        (replace(TWO, grace_h=0, repair_every_h=48), 4000),
        (replace(TWO, peers=500, segments=1000), 1000),
        (THREE, 4000),
        (replace(THREE, mttf_h=1000), 60_000),
        (replace(THREE, grace_h=0, repair_every_h=48), 4000),
        (FOUR_OF_SEVEN, 1500),
        (replace(FOUR_OF_SEVEN, mttf_h=500), 8000),
        (replace(FOUR_OF_SEVEN, peers=30, segments=50), 10_000),
    ],
    ids=repr,
)
def test_simulation_and_formula_agree_over_longer_times(mesh: Mesh, hours: float, seed: int) -> None:
    assert_agrees(mesh, outcome_of(mesh, hours, seed))


def test_more_copies_lose_less() -> None:
    """A window takes a tenth of a life here, so R = 3 loses some tenth of what R = 2 loses."""
    two, three, four_of_seven = (
        outcome_of(mesh, hours) for mesh, hours in ((TWO, 400), (THREE, 1000), (FOUR_OF_SEVEN, 400))
    )
    assert 5 < two.lost_per_segment_year / three.lost_per_segment_year < 15
    # Peers that die so often are nobody's; here four of seven shares are hardly better than two copies.
    assert 0.3 < four_of_seven.lost_per_segment_year / two.lost_per_segment_year < 1.5
    assert 3 < two.lost_per_segment_year < 8


def test_with_less_frequent_failures_shares_overtake_copies() -> None:
    """R = 2 loses with the square of the failures' frequency, R = 3 with the third power, 4 of 7 with the fourth."""
    two = outcome_of(replace(TWO, mttf_h=500), 600)
    four_of_seven = outcome_of(replace(FOUR_OF_SEVEN, mttf_h=500), 600)
    assert 3 < two.lost_per_segment_year / four_of_seven.lost_per_segment_year < 12
    assert 2.5 < outcome_of(TWO, 400).lost_per_segment_year / two.lost_per_segment_year < 6
    assert 6 < outcome_of(FOUR_OF_SEVEN, 400).lost_per_segment_year / four_of_seven.lost_per_segment_year < 25


@pytest.mark.long
def test_at_a_hundredth_four_of_seven_lose_less_than_three_copies() -> None:
    three = outcome_of(replace(THREE, mttf_h=2000), 200_000)
    four_of_seven = outcome_of(replace(FOUR_OF_SEVEN, mttf_h=2000), 200_000)
    assert three.lost > four_of_seven.lost > 5


def test_the_formula_at_rates_that_are_real() -> None:
    """Peers that live for three years, and copies replaced within three days."""
    mttf_h = 3 * YEAR_H
    two, three, four_of_seven = (markov_loss_per_year(*scheme, mttf_h, 72) for scheme in ((2, 1), (3, 1), (7, 4)))
    assert two == pytest.approx(2 * 72 / YEAR_H / 9)
    assert three == pytest.approx(3 * (72 / YEAR_H) ** 2 / 27)
    assert four_of_seven == pytest.approx(140 * (72 / YEAR_H) ** 3 / 81)
    assert two > 100 * three > 500 * four_of_seven


@pytest.mark.parametrize("scheme", [(2, 1), (3, 1), (7, 4)])
def test_intervals_and_markov_agree_when_windows_are_short(scheme: tuple[int, int]) -> None:
    shares, enough = scheme
    by_grace = Mesh(100, 100, shares, enough, YEAR_H, 1e-3, 24)
    assert expected_loss_per_year(by_grace) == pytest.approx(markov_loss_per_year(*scheme, YEAR_H, 24), rel=0.03)
    # Without grace the mean of a power is more than the power of the mean: 2^m / (m + 1) times.
    lost = shares - enough
    by_interval = Mesh(100, 100, shares, enough, 100 * YEAR_H, 48)
    assert expected_loss_per_year(by_interval) == pytest.approx(
        2**lost / (lost + 1) * markov_loss_per_year(*scheme, 100 * YEAR_H, 24), rel=0.01
    )


@functools.cache
def family(shares: int) -> Mesh:
    return Mesh(peers=7, segments=50, shares=shares, enough=1, mttf_h=1000, repair_every_h=24, grace_h=24)


@pytest.mark.parametrize(("shares", "hours"), [(2, 60_000), (3, 80_000)])
def test_a_vault_of_a_few_peers(shares: int, hours: float) -> None:
    """The formula for vaults is an upper bound: it takes copies for spread evenly, and old peers hold more."""
    mesh = family(shares)
    outcome = outcome_of(mesh, hours)
    expected = expected_vault_losses_per_year(mesh) * hours / YEAR_H
    deviation = math.sqrt(expected)
    assert expected / 2 - 3 * deviation < len(outcome.losses) < expected + 3 * deviation


def test_one_seed_is_one_history() -> None:
    mesh = replace(TWO, peers=30, segments=60, present_h=40, absent_h=8, copies_per_h=0.5, zones=3, zone_mttf_h=500)
    one, again, other = (Simulation(mesh, seed) for seed in (1, 1, 2))
    assert one.run(500) == again.run(500) != other.run(500)
    for each in (one, other):
        each.check()
    assert one.run(500).hours == 500


def queueing_mesh(copies_per_h: float) -> Simulation:
    """Five peers that live for ever, after the death of one that leaves some 40 copies to be made, 24 h from now."""
    simulation = Simulation(Mesh(5, 100, 2, 1, 1e9, 24, copies_per_h=copies_per_h), 1)
    simulation._die([simulation._peers[0]])
    return simulation


def test_a_peer_takes_no_more_than_its_line_carries() -> None:
    simulation = queueing_mesh(0.1)
    # Two copies each, after 10 and 20 hours, from every repair to the next.
    assert [simulation.run(10).copies for _ in range(6)] == [0, 0, 0, 5, 5, 5]
    assert simulation.run(480).copies > 20
    simulation.check()
    assert simulation.run(240).plans == 0


def test_what_is_interrupted_is_sent_again() -> None:
    simulation = queueing_mesh(1)
    simulation.run(24.5)
    *others, alone = simulation._peers
    for each in others:
        each.absent_since_h = 24.5
    # Neither does anybody take a copy who is away, nor is one read from there.
    assert simulation.run(23).copies == 0
    for each in others:
        each.absent_since_h = None
    assert simulation.run(24).copies > 30
    simulation.check()
    assert all(count == 2 for count in simulation._copies.values())
    assert alone.held


def test_patience_saves_traffic() -> None:
    """Peers are away for 8 hours in 48; with a grace period that covers most absences little is sent in vain."""
    mesh = Mesh(50, 200, 2, 1, 2000, 12, 0, present_h=40, absent_h=8)
    hasty, patient = outcome_of(mesh, 1500), outcome_of(replace(mesh, grace_h=48), 1500)
    assert hasty.copies > 10 * patient.copies
    # What is needed at least: all that a peer holds, each time one dies.
    assert 0.7 < patient.copies / (patient.deaths * 200 * 2 / 50) < 1.4


def test_slow_lines_lose_more() -> None:
    mesh = replace(TWO, peers=50, mttf_h=1000)
    quick, slow = outcome_of(mesh, 2000), outcome_of(replace(mesh, copies_per_h=0.1), 2000)
    assert quick.lost < slow.lost < 3 * quick.lost


def test_old_peers_hold_more_so_it_matters_who_dies() -> None:
    """Copies are left where they are, so they gather on peers that live long: good if those are the solid ones."""
    mesh = replace(TWO, peers=100, segments=300, mttf_h=500)
    young, old = outcome_of(replace(mesh, shape=0.7), 1500), outcome_of(replace(mesh, shape=1.5), 1500)
    assert young.deaths == pytest.approx(old.deaths, rel=0.2)
    assert young.lost < 0.8 * old.lost


def test_a_burnt_house_takes_nothing_with_it_if_the_placement_knows_of_it() -> None:
    mesh = Mesh(40, 200, 2, 1, 1000 * YEAR_H, 24, 24, zones=4, zone_mttf_h=2000)
    known, unknown = outcome_of(mesh, 30_000), outcome_of(replace(mesh, are_zones_known=False), 30_000)
    assert known.deaths == unknown.deaths > 50
    assert known.lost == 0
    assert unknown.lost > 30


def test_the_document_shows_what_the_formulas_give() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for block in formula_tables():
        assert block in text


@pytest.mark.long
def test_the_document_shows_what_the_simulation_gives() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for block in simulated_tables():
        assert block in text
