"""Brings what is small to every peer that answers: manifests, the notes about branches, ``vault.json``.

A manifest goes where it is missing once all its segments are on peers that answer, so no peer shows a snapshot that is
nowhere complete.  A header goes where a peer has none.  One that a peer has is replaced only by that of the vault on
this machine: without the key nobody can say which of two is genuine, and who spread the wrong one would lock out whose
vault it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio
from blake3 import blake3

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.headers import FoundHeader, next_revision
from vaultfs.mesh.needs import ManifestReader, Needs
from vaultfs.mesh.reading import Reader
from vaultfs.mesh.survey import PeerView, Survey
from vaultfs.remotes.store import BytesSource
from vaultfs.sync.remote_layout import BRANCHES_PREFIX, HEADER_KEY, RemoteHead, head_key, parse_note

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
_LARGEST_BRANCH_NOTE_BYTES: Final = 4096

_T = TypeVar("_T")


@dataclass
class Spread:
    """What became of it.

    Attributes:
        heads: manifests that were put, on however many peers each.
        notes: likewise notes.
        headers: peers that got a ``vault.json``.
        errors: of peers that did not take something, the first of each.
        unreadable: manifests that could not be had after all, and why.
    """

    heads: int = 0
    notes: int = 0
    headers: int = 0
    errors: dict[PeerId, VaultError] = field(default_factory=dict)
    unreadable: dict[RemoteHead, VaultError] = field(default_factory=dict)


class Spreader:
    """One run.

    Args:
        client: to work with.
        vault_id: whose.
        survey: what the peers have; kept up to date.
        reader: reads objects from peers.
        manifests: reads manifests.
    """

    def __init__(
        self, client: MeshClient, vault_id: VaultId, survey: Survey, reader: Reader, manifests: ManifestReader
    ) -> None:
        self._client: Final = client
        self._vault_id: Final = vault_id
        self._views: Final = [view for view in survey.present if view.takes]
        self._present: Final = survey.present
        self._reader: Final = reader
        self._manifests: Final = manifests
        self._done: Final = Spread()

    async def run(
        self,
        needs: Needs,
        incomplete: Collection[RemoteHead],
        headers: dict[PeerId, FoundHeader],
        own_header: bytes | None,
    ) -> Spread:
        """Do it; a peer that fails does not keep the others from theirs.

        Args:
            needs: the manifests.
            incomplete: those that stay where they are.
            headers: what peers have; those that get one are added.
            own_header: of the vault on this machine; None: there is none.
        """
        await self._spread_header(headers, own_header)
        await _each(sorted(self._notes()), self._spread_note)
        heads = sorted(needs.heads.keys() - set(incomplete), key=lambda head: (head.seq, head.hash))

        async def spread(head: RemoteHead) -> None:
            await self._spread_head(head, needs.heads[head])

        await _each(heads, spread)
        return self._done

    async def _spread_header(self, headers: dict[PeerId, FoundHeader], own: bytes | None) -> None:
        right = [found for found in headers.values() if own is None or found.data == own]
        if not right:  # of the vault's own nobody has any: whether it is newer or older, a sync finds out
            return
        best = max(right)
        revisions = [view.header_revision for view in self._present]
        new = FoundHeader(best.epoch, next_revision([*revisions, *(found.revision for found in right)]), best.data)
        for view in self._views:
            found = headers.get(view.known.id)
            is_due = not view.header_revision or (own is not None and (found is None or found.data != own))
            if is_due and await self._put(view, HEADER_KEY, new.data, new.revision):
                headers[view.known.id] = new
                view.header_revision = new.revision
                self._done.headers += 1

    def _notes(self) -> set[str]:
        return {key for view in self._present for key in view.heads if parse_note(key, BRANCHES_PREFIX) is not None}

    async def _spread_note(self, key: str) -> None:
        lackers = [view for view in self._views if key not in view.heads]
        if not lackers:
            return
        holders = [view.known.id for view in self._present if key in view.heads]
        try:
            with closing(
                await self._reader.whole(self._client, holders, key, None, _LARGEST_BRANCH_NOTE_BYTES)
            ) as file:
                data = file.read()
        except VaultError as error:
            log.info("%s", error)
            return
        for view in lackers:
            if await self._put(view, key, data):
                view.heads[key] = len(data)
                self._done.notes += 1

    async def _spread_head(self, head: RemoteHead, size_bytes: int) -> None:
        key = head_key(head)
        lackers = [view for view in self._views if view.heads.get(key) != size_bytes]
        if not lackers:
            return
        holders = [view.known.id for view in self._present if key in view.heads]
        try:
            data = await self._manifests.read(head, holders)
        except VaultError as error:
            self._done.unreadable[head] = error
            return
        for view in lackers:
            if await self._put(view, key, data):
                view.heads[key] = len(data)
                self._done.heads += 1

    async def _put(self, view: PeerView, key: str, data: bytes, revision: int = 0) -> bool:
        peer = view.known.id
        if peer in self._done.errors:
            return False
        digest = blake3(data).digest()
        try:
            await self._client.store(peer, self._vault_id, key, BytesSource(data), digest, revision=revision)
        except VaultError as error:
            log.info("%s", error)
            self._done.errors[peer] = error
            return False
        return True


async def _each(things: Collection[_T], work: Callable[[_T], Awaitable[None]]) -> None:
    """Do something with each, a few at once."""
    waiting = iter(things)

    async def some() -> None:
        for thing in waiting:
            await work(thing)

    async with trio.open_nursery() as nursery:
        for _ in range(min(AT_ONCE, len(things))):
            nursery.start_soon(some)
