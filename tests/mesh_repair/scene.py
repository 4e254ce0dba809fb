"""A vault, its peers in memory, and what a repair does with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vaultfs.ids import SegmentName
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.health import incomplete
from vaultfs.mesh.local_copy import LocalCopy
from vaultfs.mesh.looking import Look, Lookout
from vaultfs.mesh.manifest_shelf import ManifestShelf
from vaultfs.mesh.repairing import Repair, Repaired
from vaultfs.mesh.spreading import Spread, Spreader
from vaultfs.mesh.standing import StandingFile
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.remote_layout import segment_key

from .fake_mesh import FakeMesh, FakePeer
from .signed_vault import SignedVault

NOW_NS = 1_700_000_000 * 10**9
HOUR_NS = 3600 * 10**9


@dataclass
class Scene:
    """All of it.

    Attributes:
        vault: the vault.
        mesh: its peers.
        where: a directory for state.
        replicas: how many copies there are to be.
        zones: of the peers; empty: each one its own.
        now_ns: the time.
        is_here: the vault is on this machine.
        holdings: what syncs have learned.
        reports: bytes done and in all, as they were told.
        taken: bytes on their way, as who limits them was told.
    """

    vault: SignedVault
    mesh: FakeMesh
    where: Path
    replicas: int = 2
    zones: tuple[str, ...] = ()
    now_ns: int = NOW_NS
    is_here: bool = True
    holdings: Holdings = field(default_factory=Holdings)
    reports: list[tuple[int, int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    @property
    def file(self) -> StandingFile:
        return StandingFile(self.where / "state" / "mesh.json")

    @property
    def page(self) -> VaultPeers:
        return self.mesh.page(self.replicas, self.zones)

    def here(self) -> LocalCopy | None:
        return LocalCopy(self.vault.layout, self.holdings) if self.is_here else None

    def lookout(self, grace_ns: int = 0) -> Lookout:
        shelf = ManifestShelf(self.where / "shelf")
        return Lookout(
            self.mesh, self.page, self.file, self.here(), shelf, grace_ns=grace_ns, clock_ns=lambda: self.now_ns
        )

    async def look(self, grace_ns: int = 0) -> Look:
        return await self.lookout(grace_ns).look()

    def repair_of(self, look: Look, lookout: Lookout, at_once: int = 4) -> Repair:
        here = self.here()
        return Repair(
            self.mesh,
            self.page,
            look.survey,
            look.claims,
            lookout.placement(look),
            look.needs.segments,
            layout=None if here is None else self.vault.layout,
            local=frozenset() if here is None else frozenset(here.segments),
            scratch=self.where,
            take=self.taken.append,
            report=lambda done, total: self.reports.append((done, total)),
            at_once=at_once,
        )

    async def repair(self, grace_ns: int = 0) -> tuple[Repaired, Spread, Look]:
        """Look, repair, spread, look again."""
        lookout = self.lookout(grace_ns)
        look = await lookout.look()
        repaired = await self.repair_of(look, lookout).run()
        spreader = Spreader(self.mesh, self.vault.vault_id, look.survey, lookout.reader, lookout.manifests)
        own = self.vault.layout.header.read_bytes() if self.is_here else None
        spread = await spreader.run(look.needs, incomplete(look.needs, look.survey), look.headers, own)
        return repaired, spread, await lookout.look()

    def give(self, *numbers: int) -> None:
        """Let peers have everything of the vault."""
        for number in numbers:
            peer = self.mesh.at(number)
            peer.objects.update(self.vault.objects())
            peer.revision = 1

    def give_small(self, *numbers: int) -> None:
        """Let peers have all but segments."""
        for number in numbers:
            self.give(number)
            for name in self.vault.segments:
                del self.mesh.at(number).objects[segment_key(name)]

    def holders(self, name: SegmentName) -> list[FakePeer]:
        """The peers that have a segment right."""
        key = segment_key(name)
        return [peer for peer in self.mesh.peers.values() if peer.objects.get(key) == self.vault.segments[name]]

    def forget_local(self, *names: SegmentName) -> None:
        for name in names or tuple(self.vault.segments):
            self.vault.layout.sealed_path(name).unlink()
