"""Callers that want a peer's memory, as a process of its own; every one of them is accepted by the peer.

python -m benchmark.mesh_flood ids                          print their ids
python -m benchmark.mesh_flood seed HOST:PORT               store a first object
python -m benchmark.mesh_flood KIND HOST:PORT               flood the peer, see `FLOODS`
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import blake3
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vaultfs.errors import RemoteError
from vaultfs.ids import SegmentName, SnapshotSeq, VaultId
from vaultfs.mesh.addresses import Address, parse_address
from vaultfs.mesh.frames import DATA_BYTES, MAX_PAYLOAD_BYTES
from vaultfs.mesh.identity import Identity, format_peer_id
from vaultfs.mesh.message_codec import data_frame, decode_from_peer
from vaultfs.mesh.message_stream import MessageStream
from vaultfs.mesh.messages import (
    MAGIC,
    MOST_NAMES,
    Audit,
    FromPeer,
    Get,
    Go,
    Have,
    Hello,
    List,
    Listing,
    Message,
    Put,
    Range,
    Stored,
    Welcome,
)
from vaultfs.mesh.tls import client_context, handshake
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.remote_layout import RemoteHead, head_key, segment_key

CALLERS = 8
CONNECTIONS_OF_ONE = 16
CALLER_SEEDS = [bytes([number]) * 32 for number in range(1, CALLERS + 1)]
VAULT = VaultId(b"flooded vault 16")
OBJECT_BYTES = 64 << 20
SENT_BYTES = 8 << 20
"""Of each object, before its sender stops."""
STILL_S = 2.0
"""How long everybody holds what he has, in the end."""
MANIFEST_BYTES = 16 << 20
UNREAD_REQUESTS = 2_000
FLOOD_LIMIT_S = 5.0
"""How long a caller tries to send."""


class Caller:
    """A connection after hello.

    Args:
        stream: of messages.
        number: of the connection.
    """

    def __init__(self, stream: MessageStream, number: int) -> None:
        self.stream = stream
        self.number = number

    async def hear(self) -> FromPeer:
        payload = await self.stream.receive_payload()
        if payload is None:
            raise RemoteError("the peer has closed the connection")
        return decode_from_peer(payload)

    async def ask(self, message: Message) -> FromPeer:
        await self.stream.send(message)
        return await self.hear()


@asynccontextmanager
async def called(address: Address, contexts: list[ssl.SSLContext], number: int) -> AsyncIterator[Caller]:
    """A connection of one of the callers."""
    async with await trio.open_tcp_stream(address.host, address.port) as socket:
        tls, _ = await handshake(socket, contexts[number % CALLERS], server_side=False)
        caller = Caller(MessageStream(tls), number)
        answer = await caller.ask(Hello(MAGIC, (1,), ("shares", "witness"), "flood"))
        if not isinstance(answer, Welcome):
            raise RemoteError(f"the peer answers {answer}")
        yield caller


Flood = Callable[[Caller], Awaitable[None]]
"""What a caller does on a connection, before he falls silent."""


async def send_objects(caller: Caller) -> None:
    """A part of an object each, as fast as it is taken; 32 bodies are, and the others wait."""
    digest = blake3.blake3(caller.number.to_bytes(8, "big")).digest()
    put = Put(1, VAULT, segment_key(SegmentName(digest.hex())), OBJECT_BYTES, digest, False, 0)
    if isinstance(await caller.ask(put), Go):
        frame = data_frame(bytes(DATA_BYTES))
        for _ in range(SENT_BYTES // DATA_BYTES):
            await caller.stream.send(frame)


async def send_crumbs(caller: Caller) -> None:
    """Objects in frames of one byte."""
    digest = blake3.blake3(b"crumbs" + caller.number.to_bytes(8, "big")).digest()
    put = Put(1, VAULT, segment_key(SegmentName(digest.hex())), OBJECT_BYTES, digest, False, 0)
    if isinstance(await caller.ask(put), Go):
        frames = data_frame(b"x") * 4096
        for _ in range(16):
            await caller.stream.send(frames)


async def take_nothing(caller: Caller) -> None:
    """Ask for an object, and read nothing of it."""
    await caller.stream.send(Get(1, VAULT, segment_key(_first_object()[0]), 0, None))


async def ask_much(caller: Caller) -> None:
    """Long questions, whose answers nobody reads."""
    names = bytes(MOST_NAMES * 32)
    for request in range(1, UNREAD_REQUESTS + 1):
        await caller.stream.send(Have(request, VAULT, names))


async def ask_for_much(caller: Caller) -> None:
    """Short questions, whose long answers nobody reads."""
    for request in range(1, UNREAD_REQUESTS + 1):
        await caller.stream.send(List(request, VAULT, "", ""))


async def half_frames(caller: Caller) -> None:
    """The longest frame there can be, but for its last byte."""
    await caller.stream.send(MAX_PAYLOAD_BYTES.to_bytes(4, "big") + bytes(MAX_PAYLOAD_BYTES - 1))


async def long_frames(caller: Caller) -> None:
    """Frames that say they have 4 GiB."""
    await caller.stream.send(bytes([255]) * 4 + bytes(DATA_BYTES))


async def list_all(caller: Caller) -> None:
    """List everything."""
    after, has_more, request = "", True, 0
    while has_more:
        request += 1
        page = await caller.ask(List(request, VAULT, "", after))
        if not isinstance(page, Listing):
            raise RemoteError(f"a listing is answered by {page}")
        after, has_more = page.entries[-1][0], page.has_more


async def audit(caller: Caller) -> None:
    """Have 64 MiB hashed."""
    name, data = _first_object()
    await caller.ask(Audit(1, VAULT, bytes(32), (Range(bytes.fromhex(name), 0, len(data)),) * 256))


async def manifests(caller: Caller) -> None:
    """Store the longest manifest: half a million segments of a byte each."""
    key = Ed25519PrivateKey.from_private_bytes(caller.number.to_bytes(32, "big"))
    count = (MANIFEST_BYTES - 1024) // 33
    segments = tuple((SegmentName(f"{at:064x}"), 1) for at in range(count))
    manifest = Manifest(VAULT, key.public_key().public_bytes_raw(), SnapshotSeq(1), 1, None, segments, b"")
    data = manifest.encode(key.sign(manifest.signed_bytes()))
    digest = blake3.blake3(data).digest()
    head = head_key(RemoteHead(manifest.device.hex(), 1, digest.hex()))
    answer = await caller.ask(Put(1, VAULT, head, len(data), digest, False, 0))
    if not isinstance(answer, Go):
        raise RemoteError(f"a manifest is answered by {answer}")
    for start in range(0, len(data), DATA_BYTES):
        await caller.stream.send(data_frame(data[start : start + DATA_BYTES]))
    if not isinstance(answer := await caller.hear(), Stored):
        raise RemoteError(f"a manifest is answered by {answer}")


FLOODS: dict[str, tuple[Flood, int]] = {
    "objects": (send_objects, CALLERS * CONNECTIONS_OF_ONE),
    "crumbs": (send_crumbs, CALLERS * CONNECTIONS_OF_ONE),
    "unread-objects": (take_nothing, CALLERS * CONNECTIONS_OF_ONE),
    "unread-answers": (ask_much, CALLERS * CONNECTIONS_OF_ONE),
    "unread-listings": (ask_for_much, CALLERS * CONNECTIONS_OF_ONE),
    "half-frames": (half_frames, CALLERS * CONNECTIONS_OF_ONE),
    "long-frames": (long_frames, CALLERS * CONNECTIONS_OF_ONE),
    "listings": (list_all, CALLERS),
    "audits": (audit, CALLERS),
    "manifests": (manifests, 4),
}


def _first_object() -> tuple[SegmentName, bytes]:
    data = bytes(32 << 20)
    return SegmentName(blake3.blake3(data).hexdigest()), data


async def seed(caller: Caller) -> None:
    """Store what the others ask for."""
    name, data = _first_object()
    await caller.ask(Put(1, VAULT, segment_key(name), len(data), bytes.fromhex(name), False, 0))
    for start in range(0, len(data), DATA_BYTES):
        await caller.stream.send(data_frame(data[start : start + DATA_BYTES]))
    if not isinstance(answer := await caller.hear(), Stored):
        raise RemoteError(f"the first object is answered by {answer}")


async def flood(work: Flood, count: int, address: Address) -> None:
    """Have a number of connections do something at once, and hold what they have for a while."""
    contexts = [client_context(Identity.of_seed(each)) for each in CALLER_SEEDS]
    places = trio.CapacityLimiter(CALLERS)
    all_still = trio.Event()
    moving = count

    async def call(number: int) -> None:
        nonlocal moving
        async with called(address, contexts, number) as caller:
            places.release_on_behalf_of(number)
            try:
                with trio.move_on_after(FLOOD_LIMIT_S):
                    await work(caller)
            except RemoteError:
                if work not in ROUGH:
                    raise
            moving -= 1
            if not moving:
                all_still.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(count):
            await places.acquire_on_behalf_of(number)  # handshakes have a deadline; not all at once
            nursery.start_soon(call, number)
        await all_still.wait()
        await trio.sleep(STILL_S)
        nursery.cancel_scope.cancel()


ROUGH: set[Flood] = {long_frames, half_frames, ask_much, ask_for_much}
"""Those whose connections the peer ends."""


def main() -> None:
    """Run what the command line says."""
    what, *rest = sys.argv[1:]
    if what == "ids":
        print("\n".join(format_peer_id(Identity.of_seed(each).peer_id) for each in CALLER_SEEDS))
        return
    work, count = (seed, 1) if what == "seed" else FLOODS[what]
    trio.run(flood, work, count, parse_address(rest[0], "PEER"))


if __name__ == "__main__":
    main()
