"""Who is slow, or silent, is cut; the clock is the test's."""

from __future__ import annotations

import os

import pytest
from mesh_replicas.peer_objects import VAULT, data_of, put_segment, segment_key
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from vaultfs.mesh import tls_stream
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.message_codec import data_frame, encode
from vaultfs.mesh.message_stream import ConnectionLostError
from vaultfs.mesh.messages import Body, Get, Go, Goodbye, Pair, Paired, Ping, Pong, Welcome
from vaultfs.mesh.pairing import ANY_VAULT, Meeting, code_key, parse_code

from .running import ALICE, HELLO, PEER, STRANGER, Caller, Peer

HOLDS_STILL_S = 0.01
"""Real seconds without anything to do, after which a step of the peer is over."""


async def passes(clock: MockClock, seconds: float) -> None:
    """Let time pass, once everybody waits; and let happen what comes of it."""
    await everybody_waits()
    clock.jump(seconds)
    await everybody_waits()


async def everybody_waits() -> None:
    """Bodies are read by threads, which tasks wait for."""
    await wait_all_tasks_blocked(HOLDS_STILL_S)
    await wait_all_threads_completed()
    await wait_all_tasks_blocked(HOLDS_STILL_S)


async def test_a_handshake_that_does_not_begin(peer: Peer, mock_clock: MockClock) -> None:
    socket = await peer.open_socket()
    async with socket:
        await peer.until_connections(1)
        await passes(mock_clock, 9.9)
        assert peer.server.connections == 1
        await passes(mock_clock, 0.2)
        await peer.until_connections(0)


async def test_a_handshake_that_comes_byte_by_byte(peer: Peer, mock_clock: MockClock) -> None:
    socket = await peer.open_socket()
    async with socket:
        await peer.until_connections(1)
        for byte in b"\x16\x03\x01\x02":
            await socket.send_all(bytes([byte]))
            await passes(mock_clock, 2.4)
        assert peer.server.connections == 1
        await socket.send_all(b"\x00")
        await passes(mock_clock, 0.6)
        await peer.until_connections(0)


async def test_hello_that_does_not_come_counts_with_the_handshake(peer: Peer, mock_clock: MockClock) -> None:
    socket = await peer.open_socket()
    socket.socket.close()
    await peer.until_connections(0)
    async with peer.connected(ALICE) as caller:
        await passes(mock_clock, 9.9)
        await caller.say(encode(HELLO)[:5])
        assert peer.server.connections == 1
        await passes(mock_clock, 0.2)
        await peer.until_connections(0)


async def test_half_a_frame(peer: Peer, mock_clock: MockClock) -> None:
    async with peer.call() as caller:
        await passes(mock_clock, 100)
        await caller.say((1000).to_bytes(4, "big"))
        for _ in range(4):
            await passes(mock_clock, 7.25)
            await caller.say(b"x")
        assert peer.server.connections == 1
        await passes(mock_clock, 1.1)
        await peer.until_connections(0)


async def test_an_idle_connection_hears_goodbye(peer: Peer, mock_clock: MockClock) -> None:
    async with peer.call() as caller:
        await passes(mock_clock, 329)
        await caller.ask(Ping(1), Pong)
        await passes(mock_clock, 329)
        assert peer.server.connections == 1
        await passes(mock_clock, 1.1)
        await caller.hear(Goodbye)
        await caller.hears_end()
        await peer.until_connections(0)


async def test_a_body_that_does_not_go_on(peer: Peer, mock_clock: MockClock) -> None:
    data = data_of(1, 3 * DATA_BYTES)
    async with peer.call() as caller:
        await caller.ask(caller.put(segment_key(data), data), Go)
        for start in (0, DATA_BYTES):
            await passes(mock_clock, 29)
            await caller.say(data_frame(data[start : start + DATA_BYTES]))
        await passes(mock_clock, 29)
        assert peer.server.connections == 1
        await passes(mock_clock, 1.1)
        await peer.until_connections(0)


