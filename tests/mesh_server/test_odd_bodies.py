"""Bodies that come otherwise than vaultfs sends them: ahead, in another encoding, cut, with frames that are none."""

from __future__ import annotations

import pytest
from mesh_replicas.peer_objects import data_of, read, segment_key

from vaultfs.mesh import incoming_object
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import DATA_BYTES, frame
from vaultfs.mesh.message_codec import data_frame, encode
from vaultfs.mesh.messages import Abort, Fail, Go, Ping, Pong, Stored

from .running import Peer

DATA = data_of(9, DATA_BYTES + 1000)
KEY = segment_key(DATA)


def lengthened(data: bytes) -> bytes:
    """`Data` with an element that a later version may add."""
    return frame(b"\x93\x05\xc5" + len(data).to_bytes(2, "big") + data + b"\x01")


async def test_bytes_that_come_along_with_the_request(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.say(encode(caller.put(KEY, DATA)) + data_frame(DATA[:5000]))
        await caller.hear(Go)
        await caller.say(data_frame(DATA[5000:6000]) + data_frame(DATA[6000:7000]))
        await caller.say(data_frame(DATA[7000 : 7000 + DATA_BYTES // 2]) + data_frame(DATA[7000 + DATA_BYTES // 2 :]))
        await caller.hear(Stored)
    assert read(peer.store, KEY) == DATA


async def test_a_later_encoding_is_understood(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await caller.say(lengthened(DATA[:300]) + data_frame(DATA[300:1000]) + lengthened(DATA[1000:60_000]))
        await caller.say(data_frame(DATA[60_000:100_000]) + data_frame(DATA[100_000:]))
        await caller.hear(Stored)
        await caller.ask(Ping(caller.next()), Pong)
    assert read(peer.store, KEY) == DATA


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
async def test_a_length_that_is_none_is_refused_by_itself(peer: Peer, length: int) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await caller.say(data_frame(DATA[:1000]) + length.to_bytes(4, "big"))
        assert (await caller.hears_failure_and_end()).code is Code.NOT_UNDERSTOOD


@pytest.mark.parametrize("rest", [b"", data_frame(DATA[1000:2000])[:500], b"\x00\x00"])
async def test_what_came_before_the_connection_broke_is_kept(peer: Peer, rest: bytes) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        await caller.say(data_frame(DATA[:1000]) + rest)
    await peer.until_connections(0)
    async with peer.call() as caller:
        go = await caller.ask(caller.put(KEY, DATA), Go)
        assert go.offset == 1000 + max(0, len(rest) - 9)  # length and head take nine bytes
        assert (await caller.ask(Abort(1), Fail)).request == 1


class Leaps:
    """A clock that goes on by ten seconds whenever somebody looks."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 10
        return self.now_s


async def test_who_dribbles_without_a_pause_is_cut(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer.call() as caller:
        await caller.ask(caller.put(KEY, DATA), Go)
        monkeypatch.setattr(incoming_object, "time", Leaps())
        await caller.say(b"".join(data_frame(DATA[at : at + 1]) for at in range(100)))
        await peer.until_connections(0)
