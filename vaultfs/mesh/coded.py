"""Segments as shares on peers: any k of n give one back, for n/k times its size instead of R times.

Each share goes to a peer of its own, in the order of the placement, so that a peer's end costs one share.  Shares are
found by asking all peers what they list, as nothing else records them.  A share is hashed as it comes and has to have
its name; a segment that was put together has to have its own.  What does not is somebody's lie: other shares are tried.

A segment counts as stored with k shares; with fewer than n it is remembered as short, and a repair makes the others.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import BinaryIO, Final

import trio

from vaultfs.errors import (
    IntegrityError,
    ObjectMissingError,
    RemoteUnreachableError,
    UsageError,
    VaultError,
)
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.asking import Answers, ask_all, first_of
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.erasure import decode, decode_stripes, encode, find_wrong, rebuild
from vaultfs.mesh.held_shares import Held, best_way, shares_of
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.served_parts import ServedParts
from vaultfs.mesh.share_format import BLOCK_BYTES, HEADER_BYTES, CodedSegment, Coding
from vaultfs.mesh.share_keys import parse_share_key, shares_prefix
from vaultfs.mesh.share_transfer import ShareTransfer
from vaultfs.mesh.survey import PeerView
from vaultfs.remotes.store import Source

log = logging.getLogger(__name__)

_MOST_SPARES: Final = 8
"""Shares beyond k that are fetched to find out which is wrong."""


class CodedSegments:
    """Stores segments of one vault as shares, and reads them.

    Args:
        vault_id: whose.
        peers: that may have shares.
        scratch: the directory of files without a name; None: the system's.
    """

    def __init__(self, vault_id: VaultId, peers: Sequence[PeerId], scratch: Path | None = None) -> None:
        self._vault_id: Final = vault_id
        self._peers: Final = tuple(peers)
        self._transfer: Final = ShareTransfer(vault_id, scratch)
        self._served: Final[ServedParts[None]] = ServedParts()

    # --- finding

    async def locate(self, client: MeshClient, segment: SegmentName) -> Answers[list[Held]]:
        """The shares of a segment that each peer lists."""

        async def ask(peer: PeerId) -> list[Held]:
            infos = await client.listing(peer, self._vault_id, shares_prefix(segment))
            keys = (parse_share_key(info.key) for info in infos)
            return [Held(peer, key) for key in keys if key is not None and key.coded.name == segment]

        return await ask_all(self._peers, ask)

    async def size_bytes(self, client: MeshClient, segment: SegmentName) -> int | None:
        """The size of a segment, if there are enough shares of it."""
        found = await self.locate(client, segment)
        best = best_way(found.values.values())
        return None if best is None else best[0].size_bytes

    async def _require_shares(
        self, client: MeshClient, segment: SegmentName
    ) -> tuple[CodedSegment, dict[int, list[Held]]]:
        found = await self.locate(client, segment)
        best = best_way(found.values.values())
        if best is not None:
            return best
        what = f"the segment {segment}, nor enough shares of it"
        found.require_any(what)
        if found.failures:
            raise RemoteUnreachableError(f"no peer that answers has {what}; {first_of(list(found.failures.values()))}")
        raise ObjectMissingError(f"none of the {len(self._peers)} peers has {what}")

    # --- reading

    async def whole(self, client: MeshClient, segment: SegmentName) -> BinaryIO:
        """A segment, checked, in a file at its start, which the caller closes.

        Raises:
            ObjectMissingError: all peers answered, and there are not enough shares.
            IntegrityError: there are enough, and too many of them are wrong.
            VaultError: what the first failure was.
        """
        coded, shares = await self._require_shares(client, segment)
        with ExitStack() as stack:
            files = await self._transfer.fetched(client, coded, shares, coded.coding.needed, stack)
            result = self._transfer.file()
            try:
                await trio.to_thread.run_sync(self._decoded, coded, list(files.values()), result)
            except IntegrityError as error:
                result.close()
                log.warning("%s", error)
                return await self._despite_lies(client, coded, shares)
            except BaseException:
                result.close()
                raise
            return result

    def _decoded(self, coded: CodedSegment, files: Sequence[BinaryIO], result: BinaryIO) -> None:
        for file in files:
            file.seek(0)
        result.seek(0)
        result.truncate()
        decode(coded, files, result.write)
        result.seek(0)

    async def _despite_lies(
        self, client: MeshClient, coded: CodedSegment, shares: Mapping[int, list[Held]]
    ) -> BinaryIO:
        """A segment although a share is wrong that has the hash of its name: somebody has made it so."""
        with ExitStack() as stack:
            wanted = min(len(shares), coded.coding.needed + _MOST_SPARES)
            files = await self._transfer.fetched(client, coded, shares, wanted, stack)
            indexes = list(files)
            verdict = await trio.to_thread.run_sync(find_wrong, coded, [files[index] for index in indexes])
            wrong = {indexes[position] for position in verdict.wrong}
            good = [file for index, file in files.items() if index not in wrong]
            result = self._transfer.file()
            try:
                await trio.to_thread.run_sync(self._decoded, coded, good[: coded.coding.needed], result)
            except BaseException:
                result.close()
                raise
            for index in sorted(wrong):
                log.warning("share %d of %s, of %s, is wrong", index, coded.name, client.name(shares[index][0].peer))
            return result

    async def part(self, client: MeshClient, segment: SegmentName, offset: int, length: int | None) -> BinaryIO:
        """A part of a segment, in a file at its start; nobody has checked it, unless it was asked for before.

        Raises:
            VaultError: as `whole`.
        """
        coded, shares = await self._require_shares(client, segment)
        end = coded.size_bytes if length is None else offset + length
        if not offset <= end <= coded.size_bytes:
            raise UsageError(f"the segment {segment} has {coded.size_bytes} bytes, and not {offset} to {end}")
        if self._served.of(segment, offset, length):  # asked for again: what came did not open, and somebody lies
            with closing(await self.whole(client, segment)) as file:
                file.seek(offset)
                return io.BytesIO(await trio.to_thread.run_sync(file.read, end - offset))
        self._served.note(segment, offset, length, None)
        stripe_bytes = coded.coding.needed * BLOCK_BYTES
        first, last = offset // stripe_bytes, -(-end // stripe_bytes)
        start = HEADER_BYTES + first * BLOCK_BYTES
        stop = min(HEADER_BYTES + last * BLOCK_BYTES, coded.share_bytes)
        blocks: dict[int, bytes] = {}
        failures: list[VaultError] = []
        waiting = sorted(shares)

        async def fetch_one() -> None:
            while waiting:
                index = waiting.pop(0)
                for held in shares[index]:
                    file = io.BytesIO()
                    key = str(held.key)
                    try:
                        await client.fetch(held.peer, self._vault_id, key, file, offset=start, length=stop - start)
                    except VaultError as error:
                        log.info("%s", error)
                        failures.append(error)
                    else:
                        blocks[index] = file.getvalue()
                        return

        async with trio.open_nursery() as nursery:
            for _ in range(coded.coding.needed):
                nursery.start_soon(fetch_one)
        if len(blocks) < coded.coding.needed:
            raise first_of(failures)
        data = await trio.to_thread.run_sync(decode_stripes, coded, first, blocks)
        skipped = offset - first * stripe_bytes
        return io.BytesIO(data[skipped : skipped + end - offset])

    # --- writing

    async def store(
        self,
        client: MeshClient,
        coding: Coding,
        segment: SegmentName,
        source: Source,
        views: Mapping[PeerId, PeerView],
        placement: Placement,
        expected: Collection[int] = (),
    ) -> int:
        """Store a segment's shares, those that are lacking, each on a peer of its own.

        Args:
            client: to store with.
            coding: how to cut it.
            segment: its name.
            source: its bytes.
            views: the peers, what they hold and how much room they have; kept up to date.
            placement: in which order they are filled.
            expected: shares on peers that are away and expected back; they count, and are not made.

        Returns:
            How many shares there are now.

        Raises:
            NoSpaceError: too few peers have room, or there are too few.
            VaultError: what the first failure was, if there are fewer than k.
        """
        coded = CodedSegment(segment, source.size_bytes, coding)
        there = shares_of(coded, views.values())
        missing = [index for index in range(coding.total) if index not in there and index not in expected]
        if not missing:
            return coding.total
        with ExitStack() as stack:
            files = {index: stack.enter_context(self._transfer.file()) for index in missing}
            opened = stack.enter_context(source.open())
            names = await trio.to_thread.run_sync(
                encode, opened, coded, {index: file.write for index, file in files.items()}
            )
            return len(await self._transfer.spread(client, coded, files, names, there, views, placement, expected))

    async def repair(
        self,
        client: MeshClient,
        coded: CodedSegment,
        views: Mapping[PeerId, PeerView],
        placement: Placement,
        expected: Collection[int] = (),
    ) -> int:
        """Make lost shares again from others, and store them.

        Returns:
            How many shares there are now.

        Raises:
            VaultError: as `whole` and `store`.
        """
        there = shares_of(coded, views.values())
        missing = [index for index in range(coded.coding.total) if index not in there and index not in expected]
        if not missing:
            return coded.coding.total
        if len(there) < coded.coding.needed:
            raise ObjectMissingError(
                f"{len(there)} shares of the segment {coded.name} are left, and {coded.coding.needed} are needed"
            )
        with ExitStack() as stack:
            sources = await self._transfer.fetched(client, coded, there, coded.coding.needed, stack)
            for source in sources.values():
                source.seek(0)
            files = {index: stack.enter_context(self._transfer.file()) for index in missing}
            names = await trio.to_thread.run_sync(
                rebuild, coded, list(sources.values()), {index: file.write for index, file in files.items()}
            )
            return len(await self._transfer.spread(client, coded, files, names, there, views, placement, expected))
