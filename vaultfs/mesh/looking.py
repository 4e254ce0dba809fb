"""One look at everything: what the peers say, what is needed, and so what is lacking.

What the peers said is remembered, for the time when they are away, and for `vaultfs status`, which asks nobody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import trio

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.claims import Claims, Held, Shares, claims_of
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.headers import FoundHeader, read_headers
from vaultfs.mesh.health import Health, assess
from vaultfs.mesh.kept_as import KeptAs, kept_as
from vaultfs.mesh.local_copy import LocalCopy
from vaultfs.mesh.manifest_shelf import ManifestShelf
from vaultfs.mesh.needs import ManifestReader, Needs, find_needs
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.reading import Reader
from vaultfs.mesh.share_format import Coding
from vaultfs.mesh.standing import Standing, StandingFile
from vaultfs.mesh.survey import Survey, placement_of, survey

log = logging.getLogger(__name__)


@dataclass
class Look:
    """What was found.

    Attributes:
        survey: what the peers said.
        claims: what of it counts.
        needs: what is needed.
        headers: the ``vault.json`` that peers have.
        standing: what is remembered of the peers, this look included.
        health: what is lacking.
        kept: whether there are to be copies or shares.
    """

    survey: Survey
    claims: Claims
    needs: Needs
    headers: dict[PeerId, FoundHeader]
    standing: Standing
    health: Health
    kept: KeptAs


class Lookout:
    """Looks at the peers of a vault, as often as is wanted.

    Args:
        client: to ask with.
        page: the peers.
        file: where it is remembered how they were.
        here: the vault on this machine; None: there is none.
        shelf: keeps manifests; None: none are kept.
        grace_ns: who answered so lately counts as if it was there.
        clock_ns: nanoseconds since the epoch.

    Attributes:
        reader: reads objects of this vault.
        manifests: reads its manifests.
    """

    def __init__(
        self,
        client: MeshClient,
        page: VaultPeers,
        file: StandingFile,
        here: LocalCopy | None = None,
        shelf: ManifestShelf | None = None,
        *,
        grace_ns: int = 0,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._client: Final = client
        self._page: Final = page
        self._file: Final = file
        self._here: Final = here
        self._shelf: Final = shelf
        self._grace_ns: Final = grace_ns
        self._clock_ns: Final = clock_ns
        self.reader: Final = Reader(page.vault_id)
        self.manifests: Final = ManifestReader(client, page.vault_id, self.reader, here, shelf)

    async def look(self) -> Look:
        """Ask all peers, at once.

        Raises:
            VaultError: the vault here cannot be read; that of a peer stands in the survey.
        """
        client, page, here = self._client, self._page, self._here
        standing = await trio.to_thread.run_sync(self._file.load)
        found = await survey(client, page, standing, clock_ns=self._clock_ns)
        now_ns = self._clock_ns()
        claims = claims_of(
            found, standing, self._file.load_held, self._file.load_shares, grace_ns=self._grace_ns, now_ns=now_ns
        )
        needs = await find_needs(client, page.vault_id, found, self.manifests, self.reader, here)
        present = [view.known.id for view in found.present]
        headers = (await read_headers(client, self.reader, page.vault_id, present)).values
        kept = kept_as(self._page, [*_holdings(claims)], needs.segments)
        health = self.assess(found, claims, needs, headers, kept.coding)
        standing.short = set(health.short)
        await trio.to_thread.run_sync(self._remember, found, standing, needs)
        return Look(found, claims, needs, headers, standing, health, kept)

    def assess(
        self, found: Survey, claims: Claims, needs: Needs, headers: dict[PeerId, FoundHeader], coding: Coding | None
    ) -> Health:
        """What is lacking by what is known."""
        own = None if self._here is None else self._here.header.data
        return assess(
            found,
            claims,
            needs,
            self._page.replicas,
            coding=coding,
            local=() if self._here is None else self._here.segments,
            headers={peer: header.data for peer, header in headers.items()},
            header=own or (max(headers.values()).data if headers else None),
        )

    def placement(self, look: Look) -> Placement:
        """Where segments belong, among the peers that are believed."""
        peers = tuple(peer for peer in self._page.peers if not look.standing.of(peer.id).failed_audit_ns)
        return placement_of(replace(self._page, peers=peers), look.standing, look.survey.views)

    def _remember(self, found: Survey, standing: Standing, needs: Needs) -> None:
        if not found.present:
            return
        try:
            for view in found.present:
                self._file.save_held(view.known.id, view.segments, view.shares)
            self._file.save(standing)
        except VaultError as error:  # hints only
            log.warning("%s", error)
        if self._shelf is not None:
            self._shelf.keep_only({head.hash for head in needs.heads})


def _holdings(claims: Claims) -> Iterator[tuple[Held, Shares]]:
    """What each peer says or said it holds, believed or not: how a vault is kept is no secret that one could sell."""
    for held in (claims.present, claims.away, claims.distrusted, claims.gone):
        for peer, segments in held.items():
            yield segments, claims.shares.get(peer) or claims.other_shares.get(peer, {})
