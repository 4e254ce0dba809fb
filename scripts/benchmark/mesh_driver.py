"""What calls peers in the mesh rows, as a process of its own.  Prints what it found as JSON.

    python -m benchmark.mesh_driver store VAULT                  store all segments with the vault's peers
    python -m benchmark.mesh_driver requests ID@HOST:PORT COUNT  small requests, and connections each for one
"""

from __future__ import annotations

import json
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
from vaultfs.mesh.places import identity_path
from vaultfs.mesh.store import MeshStore, mesh_url
from vaultfs.remotes import locations
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.public_header import read_header
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.sealed_source import open_source

CONNECTIONS = 4
"""As `vaultfs mesh replicate` has."""
PIPELINED = 32
ROUNDS_OF_CONNECTIONS = 5
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


REQUESTS: dict[str, Request] = {"ping": ping, "stat": stat, "have": have}


async def requests(peer_address: str, count: int) -> dict[str, float]:
    """Seconds for each request: several under way, one after the other, and with a connection for each one."""
    peer, address = parse_peer_address(peer_address, "PEER")
    assert peer is not None
    identity = require_identity(identity_path())
    contacts = [Contact(peer, address)]
    found = {}
    for name, request in REQUESTS.items():
        async with open_client(identity, contacts) as client:
            await request(client, peer)
            start = time.perf_counter()
            left = count

            async def ask_on(request: Request = request, client: MeshClient = client) -> None:
                nonlocal left
                while left:
                    left -= 1
                    await request(client, peer)

            async with trio.open_nursery() as nursery:
                for _ in range(PIPELINED):
                    nursery.start_soon(ask_on)
            found[f"{name}-pipelined"] = (time.perf_counter() - start) / count
            start = time.perf_counter()
            for _ in range(count // 4):
                await request(client, peer)
            found[f"{name}-sequential"] = (time.perf_counter() - start) / (count // 4)
        start = time.perf_counter()
        for _ in range(count // 20):
            async with open_client(identity, contacts) as client:
                await request(client, peer)
        found[f"{name}-connection-each"] = (time.perf_counter() - start) / (count // 20)
    return found


def main() -> None:
    """Run what the command line says."""
    what, where, *rest = sys.argv[1:]
    found = store(Path(where)) if what == "store" else trio.run(requests, where, int(rest[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
