"""A machine with a vault, peers that hold it, and what must hold after every fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from blake3 import blake3

import vaultfs
from vaultfs.errors import ExitCode
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import Book
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.placement import Placement, Site
from vaultfs.mesh.store import mesh_url
from vaultfs.remotes.configured import Remote, save_remotes
from vaultfs.remotes.store import Features
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest

from .machines import PASSWORD, Ended, Forker, Machine, PeerMachine
from .network import Network

REPLICAS: Final = 2


class Household:
    """All of it.

    Args:
        where: for the directories of the machines.
        forker: starts processes.
        vault: is copied to the laptop.
        contents: what is in it, by path.
        network: hosts for the machines are made there; None: all are on loopback.
    """

    def __init__(
        self, where: Path, forker: Forker, vault: Path, contents: dict[str, bytes], network: Network | None = None
    ) -> None:
        self._where = where
        self._forker = forker
        self._network = network
        self.contents = contents
        self.peers: list[PeerMachine] = []
        self.laptop = self.machine("laptop", Machine)
        self.vault = self.laptop.root / "vault"
        shutil.copytree(vault, self.vault)
        self.vault_id = VaultId(bytes.fromhex(json.loads((vault / "vault.json").read_text())["vault_id"]))
        self.url = mesh_url(self.vault_id)
        remote = Remote("mesh", self.url, features=Features(range_reads=True))
        save_remotes(VaultLayout(self.vault), [remote])
        self.manifest = _newest(self.vault)

    def machine(self, name: str, kind: type[Machine]) -> Machine:
        """A machine more; in a network it has the same name as its host."""
        if self._network is None:
            return kind(self._where / name, self._forker)
        host = self._network.host(name)
        return kind(self._where / name, self._forker, host.address, host.namespace)

    def add_peer(self, settings: dict[str, object] | None = None, identity: Identity | None = None) -> PeerMachine:
        """A machine more that serves, and is known."""
        peer = self.machine(f"peer{len(self.peers)}", PeerMachine)
        assert isinstance(peer, PeerMachine)
        peer.settings = settings or {}
        if identity is not None:
            peer.identity = identity
        peer.accept(self.laptop.id)
        peer.serve()
        self.peers.append(peer)
        self.know(peer.id, peer.listens_at)
        return peer

    def know(self, peer: PeerId, address: Address, machine: Machine | None = None) -> None:
        """Have a machine know a peer of the vault; the laptop if none is named."""
        Book((machine or self.laptop).mesh / "peers.json").add(self.vault_id, peer, address)

    def nearest_identity(self) -> Identity:
        """One that is asked first for the largest segment, by who has not asked for the peers' sizes yet."""
        name = SegmentName(max(self.segments, key=self.segments.__getitem__))
        while True:
            found = Identity.new()
            sites = [Site(peer, 1 << 40, "") for peer in (found.peer_id, *(peer.id for peer in self.peers))]
            if Placement(sites).ranking(name)[0].peer == found.peer_id:
                return found

    def set_replicas(self, replicas: int) -> None:
        """How many copies there are to be."""
        Book(self.laptop.mesh / "peers.json").set_replicas(self.vault_id, replicas)

    # --- commands

    def sync(self, *words: str) -> Ended:
        """`vaultfs sync`, however it ends."""
        return self.laptop.run("sync", self.vault, "--quiet", *words)

    def repair(self, *words: str) -> Ended:
        """`vaultfs mesh repair --json`, however it ends."""
        return self.laptop.run("mesh", "repair", self.vault, "--quiet", "--json", *words)

    def status(self) -> Ended:
        """`vaultfs mesh status --json`, however it ends."""
        return self.laptop.run("mesh", "status", self.vault, "--json")

    def audit(self, *words: str) -> Ended:
        """`vaultfs mesh audit --json`, however it ends."""
        return self.laptop.run("mesh", "audit", self.vault, "--json", *words)

    def write(self, path: str, data: bytes, machine: Machine | None = None, vault: Path | None = None) -> None:
        """Put a file into the vault, and make a snapshot."""
        source = self._where / "to-put"
        source.write_bytes(data)
        owner, place = machine or self.laptop, vault or self.vault
        owner.run("put", place, source, path).require(0)
        owner.run("snapshot", "create", place).require(0)
        if place == self.vault:
            self.contents = {**self.contents, path: data}
            self.manifest = _newest(self.vault)

    # --- what must hold

    @property
    def segments(self) -> dict[str, int]:
        """What the newest snapshot needs, and the sizes in bytes."""
        return dict(self.manifest.segments)

    def holders(self, name: str, among: Collection[PeerMachine] | None = None) -> list[PeerMachine]:
        """Peers that have a good copy of a segment on their disk."""
        return [peer for peer in (self.peers if among is None else among) if self._has_right(peer, name)]

    def _has_right(self, peer: PeerMachine, name: str) -> bool:
        path = self.stored(peer) / "segments" / name[:2] / name
        return path.is_file() and blake3(path.read_bytes()).hexdigest() == name

    def stored(self, peer: PeerMachine) -> Path:
        """Where a peer keeps this vault."""
        return peer.store / self.vault_id.hex()

    def require_copies(self, replicas: int = REPLICAS, among: Collection[PeerMachine] | None = None) -> None:
        """No segment has fewer good copies on the disks of peers that run."""
        alive = [peer for peer in (self.peers if among is None else among) if peer.is_running]
        short = {name: len(found) for name in self.segments if len(found := self.holders(name, alive)) < replicas}
        assert not short, f"segments with fewer than {replicas} good copies: {short}"

    def require_right_bytes(self, peers: Sequence[PeerMachine] | None = None) -> None:
        """What has a name on a peer has the bytes that the name says."""
        for peer in self.peers if peers is None else peers:
            base = self.stored(peer)
            for path in base.glob("segments/??/*"):
                assert blake3(path.read_bytes()).hexdigest() == path.name, path
            for path in base.glob("heads/" + "?" * 64 + "/*"):
                assert path.name.endswith(blake3(path.read_bytes()).hexdigest()), path

    def require_no_connections(self) -> None:
        """No peer keeps a connection when nobody calls."""
        for peer in self.peers:
            if peer.is_running:
                peer.until_nobody_is_connected()

    def require_restorable(self, *others: tuple[PeerId, Address]) -> None:
        """A new machine has every file, byte for byte, from the peers alone; whoever else it may know."""
        machine = self.machine(f"new{len(list(self._where.glob('new*')))}", Machine)
        for peer in self.peers:
            if peer.is_running:
                peer.accept(machine.id, "read")
                self.know(peer.id, peer.listens_at, machine)
        for other, address in others:
            self.know(other, address, machine)
        back = machine.root / "back"
        machine.run("restore", self.url, back, "--quiet").require(0)
        require_contents(back, self.contents)
        for peer in self.peers:
            if peer.is_running:
                peer.revoke(machine.id)

    def require_sound(self, replicas: int = REPLICAS) -> Ended:
        """After each fault: a repair succeeds, and all of the above."""
        repaired = self.repair().require(0)
        assert repaired.json["is_safe"]
        self.require_copies(replicas)
        self.require_right_bytes()
        self.require_restorable()
        self.require_no_connections()
        return repaired

    def require_short(self, *codes: int) -> None:
        """It is told that there are too few copies."""
        said = self.status().require(ExitCode.PARTIAL, *codes)
        assert not said.json["is_safe"]

    def close(self) -> None:
        """End what runs."""
        for peer in self.peers:
            if peer.process is not None:
                peer.process.kill()


@contextmanager
def household(
    where: Path,
    forker: Forker,
    vault: Path,
    contents: dict[str, bytes],
    count: int,
    network: Network | None = None,
    settings: dict[str, object] | None = None,
) -> Iterator[Household]:
    """A laptop, and so many peers that run and have nothing yet."""
    made = Household(where, forker, vault, contents, network)
    try:
        for _ in range(count):
            made.add_peer(settings)
        yield made
    finally:
        made.close()


def require_contents(vault: Path, contents: dict[str, bytes]) -> None:
    """A vault has these files and no others, byte for byte."""
    with vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD), read_only=True) as found:
        assert sorted(found.listdir("/")) == sorted(path[1:].encode() for path in contents)
        for path, data in contents.items():
            with found.open(path) as file:
                assert file.read() == data, path


def _newest(vault: Path) -> Manifest:
    path = max((vault / "heads").glob("*.manifest"))
    return Manifest.decode(path.read_bytes())[0]