async def test_a_body_that_dribbles(peer: Peer, mock_clock: MockClock) -> None:
    data = data_of(1, 3 * DATA_BYTES)
    async with peer.call() as caller:
        await caller.ask(caller.put(segment_key(data), data), Go)
        for start in range(2):
            await caller.say(data_frame(data[start : start + 1]))
            await passes(mock_clock, 14)
        assert peer.server.connections == 1
        await caller.say(data_frame(data[2:3]))
        await passes(mock_clock, 2.1)
        await peer.until_connections(0)


async def test_a_sender_that_has_said_goodbye_has_ten_seconds(peer: Peer, mock_clock: MockClock) -> None:
    data = data_of(1, 3 * DATA_BYTES)
    async with peer.call() as caller:
        await caller.ask(caller.put(segment_key(data), data), Go)
        await caller.say(Goodbye("soon"))
        await passes(mock_clock, 9.9)
        assert peer.server.connections == 1
        await passes(mock_clock, 0.2)
        await peer.until_connections(0)


async def test_a_reader_that_takes_nothing(peer: Peer, mock_clock: MockClock) -> None:
    data = data_of(1, 24 << 20)
    key = put_segment(peer.store, data)
    async with peer.call() as caller:
        await caller.ask(Get(1, VAULT, key, 0, None), Body)
        await passes(mock_clock, 29)
        assert peer.server.connections == 1
        await passes(mock_clock, 1.1)
        await peer.until_connections(0)
        with pytest.raises(ConnectionLostError):
            await everything(caller)


async def everything(caller: Caller) -> None:
    while await caller.stream.receive_payload() is not None:
        pass


async def test_strangers_stay_twenty_seconds(peer: Peer, mock_clock: MockClock) -> None:
    async with peer.call(STRANGER) as caller, peer.call(ALICE) as other:
        for number in range(1, 5):
            await passes(mock_clock, 4.9)
            await caller.ask(Ping(number), Pong)
        await passes(mock_clock, 0.5)
        await peer.until_connections(1)
        await other.ask(Ping(1), Pong)


async def test_a_stranger_that_has_paired_stays(peer: Peer, mock_clock: MockClock) -> None:
    key = code_key(parse_code(peer.pairings.offer()))
    proof = Meeting(STRANGER.peer_id, PEER.peer_id, ANY_VAULT, bytes(32)).caller_proof(key)
    async with peer.call(STRANGER) as caller:
        await caller.ask(Pair(1, ANY_VAULT, bytes(32), proof, ""), Paired)
        await passes(mock_clock, 100)
        await caller.ask(Ping(2), Pong)


async def test_the_open_connections_of_a_revoked_caller_are_cut(peer: Peer, mock_clock: MockClock) -> None:
    data = data_of(1, DATA_BYTES)
    async with peer.call() as idle, peer.call() as sending, peer.call(STRANGER) as stranger:
        await sending.ask(sending.put(segment_key(data), data), Go)
        await passes(mock_clock, 6)
        assert peer.server.connections == 3
        peer.revoke(ALICE)
        await passes(mock_clock, 6)
        await peer.until_connections(1)
        await stranger.ask(Ping(1), Pong)
        for caller in (idle, sending):
            await caller.hears_end()


async def test_hello_in_time_ends_the_limit_of_the_greeting(peer: Peer, mock_clock: MockClock) -> None:
    async with peer.connected(ALICE) as caller:
        await passes(mock_clock, 9)
        await caller.ask(HELLO, Welcome)
        await passes(mock_clock, 60)
        await caller.ask(Ping(1), Pong)


async def test_what_comes_in_the_last_moment_is_no_fault(
    peer: Peer, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_stream, "_LINGER_MS", 0)  # the loop waits, and not a thread
    data = data_of(1, 1000)
    async with peer.call() as caller:
        await caller.ask(caller.put(segment_key(data), data), Go)
        await wait_all_tasks_blocked(HOLDS_STILL_S)
        tls = caller.tls
        tls._tls.write(data_frame(data[:1]))
        os.write(caller.socket.socket.fileno(), tls._outgoing.read())
        mock_clock.jump(31)  # the peer finds both at once: what came, and that the time is over
        await peer.until_connections(0)
    assert not [event for event in peer.events if "fault" in event.text]
