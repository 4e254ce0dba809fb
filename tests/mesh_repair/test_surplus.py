"""What could go of what peers hold, and what stays."""

from __future__ import annotations

import random

import pytest

from vaultfs.ids import SegmentName
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import KnownPeer
from vaultfs.mesh.messages import State
from vaultfs.mesh.placement import Placement, Site
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.surplus import find_surplus
from vaultfs.mesh.survey import PeerView

from .fake_mesh import peer_id

SEGMENT = SegmentName("ab" * 32)
NEEDED = {SEGMENT: 1000}
CODING = Coding(2, 3)


def view(
    number: int, *, has: bool = False, size: int = 1000, takes: bool = True, shares: tuple[ShareKey, ...] = ()
) -> PeerView:
    known = KnownPeer(peer_id(number), Address("127.0.0.1", 1 + number))
    state = State(1, 1 << 30, 0, 1 << 30, 0, 0, takes)
    return PeerView(
        known, state, segments={SEGMENT: size} if has else {}, shares={SEGMENT: list(shares)} if shares else {}
    )


def share(index: int, coding: Coding = CODING, hashed: str = "cd", size: int = 1000) -> ShareKey:
    return ShareKey(CodedSegment(SEGMENT, size, coding), index, hashed * 32)


def placement(count: int, zones: str = "") -> Placement:
    return Placement(Site(peer_id(number), 1 << 30, zones[number : number + 1]) for number in range(count))


def nearest(count: int) -> list[int]:
    order = {site.peer: rank for rank, site in enumerate(placement(count).ranking(SEGMENT))}
    return sorted(range(count), key=lambda number: order[peer_id(number)])


def test_the_nearest_stay() -> None:
    views = [view(number, has=True) for number in range(5)]
    (found,) = find_surplus(NEEDED, views, placement(5), 2, None)
    order = nearest(5)
    assert found.name == SEGMENT
    assert {piece.peer for piece in found.kept} == {peer_id(number) for number in order[:2]}
    assert {piece.peer for piece in found.spare} == {peer_id(number) for number in order[2:]}
    assert {piece.size_bytes for piece in found.spare} == {1000}


@pytest.mark.parametrize("replicas", [5, 6])
def test_no_more_than_there_are_to_be(replicas: int) -> None:
    assert find_surplus(NEEDED, [view(number, has=True) for number in range(5)], placement(5), replicas, None) == []


def test_one_zone_does_not_get_all() -> None:
    views = [view(number, has=True) for number in range(4)]
    (found,) = find_surplus(NEEDED, views, placement(4, "aaab"), 2, None)
    assert peer_id(3) in {piece.peer for piece in found.kept}


def test_who_is_away_or_not_believed_or_has_another_size_stands_in_for_nobody() -> None:
    for absent in range(3):
        views = [view(number, has=True) for number in range(3)]
        views[absent].state = None
        assert find_surplus(NEEDED, views, placement(3), 2, None) == []
    views = [view(0, has=True, size=999), view(1, has=True), view(2, has=True)]
    assert find_surplus(NEEDED, views, placement(3), 2, None) == []
    views = [view(number, has=True) for number in range(3)]
    assert find_surplus(NEEDED, views, placement(2), 2, None) == [], "the third is no site"


def test_where_nothing_may_be_stored_nothing_is_deleted() -> None:
    views = [view(number, has=True, takes=False) for number in range(4)]
    assert find_surplus(NEEDED, views, placement(4), 2, None) == []


def test_what_is_not_needed_is_left_to_a_prune() -> None:
    assert find_surplus({}, [view(number, has=True) for number in range(4)], placement(4), 2, None) == []


def test_shares_go_where_there_are_copies_again() -> None:
    views = [view(0, has=True, shares=(share(0),)), view(1, has=True), view(2, shares=(share(1),))]
    (found,) = find_surplus(NEEDED, views, placement(3), 2, None)
    assert {piece.held for piece in found.kept} == {SEGMENT}
    assert {(piece.peer, piece.held) for piece in found.spare} == {(peer_id(0), share(0)), (peer_id(2), share(1))}
    assert find_surplus(NEEDED, views, placement(3), 3, None) == []


