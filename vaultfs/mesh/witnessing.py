"""Asking peers what they have seen of a vault, and for the manifests that prove it.

A peer may be dead, slow, wrong or malicious.  So nobody is waited for long, all are asked at once, and a claim counts
only with the manifest of the snapshot, which a device of the vault has signed.  What is withheld proves nothing: who
could hinder a restore by a mere claim would do so.

Whoever has the vault's key gives `VaultKeys`; nothing here has one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final, NamedTuple, Protocol, cast

import trio

from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteUnreachableError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.asking import ask_all
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.reading import HashingFile
from vaultfs.mesh.replica_keys import LARGEST_MANIFEST_BYTES
from vaultfs.mesh.standing import Standing
from vaultfs.mesh.witness import Head, WitnessStatement, judge
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.public_header import LARGEST_HEADER_BYTES
from vaultfs.sync.remote_layout import (
    BRANCHES_PREFIX,
    HEADER_KEY,
    HEADS_PREFIX,
    RemoteHead,
    head_key,
    parse_head,
    parse_note,
)

ASK_S: Final = 5.0
"""For all statements together."""
PROVE_S: Final = 20.0
"""For the proofs of each peer: a manifest of 16 MiB and a header, on a line of 8 Mbit/s."""
MOST_WALKED: Final = 64
"""Manifests that are read to find out where a history comes from."""


class VaultKeys(Protocol):
    """What takes the vault's key.  Methods block, and several threads may call at once, but for `learn`."""

    def devices(self) -> frozenset[bytes]:
        """The keys of the vault's devices, 32 bytes each."""

    def learn(self, header: bytes) -> None:
        """Know the devices too that another ``vault.json`` of this vault gives.

        Raises:
            VaultError: it is none, or the secret does not open it.
        """

    def check(self, head: Head, manifest: bytes) -> None:
        """See that a device of the vault has signed a manifest.

        Raises:
            IntegrityError: none has; or it is another one.
        """


class FallenBack(NamedTuple):
    """A peer that says that it has seen less than it said before.

    Attributes:
        peer: its id.
        before: the highest number it ever said.
        now: that it says now; 0: none.
    """

    peer: PeerId
    before: int
    now: int

    @property
    def text(self) -> str:
        """What to say of it, after its name."""
        now = f"only snapshot {self.now}" if self.now else "none"
        return (
            f"has seen snapshot {self.before} once, and now says that it has seen {now}: it was restored from an old "
            "backup, or lies"
        )


@dataclass
class Heard:
    """What peers said.

    Attributes:
        statements: by peer; signed by it, and an answer to this question.
        failures: why others said nothing that counts.
    """

    statements: dict[PeerId, WitnessStatement] = field(default_factory=dict)
    failures: dict[PeerId, VaultError] = field(default_factory=dict)


async def ask_witnesses(client: MeshClient, page: VaultPeers) -> Heard:
    """Ask all peers of a vault what they have seen; takes `ASK_S` at most.

    Args:
        client: to ask with.
        page: the peers.
    """

    async def ask(peer: PeerId) -> WitnessStatement:
        with trio.move_on_after(ASK_S):
            return await client.statement(peer, page.vault_id)
        raise RemoteUnreachableError(f"{client.name(peer)} does not answer within {ASK_S:.0f} s")

    answers = await ask_all([peer.id for peer in page.peers], ask)
    return Heard(answers.values, answers.failures)


def remember(standing: Standing, heard: Heard, now_ns: int) -> list[FallenBack]:
    """Remember the highest number that each peer ever said, and tell which say less now.

    Such a peer was restored from an old backup, or lies.

    Args:
        standing: is told.
        heard: what they say now.
        now_ns: since 1970.
    """
    fallen = []
    for peer, statement in heard.statements.items():
        newest = max((head.seq for head in statement.heads), default=0)
        before = standing.of(peer).newest_seq
        standing.note(peer, seen_ns=now_ns, newest_seq=max(newest, before))
        if newest < before:
            fallen.append(FallenBack(peer, before, newest))
    return fallen


class Proved(NamedTuple):
    """A snapshot that a source does not show, and that exists.

    Attributes:
        head: which.
        peers: that have seen it, and whose manifest proved it.
        created_ns: when it was made, since 1970, by the clock of the machine that made it.
    """

    head: Head
    peers: tuple[PeerId, ...]
    created_ns: int


@dataclass
class Evidence:
    """What became of the claims.

    Attributes:
        proved: the highest numbers first.
        unproved: by peer, the highest snapshot that it says it has seen without proving it, and why it counts for
            nothing.
    """

    proved: list[Proved] = field(default_factory=list)
    unproved: dict[PeerId, tuple[Head, str]] = field(default_factory=dict)


