"""Peers that do not keep to the protocol, or to any: silent, slow, loud, or somebody else.

Each stands beside two honest ones.  A sync, a restore and an audit end in time, with what the honest ones have; nothing
wrong is believed, and the hostile one is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import trio

from vaultfs.errors import ExitCode
from vaultfs.ids import PeerId
from vaultfs.mesh.frames import DATA_BYTES, FIRST_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES
from vaultfs.mesh.identity import Identity, short_peer_id
from vaultfs.mesh.message_codec import encode
from vaultfs.mesh.messages import (
    Body,
    Data,
    FromCaller,
    Get,
    Go,
    Goodbye,
    Have,
    Hello,
    Holds,
    List,
    Listing,
    Pong,
    Put,
    Size,
    Stat,
    State,
    Status,
    Stored,
    Welcome,
)

from .conftest import MakeHousehold
from .hostile import Caller, HostilePeer, Raw, Script
from .household import Household
from .machines import until

DROP_S = 0.3
"""Between two bytes of one that is slow: within every patience for silence."""
FLOOD = bytes(64 << 10)
Make = Callable[..., HostilePeer]


@pytest.fixture
def home(make_household: MakeHousehold) -> Household:
    """Two honest peers."""
    return make_household(2)


@pytest.fixture
def hostile(home: Household) -> Iterator[Make]:
    """Adds a hostile one."""
    made: list[HostilePeer] = []

    def make(
        script: Script | None = None,
        *,
        raw: Raw | None = None,
        expected: PeerId | None = None,
        identity: Identity | None = None,
    ) -> HostilePeer:
        peer = HostilePeer(script, raw, identity)
        made.append(peer)
        home.know(expected or peer.id, peer.address)
        return peer

    yield make
    for peer in made:
        peer.close()


# --- what they do


async def say_nothing(socket: trio.SocketStream) -> None:
    while await socket.receive_some():
        pass


async def drip_noise(socket: trio.SocketStream) -> None:
    while True:
        await socket.send_all(b"\x16")
        await trio.sleep(DROP_S)


async def speak_another_protocol(socket: trio.SocketStream) -> None:
    await socket.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n<html>")
    await say_nothing(socket)


async def hang_up(socket: trio.SocketStream) -> None:
    await socket.receive_some()


async def flood(socket: trio.SocketStream) -> None:
    while True:
        await socket.send_all(FLOOD)


async def greet_with_nothing(caller: Caller) -> None:
    await caller.be_silent()


async def greet_with_noise(caller: Caller) -> None:
    await caller.say(b"\x00\x00\x00\x10" + b"\xc1" * 16)
    await caller.be_silent()


async def greet_at_length(caller: Caller) -> None:
    await caller.say((FIRST_PAYLOAD_BYTES + 1).to_bytes(4, "big"), FLOOD)
    await caller.be_silent()


async def greet_slowly(caller: Caller) -> None:
    for byte in encode(Welcome(1, (), "slow" * 10, True)):
        await caller.say(bytes([byte]))
        await trio.sleep(DROP_S)


async def answer_something_else(caller: Caller) -> None:
    await caller.greet()
    while True:
        asked = await caller.hear()
        await caller.say(Pong(getattr(asked, "request", 0)))


async def answer_without_being_asked(caller: Caller) -> None:
    await caller.greet()
    for number in range(1000):
        await caller.say(Pong(number))
    await caller.be_silent()


async def answer_endlessly_long(caller: Caller) -> None:
    await caller.greet()
    await caller.hear()
    await caller.say((MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big"))
    while True:
        await caller.say(FLOOD)


async def answer_half(caller: Caller) -> None:
    await caller.greet()
    await caller.hear()
    await caller.say(b"\x00\x00\x01\x00half")
    await caller.be_silent()


async def leave_at_once(caller: Caller) -> None:
    await caller.greet()
    await caller.say(Goodbye("no time"))


RAW: dict[str, Raw] = {
    "silent": say_nothing,
    "dripping": drip_noise,
    "HTTP": speak_another_protocol,
    "hanging up": hang_up,
    "flooding": flood,
}
SCRIPTS: dict[str, Script] = {
    "no greeting": greet_with_nothing,
    "noise for a greeting": greet_with_noise,
    "a long greeting": greet_at_length,
    "a slow greeting": greet_slowly,
    "another answer": answer_something_else,
    "answers to nothing": answer_without_being_asked,
    "an answer too long": answer_endlessly_long,
    "half an answer": answer_half,
    "goodbye at once": leave_at_once,
}
LONG = {
    "dripping",
    "HTTP",
    "hanging up",
    "no greeting",
    "a long greeting",
    "a slow greeting",
    "half an answer",
    "answers to nothing",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] if case in LONG else []) for case in (*RAW, *SCRIPTS)]
)
def test_one_that_does_not_keep_to_the_protocol(home: Household, hostile: Make, case: str) -> None:
    """What is to be saved is saved by the others, and told is who did not help."""
    peer = hostile(SCRIPTS.get(case), raw=RAW.get(case))
    home.sync().require(0)
    home.require_copies()
    status = home.status().require(0)
    said = next(each for each in status.json["peers"] if each["port"] == peer.address.port)
    assert not said["is_present"]
    assert said["error"]
    home.require_sound()
    assert peer.calls > 0
    until(lambda: peer.open == 0, "it has nobody left to talk to")


def test_one_that_can_be_reached_and_never_answers(home: Household, hostile: Make) -> None:
    """As if its disk hung.  Not every segment waits for it: after the first time-outs it is passed over for a while."""
    heard: list[FromCaller] = []

    async def never_answer(caller: Caller) -> None:
        await caller.greet()
        while True:
            heard.append(await caller.hear())

    hostile(never_answer)
    home.sync().require(0)
    assert 0 < len(heard) <= len(home.peers) + 1
    home.require_copies()
    (error,) = [each["error"] for each in home.status().require(0).json["peers"] if each["error"]]
    assert "has not answered" in error
    home.require_sound()


def test_somebody_else_at_the_address(home: Household, hostile: Make) -> None:
    """He has a key, and not the one: nothing is said to him, not even hello."""
    heard: list[bytes] = []

    async def listen(caller: Caller) -> None:
        while data := await caller.stream.receive_some():
            heard.append(data)

    wanted = Identity.new().peer_id
    hostile(listen, expected=wanted)
    home.sync().require(0)
    status = home.status().require(0)
    (error,) = [each["error"] for each in status.json["peers"] if each["error"]]
    assert short_peer_id(wanted) in error
    assert "another peer" in error
    assert heard == []
    home.require_sound()


class Pretender:
    """Answers as if it had room and nothing else; what it does with objects is a test's.

    Attributes:
        size_bytes: of any segment, which it says it has; 0: it has none.
        named: the segments that it lists.
    """

    def __init__(self) -> None:
        self.named: dict[str, int] = {}
        self.puts = 0
        self.gets = 0

    async def talk(self, caller: Caller) -> None:
        await caller.greet()
        while True:
            asked = await caller.hear()
            if isinstance(asked, Status):
                await caller.say(State(asked.request, 1 << 40, 0, 1 << 40, 0, 0, may_write=True))
            elif isinstance(asked, List):
                keys = {f"segments/{name[:2]}/{name}": size for name, size in self.named.items()}
                shown = tuple(sorted(each for each in keys.items() if each[0].startswith(asked.prefix)))
                await caller.say(Listing(asked.request, shown, has_more=False))
            elif isinstance(asked, Have):
                names = [asked.names[start : start + 32].hex() for start in range(0, len(asked.names), 32)]
                await caller.say(Holds(asked.request, tuple(self.named.get(name, 0) for name in names)))
            elif isinstance(asked, Stat):
                await caller.say(Size(asked.request, None, 0))
            elif isinstance(asked, Put):
                self.puts += 1
                await self.put(caller, asked)
            elif isinstance(asked, Get):
                self.gets += 1
                await self.get(caller, asked)
            elif isinstance(asked, Hello | Goodbye):
                return
            else:
                await caller.be_silent()

    async def put(self, caller: Caller, asked: Put) -> None:
        """Take an object."""
        await caller.be_silent()

    async def get(self, caller: Caller, asked: Get) -> None:
        """Give one."""
        await caller.be_silent()


class TakesNothing(Pretender):
    """Wants the bytes, and reads none."""

    async def put(self, caller: Caller, asked: Put) -> None:
        await caller.say(Go(asked.request, 0))
        await trio.sleep_forever()


class NeverStores(Pretender):
    """Reads all of it, and says nothing."""

    async def put(self, caller: Caller, asked: Put) -> None:
        await caller.say(Go(asked.request, 0))
        await caller.be_silent()


class WantsMore(Pretender):
    """Wants bytes from behind the end."""

    async def put(self, caller: Caller, asked: Put) -> None:
        await caller.say(Go(asked.request, asked.size_bytes + 1))


class StoresBefore(Pretender):
    """Says that it has stored what it has not yet seen, again and again."""

    async def put(self, caller: Caller, asked: Put) -> None:
        await caller.say(Go(asked.request, 0), *(Stored(asked.request) for _ in range(10)))
        await caller.be_silent()


@pytest.mark.parametrize(
    "kind",
    [
        TakesNothing,
        StoresBefore,
        pytest.param(NeverStores, marks=pytest.mark.long),
        pytest.param(WantsMore, marks=pytest.mark.long),
    ],
)
def test_one_that_takes_objects_badly(home: Household, hostile: Make, kind: type[Pretender]) -> None:
    pretender = kind()
    peer = hostile(pretender.talk)
    home.set_replicas(3)
    home.sync().require(ExitCode.PARTIAL)
    assert pretender.puts > 0
    home.require_copies()
    home.require_short()
    home.laptop.run("peer", "remove", home.vault, short_peer_id(peer.id)).require(0)
    home.set_replicas(2)
    home.require_sound()


class Gives(Pretender):
    """Says that it has everything, and gives something."""

    body_bytes: int | None = None
    pieces: tuple[bytes, ...] = ()
    pause_s = 0.0
    is_endless = False

    async def get(self, caller: Caller, asked: Get) -> None:
        size_bytes = self.named.get(asked.key.rpartition("/")[2], 0)
        body_bytes = size_bytes if self.body_bytes is None else self.body_bytes
        await caller.say(Body(asked.request, body_bytes, body_bytes))
        for piece in self.pieces:
            await caller.say(Data(piece))
        while self.is_endless:
            await caller.say(Data(b"x"))
            await trio.sleep(self.pause_s)
        await caller.be_silent()


class GivesNothing(Gives):
    """Announces it, and leaves it at that."""


class GivesTooMuch(Gives):
    """More than it has announced."""

    pieces = (bytes(DATA_BYTES),) * 8


class GivesGigabytes(Gives):
    """Announces more than a segment may have, and has it."""

    body_bytes = 1 << 40
    pieces = (bytes(DATA_BYTES),) * 8


class GivesByteByByte(Gives):
    """A byte now and then: never silent for long, and never done."""

    pause_s = DROP_S
    is_endless = True


@pytest.mark.parametrize(
    "kind",
    [
        GivesTooMuch,
        GivesByteByByte,
        pytest.param(GivesNothing, marks=pytest.mark.long),
        pytest.param(GivesGigabytes, marks=pytest.mark.long),
    ],
)
def test_one_that_gives_objects_badly(home: Household, hostile: Make, kind: type[Gives]) -> None:
    """Who wants them asks the next; it costs a time-out each, and not for ever."""
    home.sync().require(0)
    pretender = kind()
    peer = hostile(pretender.talk, identity=home.nearest_identity())
    pretender.named = home.segments
    home.require_restorable((peer.id, peer.address))
    assert pretender.gets > 0
    home.require_no_connections()
