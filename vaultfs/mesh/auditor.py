"""Audits of peers: who claims a segment has to prove random parts of it.

An answer is compared with the segment on this machine, if it is here and sound; otherwise with the answer of another
peer that claims the segment, to the same question.  Where two peers differ, the segment is fetched whole, from one and
if need be from the other, and its hash tells who lies.  Peers that agree are believed: that several conspire is
excluded by a vault on this machine only.  An answer about a share is compared with what the segment here gives, else as
`vaultfs.mesh.share_comparison` says.

The traffic is bounded: the names of what each audited peer claims; for each range at most 49 bytes of question and 32
of answer, to the peer and to those it is compared with; and at most two segments for each peer, because whoever is
found to lie is not asked again.
"""

from __future__ import annotations

import random
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import trio

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.asking import ask_all
from vaultfs.mesh.audit_questions import ABSENT, ABSENT_AFTER_ALL, OTHER_BYTES, Answer, AuditQuestions, AuditReport
from vaultfs.mesh.auditing import (
    DEFAULT_SAMPLES,
    Claimed,
    PeerAudit,
    Probe,
    ShareRanges,
    draw_everywhere,
    draw_probes,
    questions,
)
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.client import MeshClient, proof_of
from vaultfs.mesh.local_segments import LocalSegments
from vaultfs.mesh.reading import HashingFile
from vaultfs.mesh.share_comparison import ShareComparison, listed_shares
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.survey import segment_sizes
from vaultfs.storage.durable import storage_errors
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES, SEGMENTS_PREFIX, segment_key

KEY_BYTES: Final = 32


class _Fetched(NamedTuple):
    """A segment whose hash is right.

    Attributes:
        is_same_size: whether it is as long as was claimed.
        part: the bytes that were asked for.
    """

    is_same_size: bool
    part: bytes


