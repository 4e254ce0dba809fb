"""Reading while a peer sends nothing: the next is asked after some seconds, and whoever is first counts."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
import trio.testing
from blake3 import blake3

from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteUnreachableError, StorageError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import reading
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.reading import SHUNNED_S, SILENT_S, Reader

VAULT = VaultId(bytes(16))
PEERS = [PeerId(bytes([number]) * 32) for number in range(3)]
DATA = b"bytes of an object"
DIGEST = blake3(DATA).hexdigest()

Behaviour = Callable[[BinaryIO], Awaitable[None]]


async def honest(sink: BinaryIO) -> None:
    sink.writelines([DATA])


async def dead(sink: BinaryIO) -> None:
    await trio.sleep_forever()


async def lying(sink: BinaryIO) -> None:
    sink.writelines([b"other bytes"])


async def gone(sink: BinaryIO) -> None:
    raise RemoteUnreachableError("it is away")


async def without(sink: BinaryIO) -> None:
    raise ObjectMissingError("it has none")


async def steady(sink: BinaryIO) -> None:
    """Slow, but never silent."""
    for byte in DATA:
        await trio.sleep(SILENT_S - 0.5)
        sink.writelines([bytes([byte])])


async def stalling(sink: BinaryIO) -> None:
    sink.writelines([DATA[:5]])
    await trio.sleep_forever()


class Slow(MeshClient):
    """Peers that behave in some way, and who was asked."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = dict(zip(PEERS, behaviours, strict=False))
        self.asked: list[int] = []
        self.running = 0

    def name(self, peer: PeerId) -> str:
        return f"peer {PEERS.index(peer)}"

    async def fetch(
        self, peer: PeerId, vault: VaultId, key: str, sink: BinaryIO, *, offset: int = 0, length: int | None = None
    ) -> int:
        self.asked.append(PEERS.index(peer))
        self.running += 1
        try:
            await trio.lowlevel.checkpoint()
            await self.behaviours[peer](sink)
        finally:
            self.running -= 1
        return len(DATA)


async def whole(reader: Reader, client: Slow) -> bytes:
    with await reader.whole(client, PEERS[: len(client.behaviours)], "key", DIGEST, 100) as file:
        return file.read()


async def part(reader: Reader, client: Slow) -> bytes:
    with await reader.part(client, PEERS[: len(client.behaviours)], "key", 3, len(DATA)) as file:
        return file.read()


@pytest.mark.parametrize("read", [whole, part])
@pytest.mark.parametrize("first", [dead, stalling])
async def test_a_silent_peer_costs_some_seconds(
    autojump_clock: trio.testing.MockClock, read: Callable[[Reader, Slow], Awaitable[bytes]], first: Behaviour
) -> None:
    client, reader = Slow(first, honest), Reader(VAULT)
    began_s = trio.current_time()
    assert await read(reader, client) == DATA
    assert trio.current_time() - began_s <= 2 * SILENT_S
    assert client.running == 0
    began_s = trio.current_time()
    client.asked.clear()
    assert await whole(reader, client) == DATA
    assert (client.asked, trio.current_time()) == ([1], began_s), "it is asked last now"
    await trio.sleep(SHUNNED_S)
    client.asked.clear()
    client.behaviours[PEERS[0]] = honest
    assert await whole(reader, client) == DATA
    assert client.asked == [0]


async def test_two_silent_peers_and_a_third(autojump_clock: trio.testing.MockClock) -> None:
    client = Slow(dead, dead, honest)
    assert await whole(Reader(VAULT), client) == DATA
    assert trio.current_time() == pytest.approx(2 * SILENT_S)


async def test_a_slow_peer_is_not_left(autojump_clock: trio.testing.MockClock) -> None:
    client = Slow(steady, honest)
    assert await whole(Reader(VAULT), client) == DATA
    assert client.asked == [0]


