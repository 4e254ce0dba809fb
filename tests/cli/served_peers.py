"""Peers in threads of this process, for commands that run in its main thread; they may be stopped, and may lie."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import trio

from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import Book
from vaultfs.mesh.grants import Grant, Grants
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.messages import Range
from vaultfs.mesh.pairing import Pairings
from vaultfs.mesh.places import book_path, identity_path
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import Limits, open_listeners, serve
from vaultfs.mesh.witness import Head
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.public_header import read_header

PATIENCE_S = 30
_LIMITS = Limits(closing_s=1.0, scrub_pause_s=3600.0)


class LyingStore(ReplicaStore):
    """A store that can be made to lie.

    Attributes:
        proves: makes the answer to an audit of the honest one; None: honestly.
        invents: says that it has all segments, with these sizes by the hexadecimal name.
        heads: that it says it has seen; None: honestly.
        withholds: keys that it lists and does not give.
    """

    proves: Callable[[bytes], bytes] | None = None
    invents: dict[str, int] | None = None
    heads: list[Head] | None = None
    withholds: frozenset[str] = frozenset()

    def have(self, vault: VaultId, names: bytes) -> list[int]:
        found = super().have(vault, names)
        if self.invents is None:
            return found
        asked = [names[start : start + 32].hex() for start in range(0, len(names), 32)]
        return [size or self.invents.get(name, 0) for size, name in zip(found, asked, strict=True)]

    def audit(self, vault: VaultId, key: bytes, ranges: Sequence[Range]) -> bytes:
        honest = super().audit(vault, key, ranges)
        return honest if self.proves is None else self.proves(honest)

    def newest_heads(self, vault: VaultId) -> list[Head]:
        return super().newest_heads(vault) if self.heads is None else self.heads

    def reader(self, vault: VaultId, key: str, offset: int = 0, length: int | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN201
        return super().reader(vault, "probe/withheld" if key in self.withholds else key, offset, length)


def kept_identity(path: Path) -> Identity:
    """The identity in a file, or a new one."""
    known = Identity.load(path)
    if known is None:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        known = Identity.new()
        known.save(path)
    return known


class ServedPeer:
    """One peer.

    Args:
        where: its directory.
        caller: who may store there.

    Attributes:
        skew_ns: how far its clock is ahead.
    """

    def __init__(self, where: Path, caller: PeerId) -> None:
        where.mkdir(exist_ok=True)
        self.where = where
        self.identity = kept_identity(where / "identity.pem")
        self.skew_ns = 0
        self.grants = Grants(where / "grants.json")
        self.grants.add(Grant(caller, None, "write", None, "", 0))
        self.address = Address("127.0.0.1", 1)
        self._port = 0
        self._thread: threading.Thread | None = None

    @property
    def root(self) -> Path:
        return self.where / "store"

    def start(self) -> None:
        self.store = LyingStore.open(self.root, None, lambda: time.time_ns() + self.skew_ns, reserve_bytes=0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), name="peer")
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    async def _main(self) -> None:
        listeners = await open_listeners([Address("127.0.0.1", self._port)])
        self._port = listeners[0].socket.getsockname()[1]
        self.address = Address("127.0.0.1", self._port)
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._ready.set()
        pairings = Pairings(self.where / "pairing.json")
        await serve(self.identity, self.store, self.grants, pairings, listeners, _LIMITS, stop=self._stop)

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._token.run_sync_soon(self._stop.set)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            self.store.close()

    def keys(self, vault_id: VaultId, prefix: str) -> set[str]:
        """What it has, while it runs."""
        found, has_more = self.store.listing(vault_id, prefix, "", 100_000)
        assert not has_more
        return {key for key, _ in found}

    def change(self, key: str, data: bytes) -> None:
        """Change the bytes of an object on its disk."""
        (path,) = self.root.rglob(key)
        path.chmod(0o600)
        path.write_bytes(data)


class ServedPeers:
    """Some peers, which this user's address book has for a vault.

    Args:
        where: for their directories; what is in them counts.
        vault_id: whose.
        count: how many.
    """

    def __init__(self, where: Path, vault_id: VaultId, count: int) -> None:
        self.caller = kept_identity(identity_path()).peer_id
        self.vault_id = vault_id
        self.peers = [ServedPeer(where / f"peer{number}", self.caller) for number in range(count)]
        for peer in self.peers:
            peer.start()
            self.know(peer)

    @classmethod
    def of(cls, where: Path) -> Self:
        """Two peers of the vault in a directory."""
        return cls(where, read_header(VaultLayout(where / "vault")).vault_id, 2)

    @property
    def url(self) -> str:
        return f"mesh://{self.vault_id.hex()}"

    def know(self, peer: ServedPeer, address: Address | None = None) -> None:
        Book(book_path()).add(self.vault_id, peer.identity.peer_id, address or peer.address)

    def keys(self, prefix: str) -> list[set[str]]:
        """What each of them has."""
        return [peer.keys(self.vault_id, prefix) for peer in self.peers]

    def close(self) -> None:
        for peer in self.peers:
            peer.stop()