class Auditor:
    """One audit of some peers of a vault.

    Args:
        client: to ask with.
        page: all peers of the vault.
        local: the segments here.
        needed: segments that manifests on this machine name, and their sizes.
        scratch: a directory for a segment that is fetched; None: the system's.
        draw: where chance comes from.
        draw_key: draws the key of the audit, `KEY_BYTES`.
    """

    def __init__(
        self,
        client: MeshClient,
        page: VaultPeers,
        local: LocalSegments,
        needed: Mapping[SegmentName, int],
        *,
        scratch: Path | None = None,
        draw: random.Random | None = None,
        draw_key: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._client: Final = client
        self._page: Final = page
        self._local: Final = local
        self._needed: Final = needed
        self._scratch: Final = scratch
        self._draw: Final = draw or random.SystemRandom()
        self._questions: Final = AuditQuestions(client, page, draw_key(KEY_BYTES))
        self._report: Final = self._questions.report
        self._claims: Final[dict[PeerId, dict[SegmentName, int]]] = {}
        self._shares: Final[dict[PeerId, set[ShareKey]]] = {}

    async def run(self, peers: Iterable[PeerId], samples: int | None = DEFAULT_SAMPLES) -> AuditReport:
        """Audit peers; either this or `prove` may be called, once.

        Args:
            peers: whom.
            samples: how many ranges of each; None: one of everything it claims.

        Raises:
            UsageError: shares are compared with segments here, or with each other, and zfec is missing.
            NoSpaceError, StorageError: there is no room for a segment that has to be fetched.
        """
        return await self._run(peers, samples, self._claims_of)

    async def prove(self, wanted: Mapping[PeerId, Mapping[Claimed, int]]) -> AuditReport:
        """Let peers prove a range of each of some segments and shares, and nothing else.

        Args:
            wanted: of which, and their sizes in bytes.

        Raises:
            VaultError: as `run`.
        """

        async def known(peer: PeerId) -> dict[Claimed, int]:
            await trio.lowlevel.checkpoint()
            claims = dict(wanted[peer])
            self._claims[peer] = {name: size for name, size in claims.items() if not isinstance(name, ShareKey)}
            self._shares[peer] = {share for share in claims if isinstance(share, ShareKey)}
            return claims

        return await self._run(wanted, None, known)

    async def _run(
        self,
        peers: Iterable[PeerId],
        samples: int | None,
        claims_of: Callable[[PeerId], Awaitable[dict[Claimed, int]]],
    ) -> AuditReport:
        audits = {peer: PeerAudit(peer) for peer in peers}
        self._report.peers.update(audits)
        answers: dict[PeerId, list[Answer]] = {peer: [] for peer in audits}
        ranges = ShareRanges(self._draw)

        async def audit(peer: PeerId) -> None:
            claims = await claims_of(peer)
            probes = (
                draw_everywhere(claims, self._draw, ranges)
                if samples is None
                else draw_probes(claims, samples, self._draw, ranges)
            )
            audits[peer].is_complete = {probe.claimed for probe in probes} == claims.keys()
            for question in questions(probes):
                answers[peer] += await self._questions.ask(peer, question)
                audits[peer].asked += len(question)

        failures = (await ask_all(audits, audit)).failures
        for peer, error in failures.items():
            self._questions.is_gone(peer, error)
        left: dict[PeerId, list[Answer]] = {}
        for peer, given in answers.items():
            left[peer] = await trio.to_thread.run_sync(self._compare_here, audits[peer], given)
        await self._compare_among_peers(
            {peer: [answer for answer in given if answer.probe.share is None] for peer, given in left.items()}
        )
        shares = {peer: [answer for answer in given if answer.probe.share is not None] for peer, given in left.items()}
        if any(shares.values()):
            comparison = ShareComparison(self._questions, self._shares, self._scratch, self._draw)
            await comparison.run(shares)
        return self._report

    async def _claims_of(self, peer: PeerId) -> dict[Claimed, int]:
        """What a peer claims, by its listing and when it is asked for what is needed; a wrong size is a failure."""
        audit = self._report.peers[peer]
        claims = dict(segment_sizes(await self._client.listing(peer, self._page.vault_id, SEGMENTS_PREFIX)))
        unlisted = [name for name in self._needed if name not in claims]
        claims |= await self._client.have(peer, self._page.vault_id, unlisted)
        shares = await listed_shares(self._questions, peer)
        shares = {share: size for share, size in shares.items() if self._is_possible(share)}
        audit.claimed_segments, audit.claimed_bytes = len(claims), sum(claims.values())
        audit.claimed_shares, audit.claimed_share_bytes = len(shares), sum(shares.values())
        self._claims[peer] = dict(claims)
        self._shares[peer] = set(shares)
        for name, size in claims.items():
            wanted = self._needed.get(name, size)
            if size != wanted or not 0 < size <= LARGEST_SEGMENT_BYTES:
                self._questions.fail(peer, name, _wrong_size(size, self._needed.get(name)))
                del self._claims[peer][name]
        for share, size in shares.items():
            if size != share.coded.share_bytes:
                self._questions.fail(
                    peer, share, f"it says that this share has {size} bytes, and it has {share.coded.share_bytes}"
                )
                self._shares[peer].discard(share)
        found: dict[Claimed, int] = {share: share.coded.share_bytes for share in self._shares[peer]}
        found.update(self._claims[peer].items())
        return found

    def _is_possible(self, share: ShareKey) -> bool:
        """Whether a share is of a segment as it is; whoever may store can store others, and nobody looks for them."""
        return self._needed.get(share.coded.name, share.coded.size_bytes) == share.coded.size_bytes

    def _compare_here(self, audit: PeerAudit, answers: Iterable[Answer]) -> list[Answer]:
        """Compare with the segments of this machine; what is left has to be compared with other peers' answers."""
        left = []
        for answer in answers:
            probe = answer.probe
            if answer.digest == ABSENT:
                audit.fail(probe.claimed, ABSENT_AFTER_ALL.format("segment" if probe.share is None else "share"))
                continue
            expected = self._local.proof(self._questions.key, probe)
            if expected == answer.digest:
                audit.prove(probe)
            elif expected is not None and self._local.is_sound(probe.segment):
                audit.fail(probe.claimed, OTHER_BYTES.format("segment" if probe.share is None else "share"))
            else:
                left.append(answer)
        return left

    # --- comparing peers with each other

    async def _compare_among_peers(self, left: dict[PeerId, list[Answer]]) -> None:
        names = {answer.probe.segment for answers in left.values() for answer in answers}
        if not names:
            return
        holders = await self._holders(sorted(names))
        for peer, given in left.items():
            answers = given
            others = [other for other in holders if other != peer]
            self._draw.shuffle(others)
            # That a liar agrees proves as much as that another does: it takes the bytes.  That it differs, nothing.
            for other in sorted(others, key=self._questions.is_out):
                if not answers or self._questions.is_out(peer):
                    break
                if other not in self._questions.silent:
                    answers = await self._compare(peer, answers, other, holders[other])
            self._report.peers[peer].uncompared += len(answers)

    async def _holders(self, names: list[SegmentName]) -> dict[PeerId, dict[SegmentName, int]]:
        """Who else claims some segments, and their sizes."""

        async def ask(peer: PeerId) -> dict[SegmentName, int]:
            if peer in self._claims:
                return self._claims[peer]
            return await self._client.have(peer, self._page.vault_id, names)

        asked = [peer.id for peer in self._page.peers if peer.id not in self._questions.silent]
        answers = await ask_all(asked, ask)
        self._questions.silent.update(answers.failures)
        return answers.values

    async def _compare(
        self, peer: PeerId, answers: list[Answer], other: PeerId, claims: Mapping[SegmentName, int]
    ) -> list[Answer]:
        """Compare a peer's answers with what another says to the same; what is left that this could not tell."""
        comparable = [answer for answer in answers if answer.probe.segment in claims]
        left = [answer for answer in answers if answer.probe.segment not in claims]
        same_size = [answer for answer in comparable if claims[answer.probe.segment] == answer.probe.size_bytes]
        theirs: dict[Probe, bytes] = {}
        try:
            for question in questions([answer.probe for answer in same_size]):
                theirs.update(await self._questions.ask(other, question))
        except VaultError:
            self._questions.silent.add(other)
        for answer in comparable:
            their_digest = theirs.get(answer.probe)
            is_same_size = claims[answer.probe.segment] == answer.probe.size_bytes
            if self._questions.is_out(peer):
                left.append(answer)
            elif is_same_size and their_digest == answer.digest:
                self._report.peers[peer].prove(answer.probe)
            elif is_same_size and their_digest == ABSENT:
                self._questions.fail(other, answer.probe.segment, ABSENT_AFTER_ALL.format("segment"))
                left.append(answer)
            elif self._questions.is_out(other) or not await self._settle(answer, peer, (other, their_digest)):
                left.append(answer)
        return left

    async def _settle(self, answer: Answer, peer: PeerId, other: tuple[PeerId, bytes | None]) -> bool:
        """Find out which of two peers lies, by the hash of the whole segment; whether the first one's answer is proved.

        Afterwards one of them has failed, or one does not answer.
        """
        probe = answer.probe
        for suspect in (peer, other[0]):
            fetched = await self._fetch(suspect, probe)
            if fetched is None:
                continue
            expected = (
                proof_of(self._questions.key, probe.segment, probe.offset, fetched.part)
                if fetched.is_same_size
                else None
            )
            is_proved = answer.digest == expected
            if not is_proved:
                self._questions.fail(peer, probe.segment, OTHER_BYTES.format("segment"))
            if other[1] != expected:
                self._questions.fail(other[0], probe.segment, OTHER_BYTES.format("segment"))
            if is_proved:
                self._report.peers[peer].prove(probe)
            return is_proved
        return False

    async def _fetch(self, peer: PeerId, probe: Probe) -> _Fetched | None:
        """A whole segment, whose hash is right; otherwise the peer has failed, or is silent from now on."""
        with (
            storage_errors("cannot store a segment about which peers differ"),
            tempfile.TemporaryFile(dir=self._scratch, buffering=0) as file,
        ):
            hashing = HashingFile(cast("BinaryIO", file), LARGEST_SEGMENT_BYTES)
            failure = await self._questions.fetch(
                peer, segment_key(probe.segment), "segment", hashing, LARGEST_SEGMENT_BYTES
            )
            if failure is None and hashing.hexdigest() != probe.segment:
                failure = "it sends other bytes than those of this segment"
            if failure is not None:
                if peer not in self._questions.silent:
                    self._questions.fail(peer, probe.segment, failure)
                return None
            file.seek(probe.offset)
            return _Fetched(hashing.count == probe.size_bytes, file.read(probe.length))


def _wrong_size(size_bytes: int, needed_bytes: int | None) -> str:
    right = "which no segment has" if needed_bytes is None else f"and it has {needed_bytes}"
    return f"it says that this segment has {size_bytes} bytes, {right}"
