"""Audits of peers: who claims a segment has to prove random parts of it.

An answer is compared with the segment on this machine, if it is here and sound; otherwise with the answer of another
peer that claims the segment, to the same question.  Where two peers differ, the segment is fetched whole, from one and
if need be from the other, and its hash tells who lies.  Peers that agree are believed: that several conspire is
excluded by a vault on this machine only.

The traffic is bounded: the names of what each audited peer claims; for each range at most 49 bytes of question and 32
of answer, to the peer and to those it is compared with; and at most two segments for each peer, because whoever is
found to lie is not asked again.
"""

from __future__ import annotations

import random
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import trio

from vaultfs.errors import ObjectMissingError, VaultError
from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.asking import ask_all
from vaultfs.mesh.auditing import DEFAULT_SAMPLES, PeerAudit, Probe, draw_everywhere, draw_probes, questions
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.client import MeshClient, proof_of
from vaultfs.mesh.local_segments import LocalSegments
from vaultfs.mesh.messages import HASH_BYTES, Audit, Proof, encode
from vaultfs.mesh.reading import HashingFile
from vaultfs.mesh.survey import segment_sizes
from vaultfs.storage.durable import storage_errors
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES, SEGMENTS_PREFIX, segment_key

KEY_BYTES: Final = 32

_ABSENT: Final = bytes(HASH_BYTES)
_ABSENT_AFTER_ALL: Final = "it says that it has this segment, and when asked for a part, that it has not"
_OTHER_BYTES: Final = "it has other bytes than those of this segment"


class _Answer(NamedTuple):
    """What a peer answered about a part."""

    probe: Probe
    digest: bytes


class _Fetched(NamedTuple):
    """A segment whose hash is right.

    Attributes:
        is_same_size: whether it is as long as was claimed.
        part: the bytes that were asked for.
    """

    is_same_size: bool
    part: bytes


