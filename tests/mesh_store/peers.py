"""Real peers: servers in threads of this process, on loopback, each with a directory, an identity and grants."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import KnownPeer, VaultPeers
from vaultfs.mesh.grants import Access, Grant, Grants
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.pairing import Pairings
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import open_listeners, serve

HOST = "127.0.0.1"
PATIENCE_S = 30.0
NEVER_FULL = 0
"""Bytes of the disk that stay free."""


class RunningPeer:
    """A peer that can be stopped, and started again where it was.

    Args:
        root: its directory.
        seed: of its identity.
        quota_bytes: of all that it stores.
    """

    def __init__(self, root: Path, seed: int, quota_bytes: int | None = 1 << 30) -> None:
        self.identity = Identity.of_seed(seed.to_bytes(32, "big"))
        self.root = root
        self.quota_bytes = quota_bytes
        self.address = Address(HOST, 0)
        root.mkdir(parents=True)
        (root / "config").mkdir(mode=0o700)
        self.grants = Grants(root / "config" / "grants.json")
        self._thread: threading.Thread | None = None

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    def accept(self, peer: PeerId, access: Access = "write") -> None:
        self.grants.add(Grant(peer, None, access, None, "", 1))

    def start(self) -> None:
        assert self._thread is None
        started = threading.Event()
        failures: list[BaseException] = []

        async def main() -> None:
            listeners = await open_listeners([self.address])
            self.address = Address(HOST, listeners[0].socket.getsockname()[1])
            self._token = trio.lowlevel.current_trio_token()
            self._stop = trio.Event()
            store = ReplicaStore.open(self.root / "store", self.quota_bytes, reserve_bytes=NEVER_FULL)
            try:
                async with trio.open_nursery() as nursery:
                    pairings = Pairings(self.root / "config" / "pairing.json")
                    await nursery.start(self._serve, store, pairings, listeners)
                    started.set()
            finally:
                store.close()

        def run() -> None:
            try:
                trio.run(main)
            except BaseException as error:
                failures.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=run, name="peer")
        self._thread.start()
        assert started.wait(PATIENCE_S)
        assert not failures, failures

    async def _serve(
        self,
        store: ReplicaStore,
        pairings: Pairings,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[object],
    ) -> None:
        await serve(self.identity, store, self.grants, pairings, listeners, stop=self._stop, task_status=task_status)

    def stop(self) -> None:
        """Go down; doing it twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._token.run_sync_soon(self._stop.set)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def path(self, vault_id: VaultId, key: str) -> Path:
        """Where an object lies."""
        found = list((self.root / "store").rglob(key.rpartition("/")[2]))
        assert len(found) == 1, (vault_id, key, found)
        return found[0]

    def has(self, key: str) -> bool:
        return bool(list((self.root / "store").rglob(key.rpartition("/")[2])))


@contextmanager
def running(root: Path, count: int, caller: PeerId) -> Iterator[list[RunningPeer]]:
    """Some peers that let a caller store anything."""
    peers = [RunningPeer(root / f"peer-{number}", 100 + number) for number in range(count)]
    try:
        for peer in peers:
            peer.accept(caller)
            peer.start()
        yield peers
    finally:
        for peer in peers:
            peer.stop()


def page_of(vault_id: VaultId, peers: list[RunningPeer], replicas: int = 2) -> VaultPeers:
    known = tuple(KnownPeer(peer.id, peer.address) for peer in peers)
    return VaultPeers(vault_id, replicas, None, known)
