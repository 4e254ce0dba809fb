"""Compares what peers prove of shares with each other, where the segment is not on this machine.

At any one place, the bytes of n shares hang together: any k of them give the others.  So of each segment that is asked
for, all who have a share of it answer for the same place, k of them also send the bytes there, and what the others
answer has to follow from these.  If all agree, all have proved theirs.  k shares alone hang together whatever they are:
these are not compared.

Where something does not agree, shares are fetched whole, first of those whose answers do not fit: one whose bytes do
not have the hash of its name, or are not those that were proved, is wrong, and its peer with it.  If all have the right
names and still do not hang together, somebody has made one up; then the hash of the segment tells which.

The traffic is bounded: 4 KiB of k shares for each segment that is asked for, `MOST_PART_BYTES` in all; and at most all
shares of one segment for each peer that is found out, and once more where nobody can be.
"""

from __future__ import annotations

import io
import logging
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import trio

from vaultfs.errors import IntegrityError, ObjectMissingError, VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.asking import ask_all
from vaultfs.mesh.audit_questions import ABSENT, ABSENT_AFTER_ALL, OTHER_BYTES, Answer, AuditQuestions
from vaultfs.mesh.auditing import Probe, questions
from vaultfs.mesh.client import proof_of
from vaultfs.mesh.erasure import find_wrong
from vaultfs.mesh.held_shares import Held
from vaultfs.mesh.reading import HashingFile
from vaultfs.mesh.share_format import CodedSegment
from vaultfs.mesh.share_keys import SHARES_PREFIX, ShareKey, parse_share_key
from vaultfs.mesh.share_parts import part_of_shares
from vaultfs.storage.durable import storage_errors

log = logging.getLogger(__name__)

MOST_PART_BYTES: Final = 64 << 20
_AT_ONCE: Final = 8
_MADE_UP: Final = "it is not the share that the segment gives: somebody has made it up"


class _Place(NamedTuple):
    """What all shares of a segment are asked for."""

    coded: CodedSegment
    offset: int
    length: int


@dataclass
class _Group:
    """All that was answered about one place.

    Attributes:
        place: which.
        answers: by who has which share.
        audited: those of them that were drawn, and how often.
        parts: bytes that peers have sent of it.
    """

    place: _Place
    answers: dict[Held, bytes] = field(default_factory=dict)
    audited: list[tuple[Held, Probe]] = field(default_factory=list)
    parts: dict[Held, bytes] = field(default_factory=dict)


async def listed_shares(asking: AuditQuestions, peer: PeerId) -> dict[ShareKey, int]:
    """The shares that a peer lists, and their sizes in bytes.

    Raises:
        VaultError: it does not answer.
    """
    found = {}
    for info in await asking.client.listing(peer, asking.page.vault_id, SHARES_PREFIX):
        share = parse_share_key(info.key)
        if share is not None:
            found[share] = info.size_bytes
    return found


