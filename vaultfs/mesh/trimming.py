"""Deletes what peers hold of a vault beyond what there is to be.

An order to delete goes out only when all that stays of the segments it names was proved in this same run, with keyed
hashes, and when those who have it have answered once more after that.  Each order is for one peer, and for few enough
segments that this takes a moment.  What is not proved stays, all of it; so does everything of a peer that fails.

What stays is chosen by the order of the placement, so that two machines that do this at once choose the same.  Between
the last answer of a peer and the order to another lies a round trip: a peer that is lost just then is lost a moment
after its copies were counted, as it might be at any other time, and a repair makes these anew.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.asking import ask_all
from vaultfs.mesh.auditing import Claimed, PeerAudit
from vaultfs.mesh.auditor import Auditor
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.client import MeshClient, Signer
from vaultfs.mesh.local_segments import LocalSegments
from vaultfs.mesh.messages import MOST_KEYS
from vaultfs.mesh.repairing import Report
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.surplus import Piece, Surplus

log = logging.getLogger(__name__)


@dataclass
class Trimmed:
    """What became of it.

    Attributes:
        copies: how many were deleted; or would be.
        shares: likewise.
        bytes: of both.
        segments: of which something was deleted.
        unproven: segments of which something could go, and stays, as not all was proved that has to be there.
        errors: of peers that did not carry out an order, the first of each.
        audits: peers that failed to prove what they say they have.
    """

    copies: int = 0
    shares: int = 0
    bytes: int = 0
    segments: set[SegmentName] = field(default_factory=set)
    unproven: set[SegmentName] = field(default_factory=set)
    errors: dict[PeerId, VaultError] = field(default_factory=dict)
    audits: dict[PeerId, PeerAudit] = field(default_factory=dict)

    def note(self, pieces: Sequence[Piece]) -> None:
        """Note what is deleted."""
        shares = sum(isinstance(piece.held, ShareKey) for piece in pieces)
        self.shares += shares
        self.copies += len(pieces) - shares
        self.bytes += sum(piece.size_bytes for piece in pieces)


class Trimming:
    """One run.

    Args:
        client: to ask with.
        page: the peers of the vault.
        surplus: what could go.
        local: the segments here.
        needed: segments and their sizes in bytes.
        sign: signs orders to delete; None: nothing is deleted, and it is told what would be.
        scratch: a directory for files without a name; None: the system's.
        report: is told how many bytes are done, and of how many.
    """

    def __init__(
        self,
        client: MeshClient,
        page: VaultPeers,
        surplus: Sequence[Surplus],
        local: LocalSegments,
        needed: Mapping[SegmentName, int],
        *,
        sign: Signer | None,
        scratch: Path | None = None,
        report: Report = lambda _done, _total: None,
    ) -> None:
        self._client: Final = client
        self._page: Final = page
        self._surplus: Final = tuple(surplus)
        self._make_auditor: Final[Callable[[], Auditor]] = lambda: Auditor(client, page, local, needed, scratch=scratch)
        self._sign: Final = sign
        self._report: Final = report
        self._outcome: Final = Trimmed()

    async def run(self) -> Trimmed:
        """Do it.

        Raises:
            UsageError: shares are proved by others, and zfec is missing.
            NoSpaceError, StorageError: this machine's disk cannot take what has to be compared.
        """
        orders = list(self._orders())
        total_bytes = sum(piece.size_bytes for _, order in orders for each in order for piece in each.spare)
        done_bytes = 0
        for peer, order in orders:
            if peer not in self._outcome.errors:
                await self._carry_out(peer, order)
            done_bytes += sum(piece.size_bytes for each in order for piece in each.spare)
            self._report(done_bytes, total_bytes)
        return self._outcome

    def _orders(self) -> Iterator[tuple[PeerId, list[Surplus]]]:
        """By peer, what could go there, as much as one order may name; ``spare`` is that peer's only."""
        at: defaultdict[PeerId, list[Surplus]] = defaultdict(list)
        for each in self._surplus:
            spare: defaultdict[PeerId, list[Piece]] = defaultdict(list)
            for piece in each.spare:
                spare[piece.peer].append(piece)
            for peer, pieces in spare.items():
                at[peer].append(Surplus(each.name, each.kept, tuple(pieces)))
        for peer in sorted(at):
            order: list[Surplus] = []
            count = 0
            for each in at[peer]:
                if count + len(each.spare) > MOST_KEYS and order:
                    yield peer, order
                    order, count = [], 0
                order.append(Surplus(each.name, each.kept, each.spare[:MOST_KEYS]))
                count += len(each.spare)
            yield peer, order

    async def _carry_out(self, peer: PeerId, order: Sequence[Surplus]) -> None:
        ready = await self._proved(order)
        if self._sign is not None:
            ready = await self._answering(ready)
        self._outcome.unproven.update({each.name for each in order} - {each.name for each in ready})
        pieces = [piece for each in ready for piece in each.spare]
        if not pieces:
            return
        if self._sign is not None:
            try:
                keys = tuple(piece.key for piece in pieces)
                await self._client.delete(peer, self._page.vault_id, keys, self._sign)
            except VaultError as error:
                log.info("%s", error)
                self._outcome.errors[peer] = error
                return
        self._outcome.note(pieces)
        self._outcome.segments.update(each.name for each in ready)

    async def _proved(self, order: Sequence[Surplus]) -> list[Surplus]:
        """That of which all is proved that is to stay.  Who has more of it is asked too: there is more to compare."""
        wanted: defaultdict[PeerId, dict[Claimed, int]] = defaultdict(dict)
        for each in order:
            for piece in (*each.kept, *each.spare):
                wanted[piece.peer][piece.held] = piece.size_bytes
        report = await self._make_auditor().prove(wanted)
        self._outcome.audits.update({who: audit for who, audit in report.peers.items() if audit.has_failed})
        proved = {who: audit.proved for who, audit in report.peers.items() if not audit.has_failed}
        return [each for each in order if all(piece.held in proved.get(piece.peer, ()) for piece in each.kept)]

    async def _answering(self, ready: Sequence[Surplus]) -> list[Surplus]:
        """That of which all who keep it still answer."""
        keepers = {piece.peer for each in ready for piece in each.kept}
        answers = await ask_all(keepers, lambda keeper: self._client.status(keeper, self._page.vault_id))
        return [each for each in ready if all(piece.peer in answers.values for piece in each.kept)]
