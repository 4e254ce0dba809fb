"""Writing to a mesh: each segment to as many peers as there are to be copies, everything small to all.

Segments go where the placement says, as far as those peers are there and have room; another takes the place of one that
is not.  A segment counts as stored when one peer has it durably; that it has too few copies is remembered, and
`vaultfs mesh status` and `repair` see it.  So one peer that sleeps does not keep a vault from being saved.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final

import trio
from blake3 import blake3

from vaultfs.errors import NoSpaceError, ObjectExistsError, RemoteRefusedError, VaultError
from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.asking import ask_all, first_of, not_all
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.claims import Held, Shares
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.coded import CodedSegments
from vaultfs.mesh.dialing import peer_name
from vaultfs.mesh.headers import next_revision
from vaultfs.mesh.kept_as import KeptAs, kept_as
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.repair_plan import plan_repair
from vaultfs.mesh.share_format import Coding
from vaultfs.mesh.standing import Standing
from vaultfs.mesh.survey import PeerView, Survey, placement_of, survey
from vaultfs.remotes.bodies import MeteredSource, read_all
from vaultfs.remotes.store import BytesSource, Source
from vaultfs.sync.remote_layout import HEADER_KEY, segment_key

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 60.0
"""A peer that was not there is asked again after so long, if something is still being stored."""


def _nothing(_peer: PeerId) -> tuple[Held, Shares]:
    return {}, {}


class Writer:
    """Stores objects of one vault on its peers.

    Args:
        page: the peers, and how many copies there are to be.
        standing: what is remembered of them; is told what has too few copies.
        coded: stores shares, where the vault has these instead of copies.
        remembered: what a peer that does not answer said the last time.
    """

    def __init__(
        self,
        page: VaultPeers,
        standing: Standing,
        coded: CodedSegments,
        remembered: Callable[[PeerId], tuple[Held, Shares]] = _nothing,
    ) -> None:
        self._page: Final = page
        self._remembered: Final = remembered
        self._kept = KeptAs(page.coding, page.is_told)
        self._coded: Final = coded
        self._standing: Final = standing
        self._looking: Final = trio.Lock()
        self._survey: Survey | None = None
        self._placement: Placement | None = None

    @property
    def known(self) -> Survey | None:
        """What the peers said, if they were asked."""
        return self._survey

    async def survey(self, client: MeshClient) -> Survey:
        """What the peers hold, kept up to date with what is stored; they are asked once, and who was away again."""
        async with self._looking:
            if self._survey is None:
                self._survey = await survey(client, self._page, self._standing)
                self._kept = await trio.to_thread.run_sync(self._kept_as, self._survey)
                self._placement = placement_of(self._page, self._standing, self._survey.views)
            elif trio.current_time() - self._survey.made_s > LOOK_AGAIN_S:
                absent = [view.known.id for view in self._survey.views.values() if not view.is_present]
                if absent:
                    again = await survey(client, self._page, self._standing, only=absent)
                    self._survey.views.update(again.views)
                self._survey.made_s = trio.current_time()
            return self._survey

    @property
    def coding(self) -> Coding | None:
        """Shares instead of copies, as far as is known."""
        return self._kept.coding

    def _kept_as(self, found: Survey) -> KeptAs:
        views = found.views.values()
        return kept_as(
            self._page,
            [(view.segments, view.shares) if view.is_present else self._remembered(view.known.id) for view in views],
        )

    def reset(self) -> None:
        """Ask again the next time."""
        self._survey = None

    async def segment(
        self, client: MeshClient, name: SegmentName, source: Source, suspects: Collection[PeerId] = ()
    ) -> int:
        """Store a segment on as many peers as it lacks.

        Args:
            client: to ask with.
            name: the segment's.
            source: its bytes.
            suspects: peers that have sent wrong bytes; what they say they have is offered to them again, which makes
                them look at it.

        Returns:
            How many peers hold it now.

        Raises:
            NoSpaceError: nobody has room.
            RemoteRefusedError: all that answer let this machine only read.
            VaultError: what the first failure was, if nobody holds it.
        """
        found = await self.survey(client)
        found.require_any()
        _require_taker(found)
        assert self._placement is not None, "it is made with the survey"
        if self.coding is not None:
            count = await self._coded.store(client, self.coding, name, source, found.views, self._placement)
            self._is_short(name, is_short=count < self.coding.total)
            return count
        size = source.size_bytes
        failures: list[VaultError] = []
        failed: set[PeerId] = set()
        doubtful = set(suspects)
        here: VaultError | None = None
        while here is None:
            views = [view for view in found.present if view.known.id not in failed]
            plan = plan_repair(
                {name: size},
                {view.known.id: _believed(view, name, doubtful) for view in views},
                self._placement,
                self._page.replicas,
                {view.known.id: view.room_bytes for view in views if view.takes},
                {name},
                {},
            )
            if not plan.copies:
                break
            async with trio.open_nursery() as nursery:
                for copy in plan.copies:
                    view = found.views[copy.dest]
                    nursery.start_soon(self._send, client, view, name, source, failures, failed)
            doubtful.difference_update({copy.dest for copy in plan.copies} - failed)
            here = _failure_of(source)  # the bytes here are wrong, whatever the peers said then
        holders = [peer for peer in found.holders(name, size) if peer not in doubtful]
        if not holders:
            if failures:
                raise first_of(failures)
            raise NoSpaceError(f"no peer has room for {size} bytes; give one more quota, or add a peer")
        self._is_short(name, is_short=len(holders) < self._page.replicas)
        return len(holders)

    def _is_short(self, name: SegmentName, *, is_short: bool) -> None:
        (self._standing.short.add if is_short else self._standing.short.discard)(name)

    async def _send(
        self,
        client: MeshClient,
        view: PeerView,
        name: SegmentName,
        source: Source,
        failures: list[VaultError],
        failed: set[PeerId],
    ) -> None:
        view.room_bytes -= source.size_bytes
        try:
            await client.store(view.known.id, self._page.vault_id, segment_key(name), source, bytes.fromhex(name))
        except VaultError as error:
            view.room_bytes += source.size_bytes
            failures.append(error)
            failed.add(view.known.id)
            if isinstance(error, NoSpaceError):
                view.room_bytes = min(view.room_bytes, source.size_bytes - 1)
            log.info("%s", error)
        else:
            view.segments[name] = source.size_bytes

    async def everywhere(
        self, client: MeshClient, key: str, source: Source, *, if_absent: bool = False, takes_all: bool = False
    ) -> None:
        """Store a small object on every peer that answers.

        Args:
            client: to ask with.
            key: its name.
            source: its bytes.
            if_absent: refuse to replace an object.
            takes_all: if a peer does not take it, that is an error; some may have it then.

        Raises:
            VaultError: what the first failure was, if nobody has taken it; a peer that has it already, with
                ``if_absent``.
        """
        found = await self.survey(client)
        found.require_any()
        if takes_all:
            _require_all(found)
        data = await trio.to_thread.run_sync(read_all, key, source)
        digest = blake3(data).digest()
        revision = next_revision(view.header_revision for view in found.present) if key == HEADER_KEY else 0
        _require_taker(found)
        takers = [view.known.id for view in found.present if view.takes]

        async def send(peer: PeerId, *, is_new: bool = False) -> None:
            await client.store(
                peer, self._page.vault_id, key, BytesSource(data), digest, if_absent=is_new, revision=revision
            )
            if key == HEADER_KEY:
                found.views[peer].header_revision = revision

        if if_absent:
            await self._create(client, key, sorted(takers), partial(send, is_new=True))
        answers = await ask_all(takers, send)
        (answers.require_all if takes_all else answers.require_any)(key)

    async def _create(
        self, client: MeshClient, key: str, takers: Sequence[PeerId], create: Callable[[PeerId], Awaitable[None]]
    ) -> None:
        """Create an object on one peer, if none has it: the same one for all who try at once, so one of them succeeds.

        Raises:
            ObjectExistsError: it is there.
            VaultError: what the first failure was, if no peer could be asked.
        """
        sizes = await ask_all(takers, lambda peer: client.stat(peer, self._page.vault_id, key))
        if any(size.size_bytes is not None for size in sizes.values.values()):
            raise ObjectExistsError(f"a peer has {key} already")
        failures: list[VaultError] = []
        for peer in takers:
            try:
                await create(peer)
            except ObjectExistsError:
                raise
            except VaultError as error:
                failures.append(error)
            else:
                return
        raise first_of(failures)

    def forget(self, names: Iterable[SegmentName], peers: Iterable[PeerId]) -> None:
        """Note that peers do not hold segments any more, and nobody needs them."""
        names = tuple(names)
        self._standing.short.difference_update(names)
        if self._survey is None:
            return
        for peer in peers:
            for name in names:
                self._survey.views[peer].segments.pop(name, None)
                self._survey.views[peer].shares.pop(name, None)


def _require_taker(found: Survey) -> None:
    """See that some peer may be sent something.

    Raises:
        RemoteRefusedError: none.
    """
    if not any(view.takes for view in found.present):
        raise RemoteRefusedError("no peer that answers lets this machine store anything; see 'vaultfs peer accept'")


def _require_all(found: Survey) -> None:
    """See that every peer can be sent something.

    Raises:
        VaultError: one cannot.
    """
    for view in found.views.values():
        if view.error is not None:
            raise not_all(view.error)
        if not view.takes:
            raise not_all(
                RemoteRefusedError(f"{peer_name(view.known.id, view.known.address)} lets this machine only read")
            )


def _believed(view: PeerView, name: SegmentName, doubtful: Collection[PeerId]) -> dict[SegmentName, int]:
    """What of a segment a peer has, as far as that is believed."""
    return {name: view.segments[name]} if name in view.segments and view.known.id not in doubtful else {}


def _failure_of(source: Source) -> VaultError | None:
    """Why the bytes of a source cannot be had, if that is so, and it says so."""
    while isinstance(source, MeteredSource):
        source = source.inner
    return getattr(source, "failure", None)
