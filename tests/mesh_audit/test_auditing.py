"""What is drawn, how likely it finds a loss, and what is remembered: without peers."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.mesh.auditing import (
    LARGEST_RANGE_BYTES,
    MOST_FAILURES,
    MOST_SAMPLES,
    SMALLEST_RANGE_BYTES,
    PeerAudit,
    Verdict,
    chance_of_finding,
    draw_everywhere,
    draw_probes,
    questions,
    remember,
)
from vaultfs.mesh.messages import MOST_AUDITED_BYTES, MOST_RANGES, Range
from vaultfs.mesh.standing import PeerStanding, Standing, StandingFile

from .peers import peer_id

NOW_NS = 1_700_000_000 * 10**9


def claims_of(*sizes: int) -> dict[SegmentName, int]:
    return {SegmentName(f"{number:064x}"): size for number, size in enumerate(sizes)}


def test_ranges_lie_within_segments_and_bounds() -> None:
    draw = random.Random(1)
    claims = claims_of(1, 100, SMALLEST_RANGE_BYTES, SMALLEST_RANGE_BYTES + 1, LARGEST_RANGE_BYTES, 1 << 20, 64 << 20)
    probes = draw_probes(claims, 7000, draw)
    assert Counter(probe.segment for probe in probes) == dict.fromkeys(claims, 1000)
    lengths = [probe.length for probe in probes if probe.size_bytes == 64 << 20]
    assert min(lengths) < SMALLEST_RANGE_BYTES * 1.2
    assert max(lengths) > LARGEST_RANGE_BYTES * 0.98
    for probe in probes:
        assert probe.size_bytes == claims[probe.segment]
        assert min(probe.size_bytes, SMALLEST_RANGE_BYTES) <= probe.length <= LARGEST_RANGE_BYTES
        assert 0 <= probe.offset <= probe.size_bytes - probe.length
    assert probes[0].range == Range(bytes.fromhex(probes[0].segment), probes[0].offset, probes[0].length)


def test_offsets_reach_both_ends_and_all_between() -> None:
    probes = draw_probes(claims_of(1 << 20), 5000, random.Random(2))
    assert min(probe.offset for probe in probes) < 1000
    assert max(probe.offset + probe.length for probe in probes) > (1 << 20) - 1000
    assert len({probe.offset >> 16 for probe in probes}) == 16


@pytest.mark.parametrize("samples", [1, 9, 10, 11, 25, 30])
def test_no_segment_comes_twice_before_all_came_once(samples: int) -> None:
    claims = claims_of(*[1 << 20] * 10)
    probes = draw_probes(claims, samples, random.Random(samples))
    assert len(probes) == samples
    counts = Counter(dict.fromkeys(claims, 0))
    counts.update(probe.segment for probe in probes)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_what_is_drawn_cannot_be_foreseen() -> None:
    claims = claims_of(*[1 << 20] * 50)
    assert draw_probes(claims, 20, random.Random(1)) != draw_probes(claims, 20, random.Random(2))
    order = [probe.segment for probe in draw_everywhere(claims, random.Random(3))]
    assert sorted(order) == sorted(claims)
    assert order != sorted(claims)


def test_nothing_claimed_nothing_asked() -> None:
    assert draw_probes({}, 200, random.Random(1)) == []
    assert draw_everywhere({}, random.Random(1)) == []


def test_questions_are_within_the_limits_of_the_protocol() -> None:
    probes = draw_probes(claims_of(*[64 << 20] * 700), 700, random.Random(1))
    asked = list(questions(probes))
    assert [probe for question in asked for probe in question] == probes
    assert [len(question) for question in asked] == [256, 256, 188]
    assert MOST_RANGES * LARGEST_RANGE_BYTES <= MOST_AUDITED_BYTES


def test_chance_of_finding_a_loss() -> None:
    assert chance_of_finding(0.01, 200) == pytest.approx(0.866, abs=0.001)
    assert chance_of_finding(0.0, 200) == 0.0
    assert chance_of_finding(1.0, 1) == 1.0
    assert chance_of_finding(0.01, 0) == 0.0


@pytest.mark.parametrize(("segments", "lost", "samples"), [(1000, 10, 200), (1000, 50, 20), (40, 1, 10)])
def test_losses_are_found_at_least_as_often_as_promised(segments: int, lost: int, samples: int) -> None:
    draw = random.Random(segments + samples)
    claims = claims_of(*[1 << 20] * segments)
    gone = set(draw.sample(sorted(claims), lost))
    trials = 600
    found = sum(any(probe.segment in gone for probe in draw_probes(claims, samples, draw)) for _ in range(trials))
    promised = chance_of_finding(lost / segments, samples)
    assert found / trials >= promised - 0.05


# --- verdicts, and what is remembered


def audit_of(*, asked: int = 200, proven: int = 200, failed: bool = False, **settings: object) -> PeerAudit:
    audit = PeerAudit(peer_id(0), claimed_segments=300, claimed_bytes=1, asked=asked, proven=proven)
    for name, value in settings.items():
        setattr(audit, name, value)
    if failed:
        audit.fail(SegmentName("ab" * 32), "it is not there")
    return audit


def test_verdicts() -> None:
    away = RemoteUnreachableError("away")
    assert audit_of().verdict is Verdict.PROVEN
    assert audit_of(failed=True).verdict is Verdict.FAILED
    assert audit_of(failed=True, error=away).verdict is Verdict.FAILED
    assert audit_of(error=away).verdict is Verdict.UNANSWERED
    assert audit_of(proven=0, uncompared=200).verdict is Verdict.UNPROVEN
    assert PeerAudit(peer_id(0)).verdict is Verdict.EMPTY


def test_failures_of_a_peer_are_bounded() -> None:
    audit = PeerAudit(peer_id(0))
    for _ in range(MOST_FAILURES + 10):
        audit.fail(SegmentName("ab" * 32), "gone")
    assert len(audit.failures) == MOST_FAILURES


def test_a_failure_is_remembered_until_as_much_is_proved() -> None:
    standing = Standing({peer_id(0): PeerStanding(1, 2, 3)})
    remember(standing, [audit_of(failed=True)], NOW_NS)
    assert standing.of(peer_id(0)) == PeerStanding(NOW_NS, 2, 3, NOW_NS, 200, NOW_NS)
    remember(standing, [audit_of(proven=199)], NOW_NS + 1)
    assert standing.of(peer_id(0)).failed_audit_ns == NOW_NS
    remember(standing, [audit_of(error=RemoteUnreachableError("away"))], NOW_NS + 2)
    assert standing.of(peer_id(0)).failed_audit_ns == NOW_NS
    remember(standing, [audit_of(proven=0, uncompared=200)], NOW_NS + 2)
    assert standing.of(peer_id(0)).failed_audit_ns == NOW_NS
    remember(standing, [audit_of()], NOW_NS + 3)
    assert standing.of(peer_id(0)) == PeerStanding(NOW_NS + 3, 2, 3, audited_ns=NOW_NS + 3)


def test_a_smaller_failure_does_not_make_a_larger_one_forgotten() -> None:
    standing = Standing()
    remember(standing, [audit_of(asked=1000, failed=True)], NOW_NS)
    remember(standing, [audit_of(asked=10, failed=True)], NOW_NS + 1)
    assert standing.of(peer_id(0)) == PeerStanding(NOW_NS + 1, 0, 0, NOW_NS + 1, 1000, NOW_NS + 1)
    remember(standing, [audit_of(proven=999)], NOW_NS + 2)
    assert standing.of(peer_id(0)).failed_audit_ns


def test_what_is_remembered_can_be_proved_by_choosing_so_many() -> None:
    """However many segments there were when all were asked for."""
    standing = Standing()
    remember(standing, [audit_of(asked=10 * MOST_SAMPLES, failed=True)], NOW_NS)
    remember(standing, [audit_of(proven=MOST_SAMPLES - 1)], NOW_NS)
    assert standing.of(peer_id(0)).failed_audit_ns == NOW_NS
    remember(standing, [audit_of(proven=MOST_SAMPLES)], NOW_NS)
    assert not standing.of(peer_id(0)).failed_audit_ns
    assert not standing.of(peer_id(0)).failed_audit_samples


def test_who_holds_nothing_is_left_as_it_was() -> None:
    standing = Standing({peer_id(0): PeerStanding(1, 2, 3, 4, 5)})
    remember(standing, [PeerAudit(peer_id(0))], NOW_NS)
    assert standing.of(peer_id(0)) == PeerStanding(1, 2, 3, 4, 5)


# --- commands that run at the same time


def test_a_sync_that_began_before_an_audit_does_not_forget_it(tmp_path: Path) -> None:
    file = StandingFile(tmp_path / "state" / "mesh.json")
    file.save(Standing({peer_id(0): PeerStanding(1, 2, 3)}))
    sync = file.load()
    audit = file.load()
    remember(audit, [audit_of(failed=True)], NOW_NS)
    audit.note(peer_id(0), newest_seq=9)
    audit.note(peer_id(1), newest_seq=4)
    file.save(audit)
    sync.note(peer_id(0), seen_ns=NOW_NS + 5, capacity_bytes=7)
    sync.short = {SegmentName("ab" * 32)}
    file.save(sync)
    found = file.load()
    assert found.of(peer_id(0)) == PeerStanding(NOW_NS + 5, 7, 9, NOW_NS, 200, NOW_NS)
    assert found.of(peer_id(1)).newest_seq == 4
    assert found.short == sync.short
    # and the next audit, which proves as much, counts
    remember(found, [audit_of()], NOW_NS + 6)
    file.save(found)
    file.save(sync)
    assert file.load().of(peer_id(0)) == PeerStanding(NOW_NS + 5, 7, 9, audited_ns=NOW_NS + 6)