def test_copies_and_other_shares_go_where_there_are_shares() -> None:
    other = share(0, Coding(2, 4))
    views = [view(number, has=number < 2, shares=(share(number),)) for number in range(3)]
    views.append(view(3, shares=(other, share(1))))
    (found,) = find_surplus(NEEDED, views, placement(4), 2, CODING)
    assert sorted(piece.held.index for piece in found.kept if isinstance(piece.held, ShareKey)) == [0, 1, 2]
    gone = [piece.held for piece in found.spare]
    assert gone.count(SEGMENT) == 2
    assert gone.count(other) == gone.count(share(1)) == 1
    assert {piece.key for piece in found.spare} == {str(other), str(share(1)), f"segments/ab/{SEGMENT}"}


def test_of_two_shares_of_one_index_the_nearer_stays() -> None:
    order = nearest(4)
    views = [view(number) for number in range(4)]
    for index, number in enumerate(order[:2] + order[3:]):
        views[number].shares = {SEGMENT: [share(index)]}
    views[order[2]].shares = {SEGMENT: [share(2)]}
    (found,) = find_surplus(NEEDED, views, placement(4), 2, CODING)
    (spare,) = found.spare
    assert (spare.peer, spare.held) == (peer_id(order[3]), share(2))


def test_each_on_a_peer_of_its_own() -> None:
    order = nearest(3)
    views = [view(number) for number in range(3)]
    views[order[0]].shares = {SEGMENT: [share(0), share(1)]}
    views[order[1]].shares = {SEGMENT: [share(2)]}
    views[order[2]].shares = {SEGMENT: [share(0)]}
    (found,) = find_surplus(NEEDED, views, placement(3), 2, CODING)
    (spare,) = found.spare
    assert (spare.peer, spare.held) == (peer_id(order[0]), share(0)), "else one peer would have two of three"


def test_nothing_goes_where_a_share_is_missing_or_two_differ() -> None:
    views = [view(number, has=True, shares=(share(number),)) for number in range(2)]
    assert find_surplus(NEEDED, views, placement(2), 1, CODING) == []
    views = [view(number, has=True, shares=(share(number),)) for number in range(3)]
    views.append(view(3, shares=(share(2, hashed="ef"),)))
    assert find_surplus(NEEDED, views, placement(4), 1, CODING) == []
    views[2] = view(2, has=True, shares=(share(2, size=999),))
    views[3] = view(3)
    assert find_surplus(NEEDED, views, placement(4), 1, CODING) == [], "it is of another segment"


def test_all_that_could_go_leaves_what_there_is_to_be() -> None:
    draw = random.Random(5)
    for _ in range(300):
        count = draw.randint(1, 7)
        coding = draw.choice([None, CODING, Coding(2, 4)])
        views = [
            view(
                number,
                has=draw.random() < 0.6,
                shares=tuple({share(draw.randrange(each.total), each) for each in (CODING, Coding(2, 4)) for _ in "ab"})
                if draw.random() < 0.7
                else (),
            )
            for number in range(count)
        ]
        replicas = draw.randint(1, 3)
        for found in find_surplus(NEEDED, views, placement(count), replicas, coding):
            pieces = {
                (each.known.id, held)
                for each in views
                for held in (*each.segments, *(key for keys in each.shares.values() for key in keys))
            }
            kept = {(piece.peer, piece.held) for piece in found.kept}
            spare = {(piece.peer, piece.held) for piece in found.spare}
            assert kept | spare == pieces
            assert not kept & spare
            if coding is None:
                assert len({peer for peer, held in kept if held == SEGMENT}) == replicas
            else:
                assert {held for _, held in kept} == {share(index, coding) for index in range(coding.total)}
