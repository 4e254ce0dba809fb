"""Audits of honest and of lying peers: who lies is found, who does not is never blamed, and little is transferred."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from vaultfs.ids import SegmentName
from vaultfs.mesh.audit_questions import AuditReport
from vaultfs.mesh.auditing import LARGEST_RANGE_BYTES, Verdict
from vaultfs.mesh.auditor import Auditor
from vaultfs.mesh.local_segments import LocalSegments
from vaultfs.mesh.messages import Range
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES

from .peers import ABSENT, Peer, Peers, made_up, peer_id

SIZE = 200_000
COUNT = 30


class Scene:
    """Some segments, peers that hold them, and perhaps this machine."""

    def __init__(self, where: Path, peers: int, *, is_here: bool) -> None:
        draw = random.Random(7)
        self.draw = random.Random(8)
        self.segments = dict(made_up(draw, SIZE + number) for number in range(COUNT))
        self.names = sorted(self.segments)
        self.mesh = Peers(peers)
        for name, data in self.segments.items():
            self.mesh.give(name, data, *range(peers))
        self.layout = VaultLayout(where / "vault")
        self.layout.root.mkdir(parents=True)
        self.layout.create_directories()
        self.needed: dict[SegmentName, int] = {}
        if is_here:
            self.needed = {name: len(data) for name, data in self.segments.items()}
            for name, data in self.segments.items():
                self.put(name, data)

    def put(self, name: SegmentName, data: bytes) -> None:
        path = self.layout.sealed_path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    async def audit(self, *numbers: int, samples: int | None = 100) -> AuditReport:
        local = LocalSegments(self.layout)
        auditor = Auditor(self.mesh, self.mesh.page, local, self.needed, scratch=self.layout.root, draw=self.draw)
        return await auditor.run([peer_id(number) for number in numbers or range(len(self.mesh.peers))], samples)

    def verdicts(self, report: AuditReport) -> list[Verdict | None]:
        found = [report.peers.get(peer) for peer in self.mesh.peers]
        return [None if audit is None else audit.verdict for audit in found]

    @property
    def fetches(self) -> int:
        return sum(peer.fetches for peer in self.mesh.peers.values())


@pytest.fixture
def here(tmp_path: Path) -> Scene:
    """The vault is on this machine, and on two peers."""
    return Scene(tmp_path, 2, is_here=True)


@pytest.fixture
def away(tmp_path: Path) -> Scene:
    """The vault is on three peers only."""
    return Scene(tmp_path, 3, is_here=False)


Lie = Callable[[bytes, Range, bytes], bytes]


def zeros(_key: bytes, _part: Range, _honest: bytes) -> bytes:
    return ABSENT


def noise(key: bytes, part: Range, honest: bytes) -> bytes:
    return bytes(byte ^ 1 for byte in honest)


def replay() -> Lie:
    """What was right for another key."""
    known = Peer()

    def answer(key: bytes, part: Range, honest: bytes) -> bytes:
        return known.honest(bytes(32), part)

    return answer


# --- with the vault on this machine


async def test_honest_peers_prove_all(here: Scene) -> None:
    report = await here.audit()
    assert here.verdicts(report) == [Verdict.PROVEN, Verdict.PROVEN]
    for audit in report.peers.values():
        assert (audit.asked, audit.proven, audit.uncompared, audit.failures) == (100, 100, 0, [])
        assert audit.claimed_segments == COUNT
        assert audit.claimed_bytes == sum(map(len, here.segments.values()))
        assert audit.is_complete


async def test_what_it_costs_is_bounded(here: Scene) -> None:
    report = await here.audit(samples=500)
    asked = [part for peer in here.mesh.peers.values() for part in peer.ranges]
    assert len(asked) == 2 * 500
    assert max(part.length for part in asked) <= LARGEST_RANGE_BYTES
    assert report.proof_bytes <= 2 * (500 * (49 + 32) + 2 * 100)
    assert report.proof_bytes > 2 * 500 * (32 + 32)
    assert report.fetched_bytes == here.fetches == 0


async def test_a_new_key_for_each_audit(here: Scene) -> None:
    keys = set()

    def note(key: bytes, part: Range, honest: bytes) -> bytes:
        keys.add(key)
        return honest

    here.mesh.at(0).proves = note
    for _ in range(3):
        await here.audit(0)
    assert len(keys) == 3
    assert {len(key) for key in keys} == {32}


async def test_a_peer_that_lost_one_segment_is_found_when_all_are_asked_for(here: Scene) -> None:
    lost = here.names[11]
    here.mesh.at(1).listed[lost] = len(here.mesh.at(1).segments.pop(lost))
    report = await here.audit(samples=None)
    assert here.verdicts(report) == [Verdict.PROVEN, Verdict.FAILED]
    (failure,) = report.peers[peer_id(1)].failures
    assert failure.segment == lost
    assert "has not" in failure.reason
    assert report.peers[peer_id(1)].asked == COUNT
    assert report.peers[peer_id(1)].proven == COUNT - 1


async def test_a_changed_byte_is_found(here: Scene) -> None:
    name = here.names[3]
    here.mesh.at(0).segments[name] = bytes(byte ^ 1 for byte in here.segments[name])
    report = await here.audit(samples=None)
    assert here.verdicts(report) == [Verdict.FAILED, Verdict.PROVEN]
    assert [failure.segment for failure in report.peers[peer_id(0)].failures] == [name]
    assert here.fetches == 0


@pytest.mark.parametrize("lie", [zeros, noise, replay()])
async def test_wrong_proofs(here: Scene, lie: Lie) -> None:
    here.mesh.at(0).proves = lie
    report = await here.audit()
    assert here.verdicts(report) == [Verdict.FAILED, Verdict.PROVEN]
    assert report.peers[peer_id(0)].proven == 0


async def test_a_wrong_size_is_a_lie_without_any_proof(here: Scene) -> None:
    name = here.names[0]
    here.mesh.at(0).listed[name] = len(here.segments[name]) - 1
    report = await here.audit(0)
    assert report.peers[peer_id(0)].verdict is Verdict.FAILED
    assert [failure.segment for failure in report.peers[peer_id(0)].failures] == [name]
    assert str(len(here.segments[name])) in report.peers[peer_id(0)].failures[0].reason


@pytest.mark.parametrize("size", [0, LARGEST_SEGMENT_BYTES + 1])
async def test_a_size_that_no_segment_has(away: Scene, size: int) -> None:
    away.mesh.at(0).listed[SegmentName("ab" * 32)] = size
    report = await away.audit(0)
    assert report.peers[peer_id(0)].verdict is Verdict.FAILED
    assert "no segment has" in report.peers[peer_id(0)].failures[0].reason


async def test_what_is_claimed_only_when_asked_for_is_audited_too(here: Scene) -> None:
    name = here.names[0]
    here.mesh.at(0).unlisted.add(name)
    report = await here.audit(0, samples=None)
    assert report.peers[peer_id(0)].claimed_segments == COUNT
    here.mesh.at(0).listed[name] = len(here.mesh.at(0).segments.pop(name))
    report = await here.audit(0, samples=None)
    assert [failure.segment for failure in report.peers[peer_id(0)].failures] == [name]


async def test_what_it_does_not_claim_is_not_asked_for(here: Scene) -> None:
    for name in here.names[:10]:
        del here.mesh.at(0).segments[name]
    report = await here.audit(0, samples=None)
    assert report.peers[peer_id(0)].verdict is Verdict.PROVEN
    assert report.peers[peer_id(0)].claimed_segments == COUNT - 10


async def test_who_claims_nothing(here: Scene) -> None:
    here.mesh.at(0).segments.clear()
    report = await here.audit()
    assert here.verdicts(report) == [Verdict.EMPTY, Verdict.PROVEN]
    assert not here.mesh.at(0).ranges


async def test_damage_on_this_machine_is_not_blamed_on_peers(here: Scene) -> None:
    name = here.names[5]
    here.put(name, bytes(len(here.segments[name])))
    report = await here.audit(samples=None)
    assert here.verdicts(report) == [Verdict.PROVEN, Verdict.PROVEN]
    assert {audit.proven for audit in report.peers.values()} == {COUNT}
    assert here.fetches == 0


async def test_damage_on_this_machine_and_on_a_peer(here: Scene) -> None:
    name = here.names[5]
    here.put(name, bytes(len(here.segments[name])))
    here.mesh.at(1).segments[name] = bytes(len(here.segments[name]))
    report = await here.audit(samples=None)
    assert here.verdicts(report) == [Verdict.PROVEN, Verdict.FAILED]


async def test_a_segment_of_another_length_here_is_no_proof(here: Scene) -> None:
    name = here.names[5]
    here.put(name, here.segments[name] + b"more")
    report = await here.audit(samples=None)
    assert here.verdicts(report) == [Verdict.PROVEN, Verdict.PROVEN]


# --- peers that cannot be asked


async def test_who_is_away_is_told_and_not_blamed(here: Scene) -> None:
    here.mesh.at(0).patience = 0
    report = await here.audit()
    assert here.verdicts(report) == [Verdict.UNANSWERED, Verdict.PROVEN]
    assert "cannot be reached" in str(report.peers[peer_id(0)].error)


async def test_who_leaves_in_the_middle(here: Scene) -> None:
    here.mesh.at(0).patience = 2  # the listing, one question of two
    report = await here.audit(samples=300)
    audit = report.peers[peer_id(0)]
    assert (audit.verdict, audit.asked, audit.proven) == (Verdict.UNANSWERED, 256, 256)


async def test_who_is_found_to_lie_before_it_leaves_has_failed(here: Scene) -> None:
    here.mesh.at(0).patience = 2
    here.mesh.at(0).proves = noise
    report = await here.audit(samples=300)
    assert here.verdicts(report) == [Verdict.FAILED, Verdict.PROVEN]


async def test_a_listing_that_is_none(here: Scene) -> None:
    here.mesh.at(0).strange.append("segments/ab/nonsense")
    report = await here.audit()
    assert here.verdicts(report) == [Verdict.UNANSWERED, Verdict.PROVEN]


# --- without the vault on this machine


async def test_peers_that_agree_are_believed(away: Scene) -> None:
    report = await away.audit()
    assert away.verdicts(report) == [Verdict.PROVEN] * 3
    assert {audit.proven for audit in report.peers.values()} == {100}
    assert away.fetches == 0
    assert sum(len(peer.ranges) for peer in away.mesh.peers.values()) == 2 * 3 * 100


async def test_one_peer_is_compared_with_others(away: Scene) -> None:
    report = await away.audit(1)
    assert away.verdicts(report) == [None, Verdict.PROVEN, None]


@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("lie", [zeros, noise, replay()])
async def test_the_liar_is_found_among_peers(away: Scene, liar: int, lie: Lie) -> None:
    away.mesh.at(liar).proves = lie
    report = await away.audit()
    expected = [Verdict.PROVEN] * 3
    expected[liar] = Verdict.FAILED
    assert away.verdicts(report) == expected
    assert {report.peers[peer_id(number)].proven for number in range(3) if number != liar} == {100}


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("lie", [zeros, noise])
async def test_the_other_one_is_found_to_lie_though_nobody_audited_it(away: Scene, asked: int, lie: Lie) -> None:
    away.mesh.at(2).proves = lie
    report = await away.audit(asked)
    assert report.peers[peer_id(asked)].verdict is Verdict.PROVEN
    assert report.peers[peer_id(asked)].proven == 100
    other = report.peers.get(peer_id(2))
    assert other is None or other.verdict is Verdict.FAILED
    assert away.verdicts(report)[1 - asked] is None


async def test_a_liar_costs_two_segments_at_most(away: Scene) -> None:
    away.mesh.at(0).proves = noise
    away.mesh.at(0).sends = lambda name: bytes(1000)
    report = await away.audit(samples=500)
    assert away.verdicts(report)[0] is Verdict.FAILED
    assert away.fetches <= 2
    assert report.fetched_bytes == sum(peer.sent_bytes for peer in away.mesh.peers.values()) <= SIZE + COUNT + 1000


async def test_two_liars_cost_four(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 4, is_here=False)
    for number in (0, 1):
        scene.mesh.at(number).proves = noise if number else lambda key, part, honest: honest[::-1]
        scene.mesh.at(number).sends = lambda name: bytes(1000)
    report = await scene.audit(samples=500)
    assert scene.verdicts(report) == [Verdict.FAILED, Verdict.FAILED, Verdict.PROVEN, Verdict.PROVEN]
    assert scene.fetches <= 4


@pytest.mark.parametrize(
    "sends",
    [
        lambda name: bytes(SIZE),
        lambda name: b"",
        lambda name: bytes(LARGEST_SEGMENT_BYTES + 1),
        lambda name: None,
    ],
    ids=["other bytes", "nothing", "without end", "missing"],
)
async def test_who_sends_something_else_lies(away: Scene, sends: Callable[[SegmentName], bytes]) -> None:
    away.mesh.at(1).proves = noise
    away.mesh.at(1).sends = sends
    report = await away.audit(1)
    assert away.verdicts(report) == [None, Verdict.FAILED, None]


async def test_wrong_proofs_of_bytes_that_are_right(away: Scene) -> None:
    """It could give the segment, but what it proved was something else."""
    away.mesh.at(1).proves = noise
    report = await away.audit(1, 2)
    assert away.verdicts(report) == [None, Verdict.FAILED, Verdict.PROVEN]


async def test_a_liar_that_gives_nothing_is_found_by_the_other_ones_segment(away: Scene) -> None:
    away.mesh.at(0).proves = noise
    away.mesh.at(0).patience = 2  # the listing, and the first proofs
    report = await away.audit(0)
    assert report.peers[peer_id(0)].verdict is Verdict.FAILED


async def test_when_neither_gives_the_segment_nobody_is_blamed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, is_here=False)
    scene.mesh.at(0).proves = noise
    scene.mesh.at(0).patience = 2
    scene.mesh.at(1).patience = 2  # what it has, and its proofs
    report = await scene.audit(0)
    assert scene.verdicts(report) == [Verdict.UNANSWERED, None]
    assert report.peers[peer_id(0)].uncompared == 100


async def test_a_peer_alone_is_compared_with_nobody(away: Scene) -> None:
    for number in (1, 2):
        away.mesh.at(number).segments.clear()
    report = await away.audit()
    assert away.verdicts(report) == [Verdict.UNPROVEN, Verdict.EMPTY, Verdict.EMPTY]
    assert report.peers[peer_id(0)].uncompared == 100


async def test_a_peer_alone_that_has_not_what_it_claims(away: Scene) -> None:
    for number in (1, 2):
        away.mesh.at(number).segments.clear()
    lost = away.names[0]
    away.mesh.at(0).listed[lost] = len(away.mesh.at(0).segments.pop(lost))
    report = await away.audit(0, samples=None)
    assert report.peers[peer_id(0)].verdict is Verdict.FAILED


async def test_each_range_is_compared_with_somebody_who_has_it(away: Scene) -> None:
    """One peer has all, the others a half each."""
    for number, name in enumerate(away.names):
        del away.mesh.at(1 + number % 2).segments[name]
    report = await away.audit(0, samples=None)
    audit = report.peers[peer_id(0)]
    assert (audit.verdict, audit.proven, audit.uncompared) == (Verdict.PROVEN, COUNT, 0)


async def test_the_next_is_asked_when_one_goes_away(away: Scene) -> None:
    for _ in range(5):  # whichever is asked first
        away.mesh.at(1).patience = 1  # what it has
        report = await away.audit(0)
        assert report.peers[peer_id(0)].proven == 100
        assert away.verdicts(report) == [Verdict.PROVEN, None, None]
    assert away.fetches == 0


async def test_absent_is_no_answer_that_has_to_be_settled(away: Scene) -> None:
    """Who says so itself need not be proved to lie, and no segment is fetched for it."""
    away.mesh.at(2).proves = zeros
    away.mesh.at(1).segments.clear()
    report = await away.audit(0)
    assert away.verdicts(report) == [Verdict.UNPROVEN, None, Verdict.FAILED]
    assert away.fetches == 0


async def test_who_has_failed_is_asked_last(tmp_path: Path) -> None:
    """The first one is found to lie by the second; then the others are enough for the third."""
    for _ in range(6):
        scene = Scene(tmp_path / str(_), 4, is_here=False)
        scene.draw = random.Random(_)
        scene.mesh.at(0).proves = noise
        await scene.audit(0)
        scene.mesh.at(0).ranges.clear()
        await scene.audit(0, 3)
        assert len(scene.mesh.at(0).ranges) == 100


async def test_who_has_failed_costs_no_more(away: Scene) -> None:
    """Once it is known to lie, nobody is asked for its sake."""
    away.mesh.at(0).proves = lambda key, part, honest: ABSENT if part.name[0] < 128 else honest
    await away.audit(0)
    assert len(away.mesh.at(0).ranges) == 100
    assert not away.mesh.at(1).ranges
    assert not away.mesh.at(2).ranges


async def test_where_a_liar_agrees_it_counts(tmp_path: Path) -> None:
    """It has all but one segment, and there is nobody else to compare with."""
    scene = Scene(tmp_path, 2, is_here=False)
    scene.mesh.at(0).segments[scene.names[0]] = bytes(len(scene.segments[scene.names[0]]))
    report = await scene.audit(samples=None)
    assert scene.verdicts(report) == [Verdict.FAILED, Verdict.PROVEN]
    honest = report.peers[peer_id(1)]
    assert (honest.proven, honest.uncompared) == (COUNT - 1, 1)


async def test_peers_that_differ_about_a_size(away: Scene) -> None:
    name = away.names[0]
    for number in (1, 2):
        away.mesh.at(number).segments = {name: away.segments[name]}
    away.mesh.at(0).segments = {name: away.segments[name][:-1]}
    report = await away.audit(0, samples=10)
    assert report.peers[peer_id(0)].verdict is Verdict.FAILED
    report = await away.audit(1, samples=10)
    assert report.peers[peer_id(1)].verdict is Verdict.PROVEN
    assert report.peers[peer_id(1)].proven == 10


async def test_who_did_not_answer_is_not_asked_again(away: Scene) -> None:
    away.mesh.at(0).patience = 0
    report = await away.audit()
    assert away.verdicts(report) == [Verdict.UNANSWERED, Verdict.PROVEN, Verdict.PROVEN]
    assert away.mesh.at(0).patience == -1


async def test_a_size_that_is_not_that_of_the_segment_here(tmp_path: Path) -> None:
    """No snapshot names it, so nobody can say that at once."""
    scene = Scene(tmp_path, 2, is_here=True)
    name = scene.names[0]
    scene.needed = {}
    scene.mesh.at(0).segments = {name: scene.segments[name][:-1]}
    report = await scene.audit(0, samples=10)
    assert scene.verdicts(report) == [Verdict.FAILED, None]


async def test_a_wrong_size_of_bytes_that_are_right(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, is_here=False)
    name = scene.names[0]
    for number in range(2):
        scene.mesh.at(number).segments = {name: scene.segments[name]}
    scene.mesh.at(0).listed[name] = len(scene.segments[name]) - 1
    report = await scene.audit(0, samples=3)
    assert scene.verdicts(report) == [Verdict.FAILED, None]


async def test_who_sends_without_end_lies_also_when_the_other_is_gone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, is_here=False)
    scene.mesh.at(0).proves = noise
    scene.mesh.at(0).sends = lambda name: bytes(LARGEST_SEGMENT_BYTES + 1)
    scene.mesh.at(1).patience = 2
    report = await scene.audit(0)
    assert scene.verdicts(report) == [Verdict.FAILED, None]


async def test_the_one_with_the_wrong_size_is_blamed_and_not_the_one_that_is_audited(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, is_here=False)
    name = scene.names[0]
    scene.mesh.at(0).segments = {name: scene.segments[name]}
    scene.mesh.at(1).segments = {name: scene.segments[name][:-1]}
    report = await scene.audit(0, samples=10)
    assert scene.verdicts(report) == [Verdict.PROVEN, Verdict.FAILED]
    assert report.peers[peer_id(0)].proven == 1
    assert report.peers[peer_id(0)].uncompared == 9
