"""Statements of peers about the newest snapshots they have seen, and what follows for what a source shows.  Pure.

A peer remembers the newest manifests that it ever accepted for a vault, also when they were deleted.  Who restores or
clones asks several peers: where one of them has seen a newer snapshot than the source shows, the source is an old copy;
where it has seen another of the same number, two histories exist.

A statement is believed for the question whose nonce it holds, and says only that the peer claims so.  A claim is proved
by the manifest itself, which a device of the vault has signed; nobody here has the keys to know which devices those
are.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

import msgspec

from vaultfs.errors import IntegrityError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.identity import PEER_ID_BYTES, Identity, peer_id_of_key, short_peer_id, verify_signature
from vaultfs.mesh.messages import HASH_BYTES, LARGEST_STATEMENT_BYTES

VERSION: Final = 1
MOST_HEADS: Final = 32
NONCE_BYTES: Final = 32

_PURPOSE: Final = b"vaultfs mesh 1 witness\0"
_VAULT_ID_BYTES: Final = 16
_LIMIT: Final = 1 << 63

_Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=_LIMIT - 1)]


class Head(NamedTuple):
    """A snapshot that was seen.

    Attributes:
        seq: its number, from 1.
        hash: 32 bytes, the BLAKE3 of its manifest.
        device: 32 bytes, the key that signed the manifest.
    """

    seq: int
    hash: bytes
    device: bytes


_Body = tuple[
    Annotated[int, msgspec.Meta(ge=1, lt=1 << 16)],
    Annotated[bytes, msgspec.Meta(min_length=_VAULT_ID_BYTES, max_length=_VAULT_ID_BYTES)],
    Annotated[bytes, msgspec.Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)],
    Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)],
    Annotated[int, msgspec.Meta(ge=0, le=_LIMIT - 1)],
    Annotated[tuple[tuple[_Number, _Hash, _Hash], ...], msgspec.Meta(max_length=MOST_HEADS)],
]
_DECODER: Final[msgspec.msgpack.Decoder[_Body]] = msgspec.msgpack.Decoder(_Body)


@dataclass(frozen=True)
class WitnessStatement:
    """What a peer claims to have seen of a vault.

    Attributes:
        vault: its id.
        peer: who says so.
        nonce: of the question, 32 bytes.
        time_ns: since 1970, by the peer's clock; for people only.
        heads: at most `MOST_HEADS`, the highest numbers first, equal numbers by hash.
    """

    vault: VaultId
    peer: PeerId
    nonce: bytes
    time_ns: int
    heads: tuple[Head, ...]

    def encode(self) -> bytes:
        """The bytes that are signed, without the purpose.

        Raises:
            ValueError: heads in another order, twice, or too many; or a value out of its bounds.
        """
        if not is_in_order(self.heads) or len(self.heads) > MOST_HEADS:
            raise ValueError(f"a statement has at most {MOST_HEADS} heads, the highest numbers first, each once")
        data = msgspec.msgpack.encode((VERSION, self.vault, self.peer, self.nonce, self.time_ns, self.heads))
        try:
            _DECODER.decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(f"a statement's value is out of its bounds: {error}") from error
        return data

    @classmethod
    def decode(cls, data: bytes) -> WitnessStatement:
        """Read a statement; whether somebody signed it is not looked at.

        Raises:
            IntegrityError: it is none, or not in its one encoding.
        """
        try:
            if len(data) > LARGEST_STATEMENT_BYTES:
                raise ValueError(f"{len(data)} bytes are more than {LARGEST_STATEMENT_BYTES}")
            version, vault, peer, nonce, time_ns, heads = _DECODER.decode(data)
            statement = cls(VaultId(vault), PeerId(peer), nonce, time_ns, tuple(Head(*head) for head in heads))
            if version != VERSION or statement.encode() != data:
                raise ValueError("it has another version, or is not encoded as peers do")
        except (ValueError, RecursionError) as error:  # msgspec's DecodeError is a ValueError
            raise IntegrityError(f"what a peer says it has seen is no statement: {error}") from error
        return statement


def newest_first(head: Head) -> tuple[int, bytes, bytes]:
    """The sort key of heads in a statement."""
    return (-head.seq, head.hash, head.device)


def is_in_order(heads: Sequence[Head]) -> bool:
    """Whether heads are in the order of a statement, each once."""
    ranks = [newest_first(head) for head in heads]
    return all(first < second for first, second in itertools.pairwise(ranks))


def make_statement(
    identity: Identity, vault: VaultId, nonce: bytes, time_ns: int, heads: Iterable[Head]
) -> tuple[bytes, bytes]:
    """What this peer has seen, and its signature.

    Args:
        identity: of this peer.
        vault: its id.
        nonce: of the question, 32 bytes.
        time_ns: since 1970, by this machine's clock; one before 1970 is said as 0.
        heads: in any order; of more than `MOST_HEADS` the newest are said.

    Raises:
        ValueError: a value out of its bounds.
    """
    newest = tuple(sorted(set(heads), key=newest_first)[:MOST_HEADS])
    data = WitnessStatement(vault, identity.peer_id, nonce, max(0, time_ns), newest).encode()
    return data, identity.sign(_PURPOSE + data)


def verify_statement(
    data: bytes, public_key: bytes, signature: bytes, *, vault: VaultId, peer: PeerId, nonce: bytes
) -> WitnessStatement:
    """Read a statement that answers a question, after its signature was verified.

    Args:
        data: the statement.
        public_key: as it came with it, 32 bytes.
        signature: 64 bytes.
        vault: that was asked about.
        peer: that was asked.
        nonce: of the question.

    Raises:
        IntegrityError: the peer did not sign it, or it answers another question.
    """
    who = f"peer {short_peer_id(peer)}"
    if peer_id_of_key(public_key) != peer:
        raise IntegrityError(f"what {who} says it has seen comes with the key of another peer")
    if not verify_signature(public_key, _PURPOSE + data, signature):
        raise IntegrityError(f"what {who} says it has seen is not signed by it")
    statement = WitnessStatement.decode(data)
    if (statement.vault, statement.peer, statement.nonce) != (vault, peer, nonce):
        raise IntegrityError(f"what {who} says it has seen answers another question, or is an old answer")
    return statement


class Finding(enum.Enum):
    """What the statements of peers say of what a source shows; the later, the worse."""

    FINE = "fine"
    """Nobody has seen anything newer, or other."""
    FORK = "fork"
    """Somebody has seen another snapshot of the newest number that the source shows, which the source does not have."""
    ROLLBACK = "rollback"
    """Somebody has seen a newer snapshot than the source shows."""


@dataclass(frozen=True)
class Claim:
    """A head that the source does not show.

    Attributes:
        head: what was seen; who has the vault's key can ask for its manifest, which proves it.
        peers: who says so, in order of their ids.
    """

    head: Head
    peers: tuple[PeerId, ...]


@dataclass(frozen=True)
class Judgement:
    """What statements say of a source.

    Attributes:
        finding: the worst of the claims.
        newer: claims of snapshots with higher numbers than the source shows, the highest first.
        forks: claims of others with the number of the newest that the source shows.
        agreeing: how many of the peers have seen nothing that the source does not show.
    """

    finding: Finding
    newer: tuple[Claim, ...]
    forks: tuple[Claim, ...]
    agreeing: int


def judge(statements: Iterable[WitnessStatement], shown: Iterable[Head]) -> Judgement:
    """Compare what peers have seen with what a source shows.

    A head of a lower number than the newest shown one, which the source does not have, says nothing: snapshots are
    pruned.  A head of the same number and another hash is a fork, whichever device signed it.

    Args:
        statements: verified; the last one counts where a peer made several.
        shown: the heads that the source shows, in any order; none if it shows no snapshot.
    """
    shown_heads = set(shown)
    newest = max((head.seq for head in shown_heads), default=0)
    known = {(head.seq, head.hash) for head in shown_heads}
    by_peer = {statement.peer: statement for statement in statements}
    claimed: dict[Head, list[PeerId]] = {}
    agreeing = 0
    for peer, statement in sorted(by_peer.items()):
        missing = [head for head in statement.heads if head.seq >= newest and (head.seq, head.hash) not in known]
        agreeing += not missing
        for head in missing:
            claimed.setdefault(head, []).append(peer)
    claims = [Claim(head, tuple(claimed[head])) for head in sorted(claimed, key=newest_first)]
    newer = tuple(claim for claim in claims if claim.head.seq > newest)
    forks = tuple(claim for claim in claims if claim.head.seq == newest)
    finding = Finding.ROLLBACK if newer else Finding.FORK if forks else Finding.FINE
    return Judgement(finding, newer, forks, agreeing)
