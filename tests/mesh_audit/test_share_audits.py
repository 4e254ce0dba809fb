"""Audits of shares: with the segments here, and without; who lies is found, who does not is never blamed."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from vaultfs.errors import UsageError
from vaultfs.ids import SegmentName
from vaultfs.mesh import share_comparison
from vaultfs.mesh.audit_questions import AuditReport
from vaultfs.mesh.auditing import SHARE_RANGE_BYTES, Claimed, ShareRanges, Verdict, draw_probes
from vaultfs.mesh.auditor import Auditor
from vaultfs.mesh.erasure import encode
from vaultfs.mesh.local_segments import LocalSegments
from vaultfs.mesh.messages import Range
from vaultfs.mesh.share_format import HEADER_BYTES, CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey, parse_share_key
from vaultfs.storage.layout import VaultLayout

from .peers import ABSENT, Peers, made_up, peer_id

SIZE = 150_000
COUNT = 8
CODING = Coding(2, 4)


class Scene:
    """Some segments as shares on peers, one on each; and perhaps the segments on this machine."""

    def __init__(self, where: Path, *, peers: int = 4, is_here: bool = False, coding: Coding = CODING) -> None:
        draw = random.Random(7)
        self.draw = random.Random(8)
        self.segments = dict(made_up(draw, SIZE + number) for number in range(COUNT))
        self.mesh = Peers(peers)
        self.keys: dict[tuple[SegmentName, int], str] = {}
        for turn, (name, data) in enumerate(self.segments.items()):
            coded = CodedSegment(name, len(data), coding)
            made = [bytearray() for _ in range(coding.total)]
            names = encode(io.BytesIO(data), coded, {index: share.extend for index, share in enumerate(made)})
            for index, share in enumerate(made):
                key = str(ShareKey(coded, index, names[index]))
                self.keys[name, index] = key
                self.mesh.at((index + turn) % peers).shares[key] = bytes(share)
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

    async def audit(self, *numbers: int, samples: int | None = None) -> AuditReport:
        auditor = self.auditor()
        return await auditor.run([peer_id(number) for number in numbers or range(len(self.mesh.peers))], samples)

    def auditor(self) -> Auditor:
        local = LocalSegments(self.layout)
        return Auditor(self.mesh, self.mesh.page, local, self.needed, scratch=self.layout.root, draw=self.draw)

    def verdicts(self, report: AuditReport) -> list[Verdict | None]:
        found = [report.peers.get(peer) for peer in self.mesh.peers]
        return [None if audit is None else audit.verdict for audit in found]

    def damage(self, number: int) -> str:
        """Let a share of a peer rot; its key."""
        key = min(self.mesh.at(number).shares)
        self.mesh.at(number).shares[key] = bytes(byte ^ 1 for byte in self.mesh.at(number).shares[key])
        return key

    def forge(self, number: int) -> str:
        """Let a peer have a share of other data under a name that fits it."""
        peer = self.mesh.at(number)
        key = min(peer.shares)
        share = parse_share_key(key)
        assert share is not None
        data = peer.shares.pop(key)
        made = data[:HEADER_BYTES] + bytes(byte ^ 1 for byte in data[HEADER_BYTES:])
        made_key = str(ShareKey(share.coded, share.index, blake3(made).hexdigest()))
        peer.shares[made_key] = made
        return made_key

    @property
    def fetches(self) -> int:
        return sum(peer.fetches for peer in self.mesh.peers.values())


@pytest.fixture
def here(tmp_path: Path) -> Scene:
    return Scene(tmp_path, is_here=True)


@pytest.fixture
def away(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


Lie = Callable[[bytes, Range, bytes], bytes]


def zeros(_key: bytes, _part: Range, _honest: bytes) -> bytes:
    return ABSENT


def noise(_key: bytes, _part: Range, honest: bytes) -> bytes:
    return bytes(byte ^ 1 for byte in honest)


PROVEN = [Verdict.PROVEN] * 4


def but(*numbers: int, verdict: Verdict = Verdict.FAILED) -> list[Verdict]:
    return [verdict if number in numbers else Verdict.PROVEN for number in range(4)]


# --- what is drawn


def test_all_are_asked_for_the_same_range_of_a_segment(here: Scene) -> None:
    ranges = ShareRanges(random.Random(1))
    shares: dict[Claimed, int] = {
        share: share.coded.share_bytes for key in here.keys.values() if (share := parse_share_key(key)) is not None
    }
    draws = [draw_probes(shares, 2 * len(shares), random.Random(seed), ranges) for seed in range(2)]
    places = {(probe.segment, probe.offset, probe.length) for probes in draws for probe in probes}
    assert len(places) == 2 * COUNT, "each twice, and the same of all"
    assert {length for _, _, length in places} == {SHARE_RANGE_BYTES}
    for probe in draws[0]:
        assert probe.share is not None
        assert HEADER_BYTES <= probe.offset <= probe.share.coded.share_bytes - probe.length
    assert {probe.range.share for probe in draws[0]} == {key.rpartition("/")[2] for key in here.keys.values()}


def test_a_range_of_the_smallest_share() -> None:
    coded = CodedSegment(SegmentName("ab" * 32), 7, Coding(2, 3))
    probe = ShareRanges(random.Random(1)).probe(ShareKey(coded, 1, "cd" * 32), 0)
    assert (probe.offset, probe.length, probe.hash) == (HEADER_BYTES, 4, "cd" * 32)


# --- with the segments on this machine


async def test_honest_peers_prove_all(here: Scene) -> None:
    report = await here.audit()
    assert here.verdicts(report) == PROVEN
    for peer, audit in report.peers.items():
        shares = here.mesh.peers[peer].shares
        assert (audit.asked, audit.proven, audit.uncompared) == (COUNT, COUNT, 0)
        assert (audit.claimed_segments, audit.claimed_shares) == (0, COUNT)
        assert audit.claimed_share_bytes == sum(map(len, shares.values()))
        assert {str(each) for each in audit.proved} == set(shares)
        assert audit.is_complete
    assert here.fetches == report.fetched_bytes == 0
    assert report.proof_bytes < 4 * (COUNT * (133 + 32) + 200)


@pytest.mark.parametrize("lie", [zeros, noise])
async def test_wrong_proofs(here: Scene, lie: Lie) -> None:
    here.mesh.at(2).proves = lie
    report = await here.audit()
    assert here.verdicts(report) == but(2)
    assert here.fetches == 0
    failure = report.peers[peer_id(2)].failures[0]
    assert failure.share in range(4)
    assert "this share" in failure.reason


async def test_a_share_that_rotted_and_one_that_is_gone(here: Scene) -> None:
    key = here.damage(1)
    gone = max(here.mesh.at(3).shares)
    here.mesh.at(3).proves = lambda k, part, honest: ABSENT if part.share == gone.rpartition("/")[2] else honest
    report = await here.audit()
    assert here.verdicts(report) == but(1, 3)
    for number, bad in ((1, key), (3, gone)):
        share = parse_share_key(bad)
        assert share is not None
        failures = report.peers[peer_id(number)].failures
        assert [(failure.segment, failure.share) for failure in failures] == [(share.coded.name, share.index)]
        assert report.peers[peer_id(number)].proven == COUNT - 1


async def test_a_made_up_share(here: Scene) -> None:
    here.forge(0)
    assert here.verdicts(await here.audit()) == but(0)


async def test_a_share_of_a_wrong_length_is_a_lie_without_any_proof(here: Scene) -> None:
    key = min(here.mesh.at(0).shares)
    here.mesh.at(0).shares[key] = here.mesh.at(0).shares[key][:-1]
    report = await here.audit()
    assert here.verdicts(report) == but(0)
    assert str(len(here.mesh.at(0).shares[key])) in report.peers[peer_id(0)].failures[0].reason


async def test_a_share_of_a_segment_of_another_size_is_nobodys(here: Scene) -> None:
    """Whoever may store can have stored it, and no peer is to blame."""
    name, size = next(iter(here.needed.items()))
    coded = CodedSegment(name, size + 1, CODING)
    here.mesh.at(0).shares[str(ShareKey(coded, 0, "ab" * 32))] = bytes(10)
    report = await here.audit()
    assert here.verdicts(report) == PROVEN
    assert report.peers[peer_id(0)].claimed_shares == COUNT


async def test_damage_on_this_machine_is_not_blamed_on_peers(here: Scene) -> None:
    name = next(iter(here.segments))
    here.put(name, bytes(len(here.segments[name])))
    report = await here.audit()
    assert here.verdicts(report) == PROVEN
    assert {audit.proven for audit in report.peers.values()} == {COUNT}


async def test_segments_and_shares_together(here: Scene) -> None:
    here.mesh.give(*next(iter(here.segments.items())), 0)
    report = await here.audit(samples=3 * (COUNT + 1))
    audit = report.peers[peer_id(0)]
    assert (audit.claimed_segments, audit.claimed_shares) == (1, COUNT)
    assert (audit.proven, len(audit.proved)) == (3 * (COUNT + 1), COUNT + 1)


async def test_without_zfec_it_is_told(here: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zfec", None)
    with pytest.raises(UsageError, match=r"vaultfs\[erasure\]"):
        await here.audit()


# --- without


async def test_peers_that_agree_are_believed(away: Scene) -> None:
    report = await away.audit()
    assert away.verdicts(report) == PROVEN
    assert {(audit.proven, audit.uncompared) for audit in report.peers.values()} == {(COUNT, 0)}
    assert report.fetched_bytes == COUNT * CODING.needed * SHARE_RANGE_BYTES
    assert away.fetches == COUNT * CODING.needed


async def test_one_peer_is_compared_with_others(away: Scene) -> None:
    report = await away.audit(1)
    assert away.verdicts(report) == [None, Verdict.PROVEN, None, None]
    assert report.fetched_bytes == COUNT * CODING.needed * SHARE_RANGE_BYTES


@pytest.mark.parametrize("liar", range(4))
@pytest.mark.parametrize("lie", [zeros, noise])
async def test_the_liar_is_found_among_peers(away: Scene, liar: int, lie: Lie) -> None:
    away.mesh.at(liar).proves = lie
    report = await away.audit()
    assert away.verdicts(report) == but(liar)
    assert {audit.proven for peer, audit in report.peers.items() if peer != peer_id(liar)} == {COUNT}


@pytest.mark.parametrize("number", range(4))
async def test_rot_is_found_and_costs_one_share(away: Scene, number: int) -> None:
    key = away.damage(number)
    report = await away.audit()
    assert away.verdicts(report) == but(number)
    (failure,) = report.peers[peer_id(number)].failures
    assert key.startswith(f"shares/{failure.segment}/")
    assert failure.reason == "it has other bytes than those of this share"
    parts = 2 * COUNT * CODING.needed * SHARE_RANGE_BYTES
    assert report.fetched_bytes <= parts + 4 * len(away.mesh.at(number).shares[key])


@pytest.mark.parametrize("number", range(4))
async def test_a_made_up_share_is_found_by_the_segments_hash(away: Scene, number: int) -> None:
    away.forge(number)
    report = await away.audit()
    assert away.verdicts(report) == but(number)
    assert "made it up" in report.peers[peer_id(number)].failures[0].reason
    share_bytes = max(len(share) for peer in away.mesh.peers.values() for share in peer.shares.values())
    assert report.fetched_bytes <= 2 * COUNT * CODING.needed * SHARE_RANGE_BYTES + 4 * share_bytes


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("number", range(4))
async def test_who_sends_other_parts_than_it_proves_lies(away: Scene, number: int, is_whole: bool) -> None:
    """Those who are compared with it are not blamed, whether or not it would give the share as a whole."""
    away.mesh.at(number).spoils_parts = is_whole
    away.mesh.at(number).sends = None if is_whole else lambda name: bytes(SIZE)
    for _ in range(4):  # until it was one of those that are fetched from
        report = await away.audit()
        assert set(away.verdicts(report)) - {Verdict.FAILED} == {Verdict.PROVEN}
        assert all(each is not Verdict.FAILED or at == number for at, each in enumerate(away.verdicts(report)))
        if report.peers[peer_id(number)].verdict is Verdict.FAILED:
            share_bytes = max(map(len, away.mesh.at(number).shares.values()))
            most = COUNT * (CODING.needed + 1) * SHARE_RANGE_BYTES + max(share_bytes, SIZE * (not is_whole))
            assert report.fetched_bytes <= most, "of whole shares only its own was fetched"
            return
    pytest.fail("it was never found")


@pytest.mark.parametrize("liars", [(0, 1), (1, 3), (2, 3)])
async def test_when_the_others_are_found_out_k_are_left_and_prove_nothing(away: Scene, liars: tuple[int, int]) -> None:
    for number in liars:
        away.mesh.at(number).proves = noise
    report = await away.audit()
    assert away.verdicts(report) == [Verdict.FAILED if number in liars else Verdict.UNPROVEN for number in range(4)]


async def test_who_is_asked_for_the_sake_of_another_may_fail(away: Scene) -> None:
    away.mesh.at(2).proves = zeros
    report = await away.audit(1)
    assert away.verdicts(report) == [None, Verdict.PROVEN, Verdict.FAILED, None]


async def test_k_shares_alone_hang_together_whatever_they_are(away: Scene) -> None:
    for number in (0, 1):
        away.mesh.at(number).shares.clear()
    away.damage(2)
    report = await away.audit()
    assert away.verdicts(report) == [Verdict.EMPTY, Verdict.EMPTY, Verdict.UNPROVEN, Verdict.UNPROVEN]
    assert {audit.uncompared for audit in report.peers.values()} == {0, COUNT}
    assert report.fetched_bytes == 0


async def test_where_all_are_needed_nothing_can_be_compared(tmp_path: Path) -> None:
    scene = Scene(tmp_path, coding=Coding(4, 4))
    report = await scene.audit()
    assert scene.verdicts(report) == [Verdict.UNPROVEN] * 4
    scene.mesh.at(0).proves = zeros
    assert scene.verdicts(await scene.audit())[0] is Verdict.FAILED


async def test_two_that_rotted_are_both_found(tmp_path: Path) -> None:
    scene = Scene(tmp_path, peers=5, coding=Coding(2, 5))
    scene.damage(1)
    scene.damage(4)
    report = await scene.audit()
    assert [each is Verdict.FAILED for each in scene.verdicts(report)] == [False, True, False, False, True]


async def test_when_most_are_made_up_nobody_is_blamed_who_is_honest(away: Scene) -> None:
    """Three of four: no two right ones are left, and whole shares are fetched once and not again."""
    name = min(away.segments)
    for number in range(4):
        peer = away.mesh.at(number)
        keys = [key for key in peer.shares if key.startswith(f"shares/{name}/")]
        peer.shares = {key: peer.shares[key] for key in keys}
    for number in (0, 1, 2):
        away.forge(number)
    report = await away.audit(samples=5)
    assert away.verdicts(report) == [Verdict.UNPROVEN] * 4
    assert {audit.uncompared for audit in report.peers.values()} == {5}
    share_bytes = max(len(share) for share in away.mesh.at(0).shares.values())
    assert report.fetched_bytes <= 4 * share_bytes + 5 * CODING.needed * SHARE_RANGE_BYTES


async def test_who_is_away_is_told_and_not_blamed(away: Scene) -> None:
    away.mesh.at(0).patience = 0
    report = await away.audit()
    assert away.verdicts(report) == but(0, verdict=Verdict.UNANSWERED)
    assert {audit.uncompared for audit in report.peers.values()} == {0}


async def test_who_leaves_when_it_is_asked_for_parts(away: Scene) -> None:
    away.mesh.at(0).patience = 3  # two lists, and the proofs
    report = await away.audit()
    assert away.verdicts(report)[1:] == [Verdict.PROVEN] * 3
    assert away.verdicts(report)[0] in {Verdict.UNANSWERED, Verdict.PROVEN}


async def test_what_is_fetched_is_bounded(away: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_comparison, "MOST_PART_BYTES", 3 * CODING.needed * SHARE_RANGE_BYTES)
    report = await away.audit()
    assert report.fetched_bytes <= 3 * CODING.needed * SHARE_RANGE_BYTES
    assert sum(audit.uncompared for audit in report.peers.values()) == 4 * (COUNT - 3)
    assert away.verdicts(report) == PROVEN


# --- some and nothing else


@pytest.mark.parametrize("is_here", [True, False])
async def test_proof_of_some_shares(tmp_path: Path, is_here: bool) -> None:
    scene = Scene(tmp_path, is_here=is_here)
    name = min(scene.segments)
    wanted: dict[int, dict[Claimed, int]] = {}
    for (segment, _), key in scene.keys.items():
        number = next(number for number in range(4) if key in scene.mesh.at(number).shares)
        share = parse_share_key(key)
        assert share is not None
        if segment == name:
            wanted[number] = {share: share.coded.share_bytes}
    report = await scene.auditor().prove({peer_id(number): claims for number, claims in wanted.items()})
    assert {peer: audit.proved for peer, audit in report.peers.items()} == {
        peer_id(number): set(claims) for number, claims in wanted.items()
    }
    assert sum(len(peer.ranges) for peer in scene.mesh.peers.values()) == 4
