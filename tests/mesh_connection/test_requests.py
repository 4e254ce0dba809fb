"""Small requests: several at once, answers out of turn, failures, cancellation."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    VaultError,
)
from vaultfs.mesh import connection as module
from vaultfs.mesh.connection import require_known, say_hello
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.message_stream import MessageStream
from vaultfs.mesh.messages import Data, Fail, Goodbye, Hello, Ping, Pong, Size, Stat, Stored, Welcome

from .scripted import PEER, VAULT, ScriptedPeer, conversation, pair


async def stat(connection: module.PeerConnection, key: str) -> Size:
    return await connection.ask(lambda number: Stat(number, VAULT, key), Size)


async def test_requests_are_sent_before_the_first_is_answered() -> None:
    async def script(peer: ScriptedPeer) -> None:
        heard = [await peer.hear() for _ in range(20)]
        assert [type(each) for each in heard] == [Stat] * 20
        for each in heard:
            assert isinstance(each, Stat)
            await peer.say(Size(each.request, int(each.key[1:]), 0))

    found: dict[int, int | None] = {}
    async with conversation(script) as (connection, _), trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            found[number] = (await stat(connection, f"k{number}")).size_bytes

        for number in range(20):
            nursery.start_soon(ask, number)
    assert found == {number: number for number in range(20)}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.REFUSED, RemoteRefusedError),
        (Code.MISSING, ObjectMissingError),
        (Code.FULL, NoSpaceError),
        (Code.WRONG_BYTES, IntegrityError),
        (Code.BUSY, RemoteUnreachableError),
        (Code.FAILED, RemoteError),
    ],
)
async def test_a_failure_concerns_its_request_only(code: Code, kind: type[VaultError]) -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Fail(1, code, "so it is"))
        await peer.hear()
        await peer.say(Size(2, 5, 0))

    async with conversation(script) as (connection, _):
        with pytest.raises(kind, match=r"peer aaaaaaaa at nas\.example:7741: so it is"):
            await stat(connection, "k")
        assert (await stat(connection, "k")).size_bytes == 5
        assert not connection.is_closed


async def test_what_a_peer_says_is_shown_without_control_characters() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Fail(1, Code.FAILED, "\x1b[2Jgone\n\u202e"))

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteError) as caught:
            await stat(connection, "k")
    assert str(caught.value).isprintable()


async def test_a_cancelled_request_leaves_the_others_alone() -> None:
    async def script(peer: ScriptedPeer) -> None:
        first, second = await peer.hear(), await peer.hear()
        assert isinstance(first, Stat)
        assert isinstance(second, Stat)
        await trio.testing.wait_all_tasks_blocked()
        await peer.say(Size(first.request, 1, 0), Size(second.request, 2, 0))

    async with conversation(script) as (connection, _):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def first() -> None:
                    await stat(connection, "first")

                async def cancel() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()

                nursery.start_soon(first)
                nursery.start_soon(cancel)
        assert scope.cancelled_caught
        assert (await stat(connection, "second")).size_bytes == 2
        assert not connection.is_closed


@pytest.mark.parametrize(
    "answers",
    [
        [Size(2, 1, 0)],
        [Pong(1)],
        [Data(b"x")],
        [Stored(1)],
        [b"\x00\x00\x00\x00"],
        [b"\xff\xff\xff\xff"],
        [b"\x00\x00\x00\x03abc"],
    ],
)
async def test_an_answer_that_makes_no_sense_ends_the_connection(
    answers: list[Size | Pong | Data | Stored | bytes],
) -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(*answers)
        await peer.hears_end()

    async with conversation(script) as (connection, transport):
        with pytest.raises(RemoteError, match="peer aaaaaaaa"):
            await stat(connection, "k")
        assert connection.is_closed
    assert transport.is_aborted


async def test_an_answer_to_nothing_ends_the_connection() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.say(Pong(1))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        await trio.testing.wait_all_tasks_blocked()
        assert connection.is_closed
        with pytest.raises(RemoteError, match="no request"):
            await connection.ping()


async def test_a_peer_that_goes_away_is_noticed_by_everybody_who_waits() -> None:
    async def script(peer: ScriptedPeer) -> None:
        for _ in range(3):
            await peer.hear()
        peer.transport.abort()

    failures: list[VaultError] = []
    async with conversation(script) as (connection, _), trio.open_nursery() as nursery:

        async def ask() -> None:
            try:
                await stat(connection, "k")
            except RemoteUnreachableError as error:
                failures.append(error)

        for _ in range(3):
            nursery.start_soon(ask)
    assert len(failures) == 3
    assert len({id(error) for error in failures}) == 3


async def test_a_silent_peer_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        began_s = trio.current_time()
        with pytest.raises(RemoteUnreachableError, match="has not answered for 20 s"):
            await stat(connection, "k")
        assert trio.current_time() - began_s == module.QUESTION_S
        assert connection.is_closed


async def test_a_long_answer_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await trio.sleep(module.ANSWER_S - 1)
        await peer.say(Size(1, 7, 0))

    async with conversation(script) as (connection, _):
        found = await connection.ask(lambda number: Stat(number, VAULT, "k"), Size, is_long=True)
        assert found.size_bytes == 7


async def test_goodbye_lets_what_is_under_way_end() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Goodbye("going down"))
        await trio.testing.wait_all_tasks_blocked()
        await peer.say(Size(1, 7, 0))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        assert (await stat(connection, "k")).size_bytes == 7
        assert connection.is_closed
        with pytest.raises(RemoteUnreachableError):
            await stat(connection, "k")


async def test_goodbye_with_nothing_under_way_closes() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.say(Goodbye("going down"))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        await trio.testing.wait_all_tasks_blocked()
        assert connection.is_closed
        with pytest.raises(RemoteUnreachableError, match="going down"):
            await connection.ping()


async def test_failure_of_the_whole_connection_reaches_whoever_waits() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Fail(0, Code.REFUSED, "the grant was revoked"))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteRefusedError, match="revoked"):
            await stat(connection, "k")
        assert connection.is_closed


async def test_ping() -> None:
    async def script(peer: ScriptedPeer) -> None:
        heard = await peer.hear()
        assert isinstance(heard, Ping)
        await peer.say(Pong(heard.request))

    async with conversation(script) as (connection, _):
        await connection.ping()


async def test_a_polite_end_says_goodbye() -> None:
    heard: list[object] = []

    async def script(peer: ScriptedPeer) -> None:
        heard.append(await peer.hear())
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        await connection.aclose()
        assert connection.is_closed
    assert [type(each) for each in heard] == [Goodbye]


async def test_an_end_after_the_end_is_harmless() -> None:
    async def script(peer: ScriptedPeer) -> None:
        peer.transport.abort()

    async with conversation(script) as (connection, _):
        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()
        connection.abort()
        assert connection.is_closed


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        (Fail(0, Code.BUSY, "too many"), RemoteUnreachableError, "too many"),
        (Fail(0, Code.REFUSED, "no"), RemoteRefusedError, "no"),
        (Welcome(2, (), "", True), RemoteError, "another protocol"),
        (Pong(1), RemoteError, "another protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteError, "frame"),
    ],
)
async def test_greetings_that_end_it(answer: Fail | Welcome | Pong | bytes, kind: type[VaultError], match: str) -> None:
    transport, peer = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.say, answer)
        with pytest.raises(kind, match=match):
            await say_hello(MessageStream(transport), PEER)


async def test_a_peer_that_does_not_greet_is_left(autojump_clock: trio.testing.MockClock) -> None:
    transport, _ = pair()
    with pytest.raises(RemoteUnreachableError, match="does not answer"):
        await say_hello(MessageStream(transport), PEER)
    assert trio.current_time() == pytest.approx(module.HELLO_S)


async def test_who_is_not_known_is_told_what_to_do() -> None:
    transport, peer = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.say, Welcome(1, (), "", False))
        connection = await say_hello(MessageStream(transport), PEER)
        heard = await peer.hear()
    assert isinstance(heard, Hello)
    with pytest.raises(RemoteRefusedError, match="vaultfs peer accept our-own-id"):
        require_known(connection, "our-own-id")