async def test_a_peer_that_answers_late_is_still_heard(autojump_clock: trio.testing.MockClock) -> None:
    async def late(sink: BinaryIO) -> None:
        await trio.sleep(10 * SILENT_S)
        sink.writelines([DATA])

    client, reader = Slow(late, gone, without), Reader(VAULT)
    assert await whole(reader, client) == DATA
    assert client.asked == [0, 1, 2]
    client.asked.clear()
    assert await whole(reader, client) == DATA
    assert client.asked[0] == 0, "it has answered in the end"


async def test_who_is_silent_does_not_hide_why_the_others_failed(autojump_clock: trio.testing.MockClock) -> None:
    async def lost(sink: BinaryIO) -> None:
        await trio.sleep(60)
        raise RemoteUnreachableError("it was silent for a minute")

    with pytest.raises(RemoteUnreachableError, match="a minute"):
        await whole(Reader(VAULT), Slow(lost, without))


async def test_a_lie_is_passed_over_and_remembered(autojump_clock: trio.testing.MockClock) -> None:
    client, reader = Slow(lying, honest), Reader(VAULT)
    assert await whole(reader, client) == DATA
    assert reader.distrusted == {PEERS[0]}
    assert trio.current_time() == 0
    with pytest.raises(IntegrityError):
        await whole(reader, Slow(lying))


async def test_two_at_once_and_one_counts(autojump_clock: trio.testing.MockClock) -> None:
    """The slow one ends just when the second has brought everything."""

    async def waiting(sink: BinaryIO) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(SILENT_S + 1)
        sink.writelines([DATA])

    async def second(sink: BinaryIO) -> None:
        await trio.sleep(1)
        sink.writelines([DATA])

    client = Slow(waiting, second)
    assert await whole(Reader(VAULT), client) == DATA
    assert client.running == 0


class Files:
    """Counts the files that are open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[io.BytesIO] = []
        monkeypatch.setattr(Reader, "_spool", self.spool)

    def spool(self, most_bytes: int) -> BinaryIO:
        self.made.append(io.BytesIO())
        return self.made[-1]

    def open(self) -> int:
        return sum(not file.closed for file in self.made)


async def test_no_file_is_left_open(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(monkeypatch)
    assert await whole(Reader(VAULT), Slow(dead, lying, honest)) == DATA
    assert (len(files.made), files.open()) == (3, 0)
    with trio.move_on_after(SILENT_S + 1):
        await whole(Reader(VAULT), Slow(dead, dead))
    assert (len(files.made), files.open()) == (5, 0)
    with pytest.raises(RemoteUnreachableError):
        await whole(Reader(VAULT), Slow(gone))
    assert files.open() == 0


async def test_a_disk_that_fails_here_ends_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise OSError(5, "Input/output error")

    client = Slow(dead, honest, honest)
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "_spool", lambda _self, _most: Full())
        with pytest.raises(StorageError):
            await whole(Reader(VAULT), client)
    assert client.asked == [0, 1]
    monkeypatch.setattr(reading, "SPOOLED_BYTES", 0)
    with pytest.raises(StorageError):
        await whole(Reader(VAULT, tmp_path / "nowhere"), Slow(honest))


async def test_bytes_that_are_asked_for_again_come_from_another(autojump_clock: trio.testing.MockClock) -> None:
    """A cache asks for a block; who finds in it a chunk that does not open asks for that chunk alone."""
    client, reader = Slow(honest, honest, honest), Reader(VAULT)

    async def who(offset: int, length: int) -> int:
        client.asked.clear()
        (await reader.part(client, PEERS, "key", offset, max(length, len(DATA)))).close()
        return client.asked[0]

    assert await who(0, 4096) == 0
    assert await who(1000, 100) == 1
    assert await who(1000, 100) == 2
    assert await who(1000, 100) == 0, "all have been asked: the one before longest"
    assert await who(4096, 4096) == 0, "nobody has complained of these"