@dataclass
class AuditReport:
    """What an audit found out.

    Attributes:
        peers: those that were audited, and others that were found to lie on the way; by peer.
        proof_bytes: questions and their answers, in frames.
        fetched_bytes: of segments that were fetched because two peers differed.
    """

    peers: dict[PeerId, PeerAudit] = field(default_factory=dict)
    proof_bytes: int = 0
    fetched_bytes: int = 0


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
        self._key: Final = draw_key(KEY_BYTES)
        self._report: Final = AuditReport()
        self._silent: Final[set[PeerId]] = set()
        self._claims: Final[dict[PeerId, dict[SegmentName, int]]] = {}

    async def run(self, peers: Iterable[PeerId], samples: int | None = DEFAULT_SAMPLES) -> AuditReport:
        """Audit peers; may be called once.

        Args:
            peers: whom.
            samples: how many ranges of each; None: one of each segment.

        Raises:
            NoSpaceError, StorageError: there is no room for a segment that has to be fetched.
        """
        audits = {peer: PeerAudit(peer) for peer in peers}
        self._report.peers.update(audits)
        answers: dict[PeerId, list[_Answer]] = {peer: [] for peer in audits}

        async def audit(peer: PeerId) -> None:
            claims = await self._claims_of(peer)
            probes = (
                draw_everywhere(claims, self._draw) if samples is None else draw_probes(claims, samples, self._draw)
            )
            audits[peer].is_complete = {probe.segment for probe in probes} == claims.keys()
            for question in questions(probes):
                answers[peer] += await self._ask(peer, question)
                audits[peer].asked += len(question)

        failures = (await ask_all(audits, audit)).failures
        for peer, error in failures.items():
            audits[peer].error = error
            self._silent.add(peer)
        left = {}
        for peer, given in answers.items():
            left[peer] = await trio.to_thread.run_sync(self._compare_here, audits[peer], given)
        await self._compare_among_peers(left)
        return self._report

    async def _claims_of(self, peer: PeerId) -> dict[SegmentName, int]:
        """What a peer claims, by its listing and when it is asked for what is needed; a wrong size is a failure."""
        audit = self._report.peers[peer]
        claims = dict(segment_sizes(await self._client.listing(peer, self._page.vault_id, SEGMENTS_PREFIX)))
        unlisted = [name for name in self._needed if name not in claims]
        claims |= await self._client.have(peer, self._page.vault_id, unlisted)
        audit.claimed_segments, audit.claimed_bytes = len(claims), sum(claims.values())
        self._claims[peer] = dict(claims)
        for name, size in claims.items():
            wanted = self._needed.get(name, size)
            if size != wanted or not 0 < size <= LARGEST_SEGMENT_BYTES:
                self._fail(peer, name, _wrong_size(size, self._needed.get(name)))
                del self._claims[peer][name]
        return self._claims[peer]

    async def _ask(self, peer: PeerId, probes: Iterable[Probe]) -> list[_Answer]:
        asked = tuple(probes)
        ranges = tuple(probe.range for probe in asked)
        digests = await self._client.audit(peer, self._page.vault_id, self._key, ranges)
        self._report.proof_bytes += len(encode(Audit(0, self._page.vault_id, self._key, ranges)))
        self._report.proof_bytes += len(encode(Proof(0, b"".join(digests))))
        return [_Answer(probe, digest) for probe, digest in zip(asked, digests, strict=True)]

    def _fail(self, peer: PeerId, segment: SegmentName, reason: str) -> None:
        self._report.peers.setdefault(peer, PeerAudit(peer)).fail(segment, reason)

    def _is_out(self, peer: PeerId) -> bool:
        """Whether nothing that a peer says counts any more."""
        audit = self._report.peers.get(peer)
        return peer in self._silent or (audit is not None and audit.has_failed)

    def _compare_here(self, audit: PeerAudit, answers: Iterable[_Answer]) -> list[_Answer]:
        """Compare with the segments of this machine; what is left has to be compared with other peers' answers."""
        left = []
        for answer in answers:
            probe = answer.probe
            if answer.digest == _ABSENT:
                audit.fail(probe.segment, _ABSENT_AFTER_ALL)
                continue
            expected = self._local.proof(self._key, probe)
            if expected == answer.digest:
                audit.proven += 1
            elif expected is not None and self._local.is_sound(probe.segment):
                audit.fail(probe.segment, _OTHER_BYTES)
            else:
                left.append(answer)
        return left

    # --- comparing peers with each other

    async def _compare_among_peers(self, left: dict[PeerId, list[_Answer]]) -> None:
        names = {answer.probe.segment for answers in left.values() for answer in answers}
        if not names:
            return
        holders = await self._holders(sorted(names))
        for peer, given in left.items():
            answers = given
            others = [other for other in holders if other != peer]
            self._draw.shuffle(others)
            # That a liar agrees proves as much as that another does: it takes the bytes.  That it differs, nothing.
            for other in sorted(others, key=self._is_out):
                if not answers or self._is_out(peer):
                    break
                if other not in self._silent:
                    answers = await self._compare(peer, answers, other, holders[other])
            self._report.peers[peer].uncompared += len(answers)

    async def _holders(self, names: list[SegmentName]) -> dict[PeerId, dict[SegmentName, int]]:
        """Who else claims some segments, and their sizes."""

        async def ask(peer: PeerId) -> dict[SegmentName, int]:
            if peer in self._claims:
                return self._claims[peer]
            return await self._client.have(peer, self._page.vault_id, names)

        asked = [peer.id for peer in self._page.peers if peer.id not in self._silent]
        answers = await ask_all(asked, ask)
        self._silent.update(answers.failures)
        return answers.values

    async def _compare(
        self, peer: PeerId, answers: list[_Answer], other: PeerId, claims: Mapping[SegmentName, int]
    ) -> list[_Answer]:
        """Compare a peer's answers with what another says to the same; what is left that this could not tell."""
        comparable = [answer for answer in answers if answer.probe.segment in claims]
        left = [answer for answer in answers if answer.probe.segment not in claims]
        same_size = [answer for answer in comparable if claims[answer.probe.segment] == answer.probe.size_bytes]
        theirs: dict[Probe, bytes] = {}
        try:
            for question in questions([answer.probe for answer in same_size]):
                theirs.update(await self._ask(other, question))
        except VaultError:
            self._silent.add(other)
        for answer in comparable:
            their_digest = theirs.get(answer.probe)
            is_same_size = claims[answer.probe.segment] == answer.probe.size_bytes
            if self._is_out(peer):
                left.append(answer)
            elif is_same_size and their_digest == answer.digest:
                self._report.peers[peer].proven += 1
            elif is_same_size and their_digest == _ABSENT:
                self._fail(other, answer.probe.segment, _ABSENT_AFTER_ALL)
                left.append(answer)
            elif self._is_out(other) or not await self._settle(answer, peer, (other, their_digest)):
                left.append(answer)
        return left

    async def _settle(self, answer: _Answer, peer: PeerId, other: tuple[PeerId, bytes | None]) -> bool:
        """Find out which of two peers lies, by the hash of the whole segment; whether the first one's answer is proved.

        Afterwards one of them has failed, or one does not answer.
        """
        probe = answer.probe
        for suspect in (peer, other[0]):
            fetched = await self._fetch(suspect, probe)
            if fetched is None:
                continue
            expected = proof_of(self._key, probe.segment, probe.offset, fetched.part) if fetched.is_same_size else None
            is_proved = answer.digest == expected
            if not is_proved:
                self._fail(peer, probe.segment, _OTHER_BYTES)
            if other[1] != expected:
                self._fail(other[0], probe.segment, _OTHER_BYTES)
            self._report.peers[peer].proven += is_proved
            return is_proved
        return False

    async def _fetch(self, peer: PeerId, probe: Probe) -> _Fetched | None:
        """A whole segment, whose hash is right; otherwise the peer has failed, or is silent from now on."""
        with (
            storage_errors("cannot store a segment about which peers differ"),
            tempfile.TemporaryFile(dir=self._scratch, buffering=0) as file,
        ):
            hashing = HashingFile(cast("BinaryIO", file), LARGEST_SEGMENT_BYTES)
            failure = await self._fetch_into(hashing, peer, probe.segment)
            self._report.fetched_bytes += hashing.count
            if failure is None and hashing.hexdigest() != probe.segment:
                failure = "it sends other bytes than those of this segment"
            if failure is not None:
                if peer not in self._silent:
                    self._fail(peer, probe.segment, failure)
                return None
            file.seek(probe.offset)
            return _Fetched(hashing.count == probe.size_bytes, file.read(probe.length))

    async def _fetch_into(self, hashing: HashingFile, peer: PeerId, name: SegmentName) -> str | None:
        """Fetch a segment; why the peer has failed, or is silent from now on."""
        try:
            await self._client.fetch(peer, self._page.vault_id, segment_key(name), cast("BinaryIO", hashing))
        except ObjectMissingError:
            return "it says that it has this segment, and does not give it"
        except VaultError as error:
            if hashing.count <= LARGEST_SEGMENT_BYTES:
                self._silent.add(peer)
                if peer in self._report.peers:
                    self._report.peers[peer].error = error
            return "it sends more bytes than any segment has"
        return None


def _wrong_size(size_bytes: int, needed_bytes: int | None) -> str:
    right = "which no segment has" if needed_bytes is None else f"and it has {needed_bytes}"
    return f"it says that this segment has {size_bytes} bytes, {right}"
