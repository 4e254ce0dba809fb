"""A machine with a vault, and real peers on loopback that hold it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mesh_store.peers import RunningPeer

from vaultfs.ids import PeerId
from vaultfs.mesh.identity import format_peer_id, parse_peer_id

from .conftest import Run, Said


class Household:
    """All of it.

    Args:
        vault: the vault.
        peers: that hold it, or are to.
        run: runs a command.
    """

    def __init__(self, vault: Path, peers: list[RunningPeer], run: Run) -> None:
        self.vault = vault
        self.peers = peers
        self._run = run
        self.vault_id = str(json.loads((vault / "vault.json").read_text())["vault_id"])

    def mesh(self, verb: str, *words: str | Path, vault: str | Path | None = None) -> Said:
        return self._run("mesh", verb, self.vault if vault is None else vault, *words, bare=True)

    def mesh_json(self, verb: str, *words: str | Path, vault: str | Path | None = None) -> tuple[int, Any]:
        said = self.mesh(verb, *words, "--json", vault=vault)
        return said.code, json.loads(said.out)

    def segments(self) -> set[str]:
        return {path.name.removesuffix(".seg") for path in (self.vault / "segments").glob("??/*.seg")}

    def copies(self, name: str) -> list[RunningPeer]:
        return [peer for peer in self.peers if peer.has(name)]

    def lose(self, peer: RunningPeer) -> None:
        """Let a peer's disk be empty when it comes back."""
        peer.stop()
        (peer.root / "store").rename(peer.root / "lost")
        peer.start()


@contextmanager
def household(vault: Path, where: Path, run: Run, count: int, zones: tuple[str, ...] = ()) -> Iterator[Household]:
    """A machine that has just added some peers."""
    said = run("peer", "init", "--json", bare=True)
    caller: PeerId = parse_peer_id(json.loads(said.out)["id"])
    peers = [RunningPeer(where / f"peer-{number}", 200 + number) for number in range(count)]
    try:
        for number, peer in enumerate(peers):
            peer.accept(caller)
            peer.start()
            zone = ["--zone", zones[number]] if zones else []
            added = run("peer", "add", vault, f"{format_peer_id(peer.id)}@{peer.address}", *zone, bare=True)
            assert added.code == 0, added.err
        yield Household(vault, peers, run)
    finally:
        for peer in peers:
            peer.stop()
