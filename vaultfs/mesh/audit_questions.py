"""What an audit asks of peers, and what it has found out: shared by those who compare the answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO, Final, NamedTuple, cast

from vaultfs.errors import ObjectMissingError, VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.auditing import Claimed, PeerAudit, Probe
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.message_codec import encode
from vaultfs.mesh.messages import HASH_BYTES, Audit, Proof
from vaultfs.mesh.reading import HashingFile

ABSENT: Final = bytes(HASH_BYTES)
ABSENT_AFTER_ALL: Final = "it says that it has this {}, and when asked for a part, that it has not"
OTHER_BYTES: Final = "it has other bytes than those of this {}"


class Answer(NamedTuple):
    """What a peer answered about a part."""

    probe: Probe
    digest: bytes


@dataclass
class AuditReport:
    """What an audit found out.

    Attributes:
        peers: those that were audited, and others that were found to lie on the way; by peer.
        proof_bytes: questions and their answers, in frames.
        fetched_bytes: of segments and shares, and parts of shares, that were fetched because there was nothing here to
            compare with, or peers differed.
    """

    peers: dict[PeerId, PeerAudit] = field(default_factory=dict)
    proof_bytes: int = 0
    fetched_bytes: int = 0


class AuditQuestions:
    """The questions of one audit.

    Args:
        client: to ask with.
        page: all peers of the vault.
        key: of the audit, 32 bytes.

    Attributes:
        page: all peers of the vault.
        key: of the audit.
        report: what was found out so far.
        silent: peers that did not answer, and are not asked again.
    """

    def __init__(self, client: MeshClient, page: VaultPeers, key: bytes) -> None:
        self.client: Final = client
        self.page: Final = page
        self.key: Final = key
        self.report: Final = AuditReport()
        self.silent: Final[set[PeerId]] = set()

    async def ask(self, peer: PeerId, probes: Iterable[Probe]) -> list[Answer]:
        """One question.

        Args:
            peer: whom.
            probes: for what, as many as `questions` gives.

        Raises:
            VaultError: it does not answer.
        """
        asked = tuple(probes)
        ranges = tuple(probe.range for probe in asked)
        digests = await self.client.audit(peer, self.page.vault_id, self.key, ranges)
        self.report.proof_bytes += len(encode(Audit(0, self.page.vault_id, self.key, ranges)))
        self.report.proof_bytes += len(encode(Proof(0, b"".join(digests))))
        return [Answer(probe, digest) for probe, digest in zip(asked, digests, strict=True)]

    def fail(self, peer: PeerId, claimed: Claimed, reason: str) -> None:
        """A claim of a peer is not true."""
        self.report.peers.setdefault(peer, PeerAudit(peer)).fail(claimed, reason)

    def is_out(self, peer: PeerId) -> bool:
        """Whether nothing that a peer says counts any more."""
        audit = self.report.peers.get(peer)
        return peer in self.silent or (audit is not None and audit.has_failed)

    def is_gone(self, peer: PeerId, error: VaultError) -> None:
        """A peer does not answer any more."""
        self.silent.add(peer)
        if peer in self.report.peers:
            self.report.peers[peer].error = error

    async def fetch(self, peer: PeerId, key: str, what: str, hashing: HashingFile, most_bytes: int) -> str | None:
        """Fetch an object; why the peer has failed, or is silent from now on; None if something has come.

        Args:
            peer: from whom.
            key: of the object.
            what: to call it.
            hashing: takes it, and no more than ``most_bytes``.
            most_bytes: such an object has.
        """
        try:
            await self.client.fetch(peer, self.page.vault_id, key, cast("BinaryIO", hashing))
        except ObjectMissingError:
            return f"it says that it has this {what}, and does not give it"
        except VaultError as error:
            if hashing.failure is not None:  # not the peer's: the disk here
                raise hashing.failure from error
            if hashing.count <= most_bytes:
                self.is_gone(peer, error)
            return f"it sends more bytes than any {what} has"
        finally:
            self.report.fetched_bytes += hashing.count
        return None