async def prove_claims(
    client: MeshClient, vault: VaultId, statements: Iterable[WitnessStatement], shown: Head, keys: VaultKeys
) -> Evidence:
    """Get proofs of what peers have seen and a source does not show: what is newer than its newest, or beside it.

    Histories that stand side by side on a peer because a person wished it are no claim: where the peer has the note of
    that (`vaultfs.sync.branches`), only what comes from the shown snapshot counts.

    Args:
        client: to ask with.
        vault: its id.
        statements: of peers.
        shown: the newest snapshot of the source; its manifest was checked.
        keys: of the vault.
    """
    claims: dict[PeerId, list[Head]] = {}
    judgement = judge(statements, [shown])
    for claim in (*judgement.newer, *judgement.forks):
        for peer in claim.peers:
            claims.setdefault(peer, []).append(claim.head)
    found: dict[Head, Proved] = {}
    evidence = Evidence()
    learning = trio.Lock()

    async def prove(peer: PeerId) -> None:
        proof = _Proof(client, peer, vault, keys, learning)
        with trio.move_on_after(PROVE_S) as scope:
            for head in claims[peer]:
                try:
                    manifest = await proof.of(head)
                    if await proof.is_beside(manifest, shown):
                        continue
                except VaultError as error:
                    evidence.unproved.setdefault(peer, (head, str(error)))
                    continue
                evidence.unproved.pop(peer, None)  # what is proved is enough
                before = found.get(head)
                peers = (peer,) if before is None else tuple(sorted((*before.peers, peer)))
                found[head] = Proved(head, peers, manifest.created_ns)
                return
        if scope.cancelled_caught:
            why = f"{client.name(peer)} does not prove it within {PROVE_S:.0f} s"
            evidence.unproved.setdefault(peer, (claims[peer][0], why))

    async with trio.open_nursery() as nursery:
        for peer in claims:
            nursery.start_soon(prove, peer)
    evidence.proved = sorted(found.values(), key=lambda each: (-each.head.seq, each.head.hash))
    return evidence


class _Proof:
    """What one peer can show."""

    def __init__(self, client: MeshClient, peer: PeerId, vault: VaultId, keys: VaultKeys, learning: trio.Lock) -> None:
        self._client: Final = client
        self._peer: Final = peer
        self._vault: Final = vault
        self._keys: Final = keys
        self._learning: Final = learning
        self._header_failure: VaultError | None = None
        self._has_learned = False

    async def of(self, head: Head) -> Manifest:
        """The manifest of a snapshot, which a device of the vault has signed.

        Raises:
            IntegrityError: it is no such manifest.
            ObjectMissingError: the peer does not give it.
            VaultError: the peer does not answer.
        """
        if head.device not in await self._devices(head):
            reason = "" if self._header_failure is None else f": {self._header_failure}"
            raise IntegrityError(f"its manifest is signed by no device of the vault that this password knows{reason}")
        data = await self._get(head_key(_remote(head)), LARGEST_MANIFEST_BYTES, head.hash.hex())
        await trio.to_thread.run_sync(self._keys.check, head, data)
        return Manifest.decode(data)[0]

    async def _devices(self, head: Head) -> frozenset[bytes]:
        """The vault's devices; for an unknown one the peer's own header is looked at, which may be newer."""
        if head.device in self._keys.devices() or self._has_learned:
            return self._keys.devices()
        self._has_learned = True
        try:
            header = await self._get(HEADER_KEY, LARGEST_HEADER_BYTES, None)
            async with self._learning:  # a password is stretched, which takes much memory
                await trio.to_thread.run_sync(self._keys.learn, header, abandon_on_cancel=True)
        except VaultError as error:
            self._header_failure = error
        return self._keys.devices()

    async def is_beside(self, manifest: Manifest, shown: Head) -> bool:
        """Whether a snapshot stands beside the shown one because a person wished it.

        Raises:
            VaultError: the peer does not answer.
        """
        keys = [info.key for info in await self._client.listing(self._peer, self._vault, HEADS_PREFIX)]
        if not any(parse_note(key, BRANCHES_PREFIX) for key in keys):
            return False
        heads = {head.hash: head for key in keys if (head := parse_head(key)) is not None}
        return await self._comes_from(manifest, shown, heads) is False

    async def _comes_from(self, manifest: Manifest, shown: Head, heads: Mapping[str, RemoteHead]) -> bool | None:
        """Whether a snapshot's history has the shown one in it; None if the chain breaks off before that is clear."""
        for _ in range(MOST_WALKED):
            if manifest.seq <= shown.seq or manifest.previous is None:
                return False
            if manifest.previous == shown.hash:
                return True
            before = heads.get(manifest.previous.hex())
            if before is None:
                return None
            data = await self._get(head_key(before), LARGEST_MANIFEST_BYTES, before.hash)
            manifest, _ = Manifest.decode(data)
        return None

    async def _get(self, key: str, most_bytes: int, digest: str | None) -> bytes:
        """A small object.

        Raises:
            IntegrityError: it is larger than it may be, or has another hash.
            VaultError: the peer does not give it.
        """
        sink = io.BytesIO()
        hashing = HashingFile(sink, most_bytes)
        try:
            await self._client.fetch(self._peer, self._vault, key, cast("BinaryIO", hashing))
        except ObjectMissingError:
            raise ObjectMissingError(f"{self._client.name(self._peer)} does not give {key}") from None
        if digest is not None and hashing.hexdigest() != digest:
            raise IntegrityError(f"{self._client.name(self._peer)} sends other bytes than those of {key}")
        return sink.getvalue()


def _remote(head: Head) -> RemoteHead:
    return RemoteHead(head.device.hex(), head.seq, head.hash.hex())