class ShareComparison:
    """One comparison.

    Args:
        asking: the audit that it belongs to.
        shares: by peer that was asked already, what it claims.
        scratch: a directory for shares that are fetched; None: the system's.
        draw: where chance comes from.
    """

    def __init__(
        self,
        asking: AuditQuestions,
        shares: Mapping[PeerId, Iterable[ShareKey]],
        scratch: Path | None,
        draw: random.Random,
    ) -> None:
        self._asking: Final = asking
        self._shares: Final = dict(shares)
        self._scratch: Final = scratch
        self._draw: Final = draw
        self._left_bytes = MOST_PART_BYTES
        self._is_undecided = False

    async def run(self, left: Mapping[PeerId, Sequence[Answer]]) -> None:
        """Compare answers about shares; what comes of it is told to the audit.

        Args:
            left: by peer, what could not be compared on this machine.

        Raises:
            UsageError: zfec is missing.
            NoSpaceError, StorageError: this machine's disk cannot take what has to be fetched.
        """
        groups: dict[_Place, _Group] = {}
        for peer, answers in left.items():
            for probe, digest in answers:
                assert probe.share is not None, "others are compared elsewhere"
                place = _Place(probe.share.coded, probe.offset, probe.length)
                group = groups.setdefault(place, _Group(place))
                group.answers[Held(peer, probe.share)] = digest
                group.audited.append((Held(peer, probe.share), probe))
        await self._ask_others(groups)
        waiting = list(groups.values())
        for start in range(0, len(waiting), _AT_ONCE):
            some = waiting[start : start + _AT_ONCE]
            async with trio.open_nursery() as nursery:
                for group in some:
                    nursery.start_soon(self._have_parts, group)
            for group in some:
                await self._judge(group)

    async def _ask_others(self, groups: Mapping[_Place, _Group]) -> None:
        """Let all answer who have a share of the same segments."""
        asked = [peer.id for peer in self._asking.page.peers if not self._asking.is_out(peer.id)]
        unknown = [peer for peer in asked if peer not in self._shares]
        listings = await ask_all(unknown, lambda peer: listed_shares(self._asking, peer))
        self._shares.update(listings.values)
        self._asking.silent.update(listings.failures)
        places: defaultdict[CodedSegment, list[_Place]] = defaultdict(list)
        for place in groups:
            places[place.coded].append(place)

        async def ask(peer: PeerId) -> None:
            probes = [
                Probe(place.coded.name, place.coded.share_bytes, place.offset, place.length, share)
                for share in sorted(self._shares.get(peer, ()), key=str)
                for place in places.get(share.coded, ())
                if Held(peer, share) not in groups[place].answers
            ]
            for question in questions(probes):
                for probe, digest in await self._asking.ask(peer, question):
                    assert probe.share is not None, "as it was asked for"
                    place = _Place(probe.share.coded, probe.offset, probe.length)
                    groups[place].answers[Held(peer, probe.share)] = digest
                    if digest == ABSENT:
                        self._asking.fail(peer, probe.share, ABSENT_AFTER_ALL.format("share"))

        for peer, error in (await ask_all(asked, ask)).failures.items():
            log.info("%s", error)
            self._asking.silent.add(peer)

    # --- one place

    def _present(self, group: _Group) -> list[Held]:
        """Who has answered, and still counts."""
        return [
            held for held, digest in group.answers.items() if digest != ABSENT and not self._asking.is_out(held.peer)
        ]

    async def _have_parts(self, group: _Group) -> None:
        """Have the bytes of k different shares, if there are more."""
        needed = group.place.coded.coding.needed
        group.parts = {held: part for held, part in group.parts.items() if not self._asking.is_out(held.peer)}
        waiting = self._present(group)
        self._draw.shuffle(waiting)
        missing = needed - len(group.parts)
        if len({held.key.index for held in waiting}) <= needed or self._left_bytes < missing * group.place.length:
            return
        self._left_bytes -= missing * group.place.length  # for all at once: parts of a few shares are worth nothing
        fetching: set[Held] = set()

        async def fetch_one() -> None:
            while waiting:
                held = waiting.pop()
                if held.key.index in {other.key.index for other in [*group.parts, *fetching]}:
                    continue
                fetching.add(held)
                part = await self._part(held, group.place)
                fetching.discard(held)
                if part is not None:
                    group.parts[held] = part
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(missing):
                nursery.start_soon(fetch_one)

    async def _part(self, held: Held, place: _Place) -> bytes | None:
        file = io.BytesIO()
        asking = self._asking
        try:
            await asking.client.fetch(
                held.peer, asking.page.vault_id, str(held.key), file, offset=place.offset, length=place.length
            )
        except ObjectMissingError:
            asking.fail(held.peer, held.key, "it says that it has this share, and does not give it")
            return None
        except VaultError as error:
            asking.is_gone(held.peer, error)
            return None
        finally:
            asking.report.fetched_bytes += len(file.getvalue())
        return file.getvalue()

    async def _judge(self, group: _Group) -> None:
        """Compare all answers about a place, and find out who lies if they do not agree."""
        while True:
            present = self._present(group)
            parts = {held: part for held, part in group.parts.items() if held in present}
            if len({held.key.index for held in present}) <= group.place.coded.coding.needed:
                break
            if len(parts) != group.place.coded.coding.needed:
                if not await self._can_have_more(group):
                    break
                continue
            wrong = await trio.to_thread.run_sync(self._wrong, group, parts, present)
            if not wrong:
                self._all_is_well(group)
                return
            if self._is_undecided or not await self._settle(group, wrong):
                break
        self._is_uncompared(group)

    async def _can_have_more(self, group: _Group) -> bool:
        """Whether there are k parts now, although some peers are out."""
        before = self._present(group)
        await self._have_parts(group)
        return len(group.parts) == group.place.coded.coding.needed or self._present(group) != before

    def _wrong(self, group: _Group, parts: Mapping[Held, bytes], present: Iterable[Held]) -> list[Held]:
        """Whose answers do not fit; first those who have proved something else than they have sent."""
        by_index = {held.key.index: part for held, part in parts.items()}
        wrong = []
        for held in sorted(present, key=lambda held: held not in parts):
            expected = part_of_shares(group.place.coded, held.key.index, by_index)
            if self._proof(held, group.place, expected) != group.answers[held]:
                wrong.append(held)
        return wrong

    def _proof(self, held: Held, place: _Place, data: bytes) -> bytes:
        return proof_of(self._asking.key, held.key.name, place.offset, data)

    def _all_is_well(self, group: _Group) -> None:
        for held, probe in group.audited:
            if not self._asking.is_out(held.peer):
                self._asking.report.peers[held.peer].prove(probe)

    def _is_uncompared(self, group: _Group) -> None:
        for held, _ in group.audited:
            self._asking.report.peers[held.peer].uncompared += 1

    # --- whole shares

    async def _settle(self, group: _Group, wrong: Sequence[Held]) -> bool:
        """Find out whose share is wrong, by whole ones; whether somebody was found out, or is gone."""
        present = self._present(group)
        with ExitStack() as stack:
            files: dict[Held, BinaryIO] = {}
            for held in [*wrong, *(held for held in present if held not in wrong)]:
                with storage_errors("cannot store a share about which peers differ"):
                    file = cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile(dir=self._scratch, buffering=0)))
                failure = await self._fetched(held, group, file)
                if self._asking.is_out(held.peer):
                    return True
                if failure is not None:
                    self._asking.fail(held.peer, held.key, failure)
                    return True
                files[held] = file
            try:
                verdict = await trio.to_thread.run_sync(find_wrong, group.place.coded, list(files.values()))
            except IntegrityError as error:
                log.info("%s", error)
                self._is_undecided = True
                return False
            order = list(files)
            for position in verdict.wrong:
                self._asking.fail(order[position].peer, order[position].key, _MADE_UP)
            self._is_undecided = not verdict.wrong
            return bool(verdict.wrong)

    async def _fetched(self, held: Held, group: _Group, file: BinaryIO) -> str | None:
        """Fetch a share; why it is wrong, by itself."""
        coded, place = group.place.coded, group.place
        hashing = HashingFile(file, coded.share_bytes)
        failure = await self._asking.fetch(held.peer, str(held.key), "share", hashing, coded.share_bytes)
        if failure is not None:
            return failure
        if hashing.hexdigest() != held.key.name:
            return OTHER_BYTES.format("share")
        file.seek(place.offset)
        data = await trio.to_thread.run_sync(file.read, place.length)
        if self._proof(held, place, data) != group.answers[held] or group.parts.get(held, data) != data:
            return "it has proved, or sent, other bytes of this share than it has"
        return None
