"""Frames that are none: they end their own connection, which is told so, and no other."""

from __future__ import annotations

import os

import msgspec
import pytest

from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import FIRST_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES
from vaultfs.mesh.messages import Ping, Pong, Welcome

from .running import ALICE, HELLO, Peer

NESTED = b"\x91" * 100_000 + b"\xc0"


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


@pytest.mark.parametrize(
    "said",
    [
        (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big"),
        b"\xff" * 4,
        bytes(4),
        (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big") + bytes(500_000),
        framed(os.urandom(1000)),
        framed(NESTED),
        framed(msgspec.msgpack.encode((18, 1, b"v" * 16, "\udcff".encode("utf-8", "surrogatepass"), 0, None))),
        framed(msgspec.msgpack.encode((99, 1))),
        framed(msgspec.msgpack.encode((19, 1, 5, 5))),
        framed(b"\xdd\xff\xff\xff\xff"),
    ],
    ids=[
        "long",
        "longest",
        "empty",
        "long with bytes",
        "noise",
        "nested",
        "text",
        "unknown",
        "an answer",
        "huge array",
    ],
)
async def test_after_hello(peer: Peer, said: bytes) -> None:
    async with peer.call() as other, peer.call() as caller:
        await caller.ask(Ping(1), Pong)
        await caller.say(said)
        assert (await caller.hears_failure_and_end()).code is Code.NOT_UNDERSTOOD
        caller.stream.abort()
        await peer.until_connections(1)
        await other.ask(Ping(1), Pong)


async def test_the_longest_frame_is_taken(peer: Peer) -> None:
    payload = msgspec.msgpack.encode((10, 1, bytes(MAX_PAYLOAD_BYTES - 8)))
    assert len(payload) == MAX_PAYLOAD_BYTES
    async with peer.call() as caller:
        await caller.ask(framed(payload), Pong)  # type: ignore[arg-type]  # elements at the end are ignored


async def test_before_hello_frames_are_short(peer: Peer) -> None:
    async with peer.connected(ALICE) as caller:
        await caller.say((FIRST_PAYLOAD_BYTES + 1).to_bytes(4, "big"))
        assert (await caller.hears_failure_and_end()).code is Code.NOT_UNDERSTOOD
    async with peer.connected(ALICE) as caller:
        hello = msgspec.msgpack.encode(HELLO)
        longer = hello[:1].replace(b"\x95", b"\x96") + hello[1:]
        longer += b"\xc5" + (FIRST_PAYLOAD_BYTES - len(hello) - 3).to_bytes(2, "big")
        longer += bytes(FIRST_PAYLOAD_BYTES - len(longer))
        assert len(longer) == FIRST_PAYLOAD_BYTES
        await caller.ask(framed(longer), Welcome)  # type: ignore[arg-type]


async def test_a_connection_that_is_cut_within_a_frame_ends(peer: Peer) -> None:
    async with peer.call() as other:
        async with peer.call() as caller:
            await caller.say((1000).to_bytes(4, "big") + bytes(10))
        await peer.until_connections(1)
        await other.ask(Ping(1), Pong)
