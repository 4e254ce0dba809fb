"""Peers that say too much, or at once what should come one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from vaultfs.errors import NoSpaceError, RemoteError, RemoteUnreachableError
from vaultfs.mesh.connection import PeerConnection
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.message_codec import encode
from vaultfs.mesh.messages import Abort, Body, Data, Fail, Go, Ping, Pong, Put, Stored

from .scripted import VAULT, ScriptedPeer, conversation
from .test_bodies import DIGEST, opened, received


async def nothing() -> None:
    """Before a body is taken."""


TRIES = 20
"""Of what depends on which of two tasks the loop runs first; it draws lots."""


async def taken_late(connection: PeerConnection, before: Callable[[], Awaitable[None]] = nothing) -> None:
    """Take a body when as much of it has come as can be held."""
    async with connection.get(VAULT, "k") as body:
        await trio.testing.wait_all_tasks_blocked()
        await before()
        await received(body)


async def test_a_flood_behind_a_short_body_ends_the_connection_and_nothing_else() -> None:
    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(b"".join(encode(message) for message in (Body(1, 4, 4), *(Data(b"abcdef") for _ in range(40)))))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteUnreachableError, match="more than it has announced"):
            await taken_late(connection)
        assert connection.is_closed


async def test_an_end_while_a_body_is_not_taken() -> None:
    """The task that reads waits for whoever takes the body just then."""

    async def script(peer: ScriptedPeer) -> None:
        await peer.hear()
        await peer.say(Body(1, 600, 600), *(Data(bytes(6)) for _ in range(40)))
        await peer.hears_end()

    async with conversation(script) as (connection, _):
        with pytest.raises(RemoteError):
            await taken_late(connection, connection.aclose)


async def test_go_and_stored_at_once() -> None:
    """As for an object that has come wholly in an earlier try."""
    for _ in range(TRIES):

        async def script(peer: ScriptedPeer) -> None:
            put = await peer.hear()
            assert isinstance(put, Put)
            await peer.say(encode(Go(put.request, 9)) + encode(Stored(put.request)))
            await peer.hear()
            await peer.say(Pong(2))

        async with conversation(script) as (connection, _):
            assert await connection.put(VAULT, "k", 9, DIGEST, opened(b"123456789")) == 0
            await connection.ping()


async def test_go_and_a_failure_at_once() -> None:
    for _ in range(TRIES):

        async def script(peer: ScriptedPeer) -> None:
            put = await peer.hear()
            assert isinstance(put, Put)
            await peer.say(encode(Go(put.request, 0)) + encode(Fail(put.request, Code.FULL, "the disk is full")))
            while not isinstance(heard := await peer.hear(), Ping):
                assert isinstance(heard, Data | Abort)
            await peer.say(Pong(heard.request))

        async with conversation(script) as (connection, _):
            with pytest.raises(NoSpaceError, match="the disk is full"):
                await connection.put(VAULT, "k", 9, DIGEST, opened(b"123456789"))
            await connection.ping()


async def test_who_is_cancelled_just_as_the_peer_says_go_leaves_nothing_behind() -> None:
    """The peer waits for bytes then, and would take the next request for some."""
    for _ in range(TRIES):
        scope = trio.CancelScope()

        async def script(peer: ScriptedPeer, scope: trio.CancelScope = scope) -> None:
            put = await peer.hear()
            assert isinstance(put, Put)
            await trio.testing.wait_all_tasks_blocked()
            await peer.say(Go(put.request, 0))
            scope.cancel()  # before anybody has read that

        async with conversation(script) as (connection, _):
            with scope:
                await connection.put(VAULT, "k", 9, DIGEST, opened(b"123456789"))
            assert scope.cancelled_caught
            assert connection.is_closed
