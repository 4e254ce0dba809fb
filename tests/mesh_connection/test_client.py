"""What a peer answers is looked at before anybody believes it: listings without end, bodies that are cut."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from vaultfs.errors import IntegrityError, RemoteError, RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.mesh import client as module
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.client import Contact, MeshClient
from vaultfs.mesh.connection import PeerConnection
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.messages import Audit, Body, Data, Get, Have, Holds, List, Listing, Message, Proof, Range
from vaultfs.mesh.reading import HashingFile
from vaultfs.remotes.store import ObjectInfo

from .scripted import PEER, VAULT, ScriptedPeer, conversation

if TYPE_CHECKING:
    from typing_extensions import Buffer

NAME = SegmentName("ab" * 32)


class OneConnection:
    """A pool of one connection, which everybody gets."""

    def __init__(self, connection: PeerConnection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def lease(self, peer: bytes, *, is_shared: bool = False) -> AsyncIterator[PeerConnection]:
        yield self._connection

    @contextmanager
    def waiting(self, peer: bytes) -> Iterator[None]:
        yield


@asynccontextmanager
async def client_of(script: Callable[[ScriptedPeer], Awaitable[None]]) -> AsyncIterator[MeshClient]:
    async with conversation(script) as (connection, _):
        pool = OneConnection(connection)
        yield MeshClient(pool, [Contact(PEER.peer_id, Address("nas.example", 7741))])  # type: ignore[arg-type]


def pages(*answers: tuple[tuple[str, ...], bool]) -> Callable[[ScriptedPeer], Awaitable[None]]:
    """A peer that lists these keys, page by page, and hears no further question."""

    async def script(peer: ScriptedPeer) -> None:
        for keys, has_more in answers:
            heard = await peer.hear()
            assert isinstance(heard, List)
            await peer.say(Listing(heard.request, tuple((key, 1) for key in keys), has_more))
        await peer.hears_end()

    return script


async def test_a_listing_goes_on_where_it_was() -> None:
    asked: list[str] = []

    async def script(peer: ScriptedPeer) -> None:
        for keys, has_more in ((("a/1", "a/2"), True), (("a/3",), False)):
            heard = await peer.hear()
            assert isinstance(heard, List)
            asked.append(heard.after)
            await peer.say(Listing(heard.request, tuple((key, 7) for key in keys), has_more))

    async with client_of(script) as client:
        found = await client.listing(PEER.peer_id, VAULT, "a/")
    assert found == [ObjectInfo(key, 7) for key in ("a/1", "a/2", "a/3")]
    assert asked == ["", "a/2"]


@pytest.mark.parametrize(
    "answers",
    [
        [(("a/2", "a/1"), False)],
        [(("a/1", "a/1"), False)],
        [(("a/1",), True), (("a/1",), True)],
        [(("b/1",), False)],
    ],
)
async def test_a_listing_out_of_order(answers: list[tuple[tuple[str, ...], bool]]) -> None:
    async with client_of(pages(*answers)) as client:
        with pytest.raises(RemoteError, match="out of their order"):
            await client.listing(PEER.peer_id, VAULT, "a/")


async def test_a_page_with_nothing_and_more_to_come() -> None:
    async with client_of(pages(((), True))) as client:
        with pytest.raises(RemoteError, match="without end"):
            await client.listing(PEER.peer_id, VAULT, "a/")


@pytest.mark.parametrize(("limit", "value", "count"), [("MOST_PAGES", 3, 3), ("MOST_LISTED_BYTES", 11, 4)])
async def test_a_listing_without_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, limit: str, value: int, count: int
) -> None:
    """Whoever asks for one page more finds a peer that does not listen any more, which is another error."""
    monkeypatch.setattr(module, limit, value)
    async with client_of(pages(*(((f"a/{number}",), True) for number in range(count)))) as client:
        with pytest.raises(RemoteError, match="without end"):
            await client.listing(PEER.peer_id, VAULT, "a/")


async def test_a_listing_that_dribbles(autojump_clock: trio.testing.MockClock) -> None:
    """Each page comes just in time, and there are thousands."""

    async def script(peer: ScriptedPeer) -> None:
        for number in range(10_000):
            heard = await peer.hear()
            assert isinstance(heard, List)
            await trio.sleep(19)
            await peer.say(Listing(heard.request, ((f"a/{number:05}", 7),), has_more=True))

    began_s = trio.current_time()
    with pytest.RaisesGroup(AssertionError, allow_unwrapped=True):  # the peer's end, when nobody asks any more
        async with client_of(script) as client:
            with pytest.raises(RemoteUnreachableError, match="takes more than 600 s"):
                await client.listing(PEER.peer_id, VAULT, "a/")
            assert trio.current_time() - began_s < 700


def answering(make: Callable[[int], list[Message]]) -> Callable[[ScriptedPeer], Awaitable[None]]:
    """A peer that answers one question, and hears no other."""

    async def script(peer: ScriptedPeer) -> None:
        heard = await peer.hear()
        assert isinstance(heard, Have | Audit | Get)
        with suppress(trio.BrokenResourceError):  # who asked may have heard enough
            await peer.say(*make(heard.request))
        await peer.hears_end()

    return script


@pytest.mark.parametrize("sizes", [(), (1, 1)])
async def test_sizes_of_other_segments(sizes: tuple[int, ...]) -> None:
    async with client_of(answering(lambda number: [Holds(number, sizes)])) as client:
        with pytest.raises(RemoteError, match="answers for"):
            await client.have(PEER.peer_id, VAULT, [NAME])


async def test_proofs_of_other_ranges() -> None:
    async with client_of(answering(lambda number: [Proof(number, bytes(33))])) as client:
        with pytest.raises(RemoteError, match="proves 33 bytes"):
            await client.audit(PEER.peer_id, VAULT, bytes(32), [Range(bytes(32), 0, 1)])


@pytest.mark.parametrize(
    ("offset", "length", "body"),
    [
        (0, None, Body(1, 9, 3)),
        (2, None, Body(1, 9, 8)),
        (0, None, Body(1, 3, 9)),
        (2, 3, Body(1, 9, 4)),
        (2, 3, Body(1, 9, 2)),
    ],
)
async def test_a_body_of_another_length_than_was_asked_for(offset: int, length: int | None, body: Body) -> None:
    async with client_of(answering(lambda _: [body, Data(bytes(body.body_bytes))])) as client:
        with pytest.raises(RemoteError, match="sends"):
            await client.fetch(PEER.peer_id, VAULT, "k", io.BytesIO(), offset=offset, length=length)


async def test_a_body_larger_than_it_may_be_is_not_kept() -> None:
    file = io.BytesIO()
    data = [Data(bytes(DATA_BYTES)) for _ in range(5)]
    async with client_of(answering(lambda number: [Body(number, 1 << 60, 1 << 60), *data])) as client:
        with pytest.raises(IntegrityError, match="more than the 10 bytes"):
            await client.fetch(PEER.peer_id, VAULT, "k", HashingFile(file, 10))  # type: ignore[arg-type]
    assert file.getvalue() == b""


async def test_what_trickles_is_written_as_it_comes(autojump_clock: trio.testing.MockClock) -> None:
    """So who watches the file sees that the peer is not silent."""
    written: list[list[bytes]] = []

    class Watched(io.BytesIO):
        def writelines(self, lines: Iterable[Buffer], /) -> None:
            written.append([bytes(line) for line in lines])

    async def script(peer: ScriptedPeer) -> None:
        heard = await peer.hear()
        assert isinstance(heard, Get)
        await peer.say(Body(heard.request, 8, 8), Data(b"ab"), Data(b"cd"))
        for data in (b"ef", b"gh"):
            await trio.sleep(2)
            await peer.say(Data(data))
        await peer.hears_end()

    async with client_of(script) as client:
        assert await client.fetch(PEER.peer_id, VAULT, "k", Watched()) == 8
    assert written == [[b"ab", b"cd", b"ef"], [b"gh"]]
