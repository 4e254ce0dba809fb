"""Shares on their way: fetched and checked by their names, and spread over peers, each on one of its own."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, cast

import trio

from vaultfs.errors import IntegrityError, NoSpaceError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.asking import first_of
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.held_shares import Held
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.reading import HashingFile
from vaultfs.mesh.share_format import CodedSegment
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.survey import PeerView

log = logging.getLogger(__name__)


class ShareTransfer:
    """Moves shares of one vault.

    Args:
        vault_id: whose.
        scratch: the directory of files without a name; None: the system's.
    """

    def __init__(self, vault_id: VaultId, scratch: Path | None = None) -> None:
        self._vault_id: Final = vault_id
        self._scratch: Final = scratch

    def file(self) -> BinaryIO:
        """An empty file without a name, which the caller closes."""
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self._scratch, buffering=0))  # the caller's

    async def fetched(
        self,
        client: MeshClient,
        coded: CodedSegment,
        shares: Mapping[int, list[Held]],
        count: int,
        stack: ExitStack,
    ) -> dict[int, BinaryIO]:
        """So many shares, in files, by index; primary ones first, as they need no arithmetic.

        Args:
            client: to ask with.
            coded: what they are shares of.
            shares: who has which.
            count: how many are wanted.
            stack: closes the files.

        Raises:
            VaultError: there are not so many; what the first failure was.
        """
        files: dict[int, BinaryIO] = {}
        failures: list[VaultError] = []
        waiting = sorted(shares)

        async def fetch_one() -> None:
            """The first of those that are left; one that cannot be had makes way for the next."""
            while waiting:
                index = waiting.pop(0)
                for held in shares[index]:
                    file = stack.enter_context(self.file())
                    try:
                        await self.fetch(client, held, coded.share_bytes, file)
                    except VaultError as error:
                        log.info("%s", error)
                        failures.append(error)
                    else:
                        files[index] = file
                        return

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(fetch_one)
        if len(files) < count:
            raise first_of(failures)
        return files

    async def fetch(self, client: MeshClient, held: Held, most_bytes: int, file: BinaryIO) -> None:
        """A share into a file, checked by its name.

        Raises:
            IntegrityError: the peer sends something else.
            VaultError: as `MeshClient.fetch`.
        """
        hashing = HashingFile(file, most_bytes)
        await client.fetch(held.peer, self._vault_id, str(held.key), cast("BinaryIO", hashing))
        if hashing.hexdigest() != held.key.name:
            raise IntegrityError(f"{client.name(held.peer)} sent other bytes than those of {held.key}")

    async def spread(
        self,
        client: MeshClient,
        coded: CodedSegment,
        files: Mapping[int, BinaryIO],
        names: Mapping[int, str],
        there: Mapping[int, Sequence[Held]],
        views: Mapping[PeerId, PeerView],
        placement: Placement,
        expected: Collection[int] = (),
    ) -> set[int]:
        """Store made shares; a peer that has a share of the segment, or has failed, gets none.

        Args:
            client: to store with.
            coded: what they are shares of.
            files: the shares, by index.
            names: their names.
            there: shares that peers have already.
            views: the peers; kept up to date.
            placement: in which order they are filled.
            expected: others that count although they are not there now.

        Returns:
            The indexes of the shares that count now.

        Raises:
            VaultError: what the first failure was, if there are fewer than k.
        """
        taken = {held.peer for shares in there.values() for held in shares}
        order = [
            site.peer
            for site in placement.chosen(coded.name, len(placement.sites))
            if site.peer not in taken and (view := views.get(site.peer)) is not None and view.takes
        ]
        failures: list[VaultError] = []
        stored = {*there, *expected}
        waiting = list(files)

        async def send() -> None:
            while waiting:
                index = waiting.pop(0)
                while index not in stored:
                    peer = self._next(order, views, coded.share_bytes)
                    if peer is None:
                        return
                    share_key = ShareKey(coded, index, names[index])
                    view = views[peer]
                    view.room_bytes -= coded.share_bytes
                    try:
                        share = _Share(files[index], coded.share_bytes)
                        await client.store(peer, self._vault_id, str(share_key), share, bytes.fromhex(names[index]))
                    except VaultError as error:
                        view.room_bytes += coded.share_bytes
                        log.info("%s", error)
                        failures.append(error)
                    else:
                        view.shares.setdefault(coded.name, []).append(share_key)
                        stored.add(index)

        async with trio.open_nursery() as nursery:
            for _ in files:
                nursery.start_soon(send)
        if len(stored) < coded.coding.needed:
            if failures:
                raise first_of(failures)
            raise NoSpaceError(
                f"{coded.coding.needed} peers with room for {coded.share_bytes} bytes are needed for a segment as "
                f"{coded.coding}, and {len(stored)} were found; add peers, or give them more quota"
            )
        return stored

    @staticmethod
    def _next(order: list[PeerId], views: Mapping[PeerId, PeerView], size_bytes: int) -> PeerId | None:
        for position, peer in enumerate(order):
            if views[peer].room_bytes >= size_bytes:
                return order.pop(position)
        return None


class _Share:
    """A share in a file that is read by one at a time: a `vaultfs.remotes.store.Source`."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file: Final = file
        self.size_bytes: Final = size_bytes

    def open(self) -> _Reading:
        self._file.seek(0)
        return _Reading(self._file)


class _Reading:
    """Gives a file, and leaves it open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Final = file

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(self, *_: object) -> None:
        return None
