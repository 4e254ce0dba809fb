"""Shares: spread, found, put together again whatever k - 1 peers do, and made again."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Mapping

import pytest
from blake3 import blake3
from mesh_repair.fake_mesh import FakeMesh, failing

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteUnreachableError,
    StorageError,
    UsageError,
)
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.coded import CodedSegments
from vaultfs.mesh.erasure import decode_stripes, encode
from vaultfs.mesh.held_shares import shares_of
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.share_format import BLOCK_BYTES, HEADER_BYTES, CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey, parse_share_key
from vaultfs.mesh.standing import Standing
from vaultfs.mesh.survey import PeerView, placement_of, survey
from vaultfs.remotes.store import BytesSource

VAULT = VaultId(bytes(range(16)))
CODING = Coding(4, 7)
DATA = random.Random(7).randbytes(4 * BLOCK_BYTES * 2 + 12_345)
SEGMENT = SegmentName(blake3(DATA).hexdigest())
CODED = CodedSegment(SEGMENT, len(DATA), CODING)


def coded_over(mesh: FakeMesh) -> CodedSegments:
    return CodedSegments(VAULT, list(mesh.peers))


async def looked(mesh: FakeMesh) -> tuple[Mapping[PeerId, PeerView], Placement]:
    found = await survey(mesh, mesh.page(), Standing())
    return found.views, placement_of(mesh.page(), Standing(), found.views)


async def stored(mesh: FakeMesh) -> CodedSegments:
    coded = coded_over(mesh)
    views, placement = await looked(mesh)
    assert await coded.store(mesh, CODING, SEGMENT, BytesSource(DATA), views, placement) == CODING.total
    return coded


def indexes(mesh: FakeMesh) -> list[list[int]]:
    found = []
    for peer in mesh.peers.values():
        keys = [parse_share_key(key) for key in peer.objects]
        found.append(sorted(key.index for key in keys if key is not None))
    return found


async def test_each_share_is_on_a_peer_of_its_own() -> None:
    mesh = FakeMesh(9, VAULT)
    await stored(mesh)
    assert sorted(itertools.chain(*indexes(mesh))) == list(range(7))
    assert sorted(map(len, indexes(mesh))) == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    sizes = {len(data) for peer in mesh.peers.values() for data in peer.objects.values()}
    assert sizes == {CODED.share_bytes}
    assert CODED.share_bytes * 7 < len(DATA) * 1.76 + 7 * HEADER_BYTES


async def test_any_four_peers_are_enough() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    for gone in itertools.combinations(range(7), 3):
        for number in range(7):
            mesh.at(number).is_away = number in gone
        with await coded.whole(mesh, SEGMENT) as file:
            assert file.read() == DATA
        assert await coded.size_bytes(mesh, SEGMENT) == len(DATA)


async def test_three_are_not() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    for number in range(4):
        mesh.at(number).is_away = True
    assert await coded.size_bytes(mesh, SEGMENT) is None
    with pytest.raises(RemoteUnreachableError, match="enough shares"):
        await coded.whole(mesh, SEGMENT)
    for number in range(4):
        mesh.at(number).is_away = False
        mesh.at(number).objects.clear()
    with pytest.raises(ObjectMissingError, match="enough shares"):
        await coded.whole(mesh, SEGMENT)


async def test_only_as_many_shares_are_fetched_as_are_needed() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    (await coded.whole(mesh, SEGMENT)).close()
    fetched = [parse_share_key(key) for peer in mesh.peers.values() for key in peer.fetches]
    assert sorted(key.index for key in fetched if key is not None) == [0, 1, 2, 3]


async def test_a_share_with_other_bytes_is_replaced_by_another() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    for number in range(3):
        mesh.at(number).lies.update(mesh.at(number).objects)
    with await coded.whole(mesh, SEGMENT) as file:
        assert file.read() == DATA
    mesh.at(3).lies.update(mesh.at(3).objects)
    with pytest.raises(IntegrityError, match="other bytes"):
        await coded.whole(mesh, SEGMENT)


def forge(mesh: FakeMesh, index: int) -> None:
    """Give one peer a share of other data, under a name that fits it."""
    for peer in mesh.peers.values():
        for key in list(peer.objects):
            share = parse_share_key(key)
            if share is not None and share.index == index:
                data = peer.objects.pop(key)
                made = data[:-1] + bytes([data[-1] ^ 1])
                peer.objects[str(ShareKey(share.coded, index, blake3(made).hexdigest()))] = made


@pytest.mark.parametrize("index", range(7))
async def test_a_made_up_share_is_found_out(index: int) -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    forge(mesh, index)
    with await coded.whole(mesh, SEGMENT) as file:
        assert file.read() == DATA


async def test_too_many_made_up_shares_are_an_error_and_never_data() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    for index in range(4):
        forge(mesh, index)
    with pytest.raises(IntegrityError):
        await coded.whole(mesh, SEGMENT)


PARTS = [
    (0, 1),
    (0, len(DATA)),
    (len(DATA) - 1, 1),
    (BLOCK_BYTES - 1, 2),
    (4 * BLOCK_BYTES - 3, 10),
    (4 * BLOCK_BYTES * 2 - 5, 10),
    (4 * BLOCK_BYTES * 2 + 1, 12_000),
    (100_000, None),
]


@pytest.mark.parametrize("gone", [(), (0, 1, 2), (4, 5, 6)])
async def test_parts(gone: tuple[int, ...]) -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    by_index = {each[0]: number for number, each in enumerate(indexes(mesh))}
    for index in gone:
        mesh.at(by_index[index]).is_away = True
    for offset, length in PARTS:
        with await coded.part(mesh, SEGMENT, offset, length) as file:
            assert file.read() == DATA[offset : None if length is None else offset + length]


async def test_a_part_needs_only_its_stripes() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    asked: list[tuple[int, int | None]] = []
    original = mesh.fetch

    async def fetch(*args: object, offset: int = 0, length: int | None = None) -> int:
        asked.append((offset, length))
        return await original(*args, offset=offset, length=length)  # type: ignore[arg-type]

    mesh.fetch = fetch  # type: ignore[method-assign, assignment]
    (await coded.part(mesh, SEGMENT, 4 * BLOCK_BYTES + 5, 10)).close()
    assert asked == [(HEADER_BYTES + BLOCK_BYTES, BLOCK_BYTES)] * 4


@pytest.mark.parametrize(("offset", "length"), [(len(DATA) + 1, None), (0, len(DATA) + 1), (len(DATA), 1)])
async def test_no_part_beyond_the_end(offset: int, length: int | None) -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    with pytest.raises(UsageError, match=str(len(DATA))):
        await coded.part(mesh, SEGMENT, offset, length)


async def test_what_is_there_is_not_stored_again() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    views, placement = await looked(mesh)
    before = [list(peer.stores) for peer in mesh.peers.values()]
    assert await coded.store(mesh, CODING, SEGMENT, BytesSource(DATA), views, placement) == 7
    assert [peer.stores for peer in mesh.peers.values()] == before


async def test_a_peer_that_fails_is_passed_over() -> None:
    mesh = FakeMesh(8, VAULT)
    views, placement = await looked(mesh)
    first = placement.ranking(SEGMENT)[0].peer
    mesh.peers[first].before_store = failing(lambda: RemoteUnreachableError("gone"))
    count = await coded_over(mesh).store(mesh, CODING, SEGMENT, BytesSource(DATA), views, placement)
    assert count == 7
    assert not mesh.peers[first].objects


@pytest.mark.parametrize("count", [4, 6])
async def test_with_fewer_peers_than_shares_some_are_missing(count: int) -> None:
    mesh = FakeMesh(count, VAULT)
    coded = coded_over(mesh)
    views, placement = await looked(mesh)
    assert await coded.store(mesh, CODING, SEGMENT, BytesSource(DATA), views, placement) == count
    assert all(len(each) == 1 for each in indexes(mesh))
    with await coded.whole(mesh, SEGMENT) as file:
        assert file.read() == DATA


async def test_with_fewer_peers_than_are_needed_it_is_an_error() -> None:
    mesh = FakeMesh(3, VAULT)
    views, placement = await looked(mesh)
    with pytest.raises(NoSpaceError, match="4 peers"):
        await coded_over(mesh).store(mesh, CODING, SEGMENT, BytesSource(DATA), views, placement)


async def test_full_peers_get_nothing() -> None:
    mesh = FakeMesh(8, VAULT)
    for number in range(2):
        mesh.at(number).quota_bytes = CODED.share_bytes - 1
    views, placement = await looked(mesh)
    assert await coded_over(mesh).store(mesh, CODING, SEGMENT, BytesSource(DATA), views, placement) == 6
    assert not mesh.at(0).objects
    assert not mesh.at(1).objects


async def test_a_source_that_is_not_the_segment_reaches_nobody() -> None:
    mesh = FakeMesh(7, VAULT)
    views, placement = await looked(mesh)
    with pytest.raises(IntegrityError):
        await coded_over(mesh).store(mesh, CODING, SEGMENT, BytesSource(DATA[::-1]), views, placement)
    assert not any(peer.objects for peer in mesh.peers.values())


async def test_lost_shares_are_made_again_from_others_on_other_peers() -> None:
    mesh = FakeMesh(9, VAULT)
    coded = await stored(mesh)
    holders = [number for number, each in enumerate(indexes(mesh)) if each]
    lost = [mesh.at(number).objects for number in holders[:2]]
    wanted = sorted(key for objects in lost for key in objects)
    for number in holders[:2]:
        mesh.at(number).objects = {}
        mesh.at(number).is_away = True
    views, placement = await looked(mesh)
    assert await coded.repair(mesh, CODED, views, placement) == 7
    assert sorted(itertools.chain(*indexes(mesh))) == list(range(7))
    made = sorted(key for number in set(range(9)) - set(holders) for key in mesh.at(number).objects)
    assert made == wanted, "a share is the same whoever makes it"


async def test_repair_of_what_is_whole_does_nothing() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    views, placement = await looked(mesh)
    assert await coded.repair(mesh, CODED, views, placement) == 7
    assert not any(peer.fetches for peer in mesh.peers.values())


async def test_repair_with_too_few_shares_is_an_error() -> None:
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    for number in range(4):
        mesh.at(number).objects.clear()
    views, placement = await looked(mesh)
    with pytest.raises(ObjectMissingError, match="shares"):
        await coded.repair(mesh, CODED, views, placement)


async def test_shares_that_peers_list() -> None:
    mesh = FakeMesh(7, VAULT)
    await stored(mesh)
    mesh.at(0).is_away = True
    views, _ = await looked(mesh)
    found = shares_of(CODED, views.values())
    away = indexes(mesh)[0]
    assert sorted(found) == sorted(set(range(7)) - set(away))
    assert shares_of(CodedSegment(SEGMENT, len(DATA), Coding(3, 7)), views.values()) == {}


async def test_a_disk_that_fails_here_is_told() -> None:
    class Failing(BytesSource):
        def open(self) -> io.BytesIO:
            raise StorageError("the disk failed")

    mesh = FakeMesh(7, VAULT)
    views, placement = await looked(mesh)
    with pytest.raises(StorageError):
        await coded_over(mesh).store(mesh, CODING, SEGMENT, Failing(DATA), views, placement)


def blocks(first: int, count: int) -> dict[int, bytes]:
    made = [bytearray() for _ in range(7)]
    encode(io.BytesIO(DATA), CODED, {index: share.extend for index, share in enumerate(made)})
    start = HEADER_BYTES + first * BLOCK_BYTES
    return {index: bytes(share[start : start + count * BLOCK_BYTES]) for index, share in enumerate(made)}


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (3, 4, 5, 6), (6, 0, 5, 2)])
@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 1), (0, 3), (2, 1), (1, 2)])
def test_stripes_alone(first: int, count: int, chosen: tuple[int, ...]) -> None:
    made = blocks(first, count)
    data = decode_stripes(CODED, first, {index: made[index] for index in chosen})
    start = first * 4 * BLOCK_BYTES
    assert data == DATA[start : start + count * 4 * BLOCK_BYTES]


@pytest.mark.parametrize("chosen", [(), (0, 1, 2), (0, 1, 2, 3, 4), (0, 1, 2, 7), (-1, 0, 1, 2)])
def test_stripes_of_other_shares_are_refused(chosen: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        decode_stripes(CODED, 0, dict.fromkeys(chosen, bytes(BLOCK_BYTES)))


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES, 1)])
def test_stripes_that_were_cut_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode_stripes(CODED, 0, {index: bytes(length) for index, length in enumerate(lengths)})


async def test_a_part_that_is_asked_for_again_is_checked() -> None:
    """One peer sends other bytes when it is asked for a part, which nobody can check here, and good ones else."""
    mesh = FakeMesh(7, VAULT)
    coded = await stored(mesh)
    original = mesh.fetch

    async def fetch(
        peer: PeerId, vault: VaultId, key: str, sink: io.BytesIO, *, offset: int = 0, length: int | None = None
    ) -> int:
        if length is None or peer != next(iter(mesh.peers)):
            return await original(peer, vault, key, sink, offset=offset, length=length)
        return sink.write(bytes(length))

    mesh.fetch = fetch  # type: ignore[method-assign, assignment]
    wrong = 0
    for offset, length in ((0, 100_000), (70_000, 100), (50_000, 100_000)):
        with await coded.part(mesh, SEGMENT, offset, length) as file:
            found = file.read()
        wrong += found != DATA[offset : offset + length]
        if found != DATA[offset : offset + length]:
            assert offset == 0, "only the first one is not checked"
    index = next(
        key.index for peer in list(mesh.peers.values())[:1] for key in map(parse_share_key, peer.objects) if key
    )
    assert wrong == (index < CODING.needed)
