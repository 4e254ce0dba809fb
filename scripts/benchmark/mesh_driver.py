"""What calls peers in the mesh rows, as a process of its own.  Prints what it found as JSON.

python -m benchmark.mesh_driver store VAULT                  store all segments with the vault's peers
python -m benchmark.mesh_driver requests ID@HOST:PORT COUNT  small requests, and connections each for one
python -m benchmark.mesh_driver plan                         plan where 10,000 segments go among 50 peers
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trio

from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.addresses import parse_peer_address
from vaultfs.mesh.client import Contact, MeshClient, open_client
from vaultfs.mesh.identity import require_identity
from vaultfs.mesh.placement import Placement, Site
from vaultfs.mesh.places import identity_path
from vaultfs.mesh.repair_plan import plan_repair
from vaultfs.mesh.store import MeshStore, mesh_url
from vaultfs.remotes import locations
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.public_header import read_header
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.sealed_source import open_source

CONNECTIONS = 4
"""As `vaultfs mesh replicate` has."""
PIPELINED = 32
PLANNED_PEERS = 50
PLANNED_SEGMENTS = 10_000
PLANNED_REPLICAS = 3
PLANNED_ZONES = 10
SEED = 20_240_229
UNKNOWN_VAULT = VaultId(bytes(16))
UNKNOWN_SEGMENT = SegmentName("00" * 32)
ANY_KEY = segment_key(UNKNOWN_SEGMENT)


def processor_s() -> float:
    """Seconds of processor time that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def store(vault: Path) -> dict[str, float]:
    """Store every sealed segment of a vault with its peers, over four connections."""
    layout = VaultLayout(vault)
    names = sorted(layout.sealed_names())
    sizes = {name: layout.sealed_path(name).stat().st_size for name in names}
    peers = MeshStore.of_url(locations.parse(mesh_url(read_header(layout).vault_id)), {})

    def send(name: SegmentName) -> None:
        with open_source(layout, name, sizes[name]) as source:
            peers.put(segment_key(name), source)

    peers.size_bytes(ANY_KEY)  # the peer was asked once, as any run does; connections are made when they are needed
    before_s = processor_s()
    start = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(send, names))
    wall_s = time.perf_counter() - start
    used_s = processor_s() - before_s
    peers.close()
    return {"wall_s": wall_s, "processor_s": used_s, "bytes": sum(sizes.values()), "objects": len(names)}


Request = Callable[[MeshClient, PeerId], Awaitable[object]]


async def ping(client: MeshClient, peer: PeerId) -> object:
    return await client.ping(peer)


async def stat(client: MeshClient, peer: PeerId) -> object:
    return await client.stat(peer, UNKNOWN_VAULT, ANY_KEY)


async def have(client: MeshClient, peer: PeerId) -> object:
    return await client.have(peer, UNKNOWN_VAULT, [UNKNOWN_SEGMENT])


REQUESTS: dict[str, Request] = {"Ping": ping, "Stat": stat, "Have": have}
WAYS = ("32 under way", "one after another", "a connection each")
FEWER = {"32 under way": 1, "one after another": 4, "a connection each": 20}
"""Only every so manieth request is made where that takes long; what is printed is for each one."""


async def requests(peer_address: str, count: int) -> dict[str, float]:
    """Seconds for each request: pooled with several under way, pooled one by one, and with a connection for each."""
    peer, address = parse_peer_address(peer_address, "PEER")
    assert peer is not None
    identity = require_identity(identity_path())
    contacts = [Contact(peer, address)]
    found = {}
    for name, request in REQUESTS.items():
        async with open_client(identity, contacts) as client:
            await request(client, peer)
            left = count
            start = time.perf_counter()

            async def ask_on(request: Request = request, client: MeshClient = client) -> None:
                nonlocal left
                while left:
                    left -= 1
                    await request(client, peer)

            async with trio.open_nursery() as nursery:
                for _ in range(PIPELINED):
                    nursery.start_soon(ask_on)
            found[f"{name}, {WAYS[0]}"] = (time.perf_counter() - start) / count
            fewer = count // FEWER[WAYS[1]]
            start = time.perf_counter()
            for _ in range(fewer):
                await request(client, peer)
            found[f"{name}, {WAYS[1]}"] = (time.perf_counter() - start) / fewer
        fewer = count // FEWER[WAYS[2]]
        start = time.perf_counter()
        for _ in range(fewer):
            async with open_client(identity, contacts) as client:
                await request(client, peer)
        found[f"{name}, {WAYS[2]}"] = (time.perf_counter() - start) / fewer
    return found


def plan() -> dict[str, float]:
    """Seconds for planning a first replication, and one after the loss of two peers."""
    generator = random.Random(SEED)
    names = [SegmentName(generator.randbytes(32).hex()) for _ in range(PLANNED_SEGMENTS)]
    needed = dict.fromkeys(names, 64 << 20)
    peers = [PeerId(generator.randbytes(32)) for _ in range(PLANNED_PEERS)]
    sites = [
        Site(peer, generator.randrange(1, 8) << 40, f"zone {number % PLANNED_ZONES}")
        for number, peer in enumerate(peers)
    ]
    room = dict.fromkeys(peers, 8 << 40)
    start = time.perf_counter()
    first = plan_repair(needed, {peer: {} for peer in peers}, Placement(sites), PLANNED_REPLICAS, room, set(names), {})
    first_s = time.perf_counter() - start
    holdings: dict[PeerId, dict[SegmentName, int]] = {peer: {} for peer in peers}
    for copy in first.copies:
        holdings[copy.dest][copy.name] = copy.size_bytes
    for lost in peers[:2]:
        del holdings[lost]
    start = time.perf_counter()
    second = plan_repair(needed, holdings, Placement(sites[2:]), PLANNED_REPLICAS, room, set(), {})
    return {
        "first_s": first_s,
        "first_copies": len(first.copies),
        "repair_s": time.perf_counter() - start,
        "repair_copies": len(second.copies),
    }


def main() -> None:
    """Run what the command line says."""
    what, *rest = sys.argv[1:]
    if what == "store":
        found = store(Path(rest[0]))
    elif what == "requests":
        found = trio.run(requests, rest[0], int(rest[1]))
    else:
        found = plan()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
