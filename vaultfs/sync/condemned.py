"""The notes on a remote by which prunes and syncs of several machines keep out of each other's way.

A **record** (``heads/condemned/<hash of its content>``) says what a prune has given up: snapshots, and segments that
nothing needed when it was written.  Nothing is deleted before it is older than the grace period, and then only what
still nothing needs.  **Marks** stand before the first deletion: one of the record (``heads/swept/<hash>``) until it is
done, and one with a new token (``heads/swept/<token>``) until the next deletion, for machines that have not looked for
long: what they remember may be gone.  A **claim** (``heads/sweeping/<token>``) stands while a prune deletes, because
only one may: another that had decided before what to delete would go on after the end of the first, when syncs believe
that all is over.  A **spare** (``heads/spared/<token>``) names segments of a record that a sync relies on.

Who relies puts the spare, then looks for a mark; who deletes puts the mark, then looks for spares and snapshots.  So at
least one sees the other, whatever their clocks say, on every store that lists what was stored just before.

Nobody signs them: who can write them can delete everything anyway.  They are decoded strictly, and bounded.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import blake3
import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError, RemoteError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import BytesSource, Store
from vaultfs.sync.remote_layout import (
    CONDEMNED_PREFIX,
    SPARED_PREFIX,
    SWEEPING_PREFIX,
    SWEPT_PREFIX,
    RemoteHead,
    head_key,
    parse_head,
)
from vaultfs.sync.remote_objects import MOST_OBJECTS, Tick, read_whole

FORMAT_VERSION: Final = 1
LARGEST_NOTE_BYTES: Final = 32 << 20
LARGEST_CLAIM_BYTES: Final = 4096
MOST_SEGMENTS: Final = 200_000
"""Of one record: 12 TiB, in some 16 MB of text.  A prune that gives up more writes several."""
MOST_HEADS: Final = 10_000

_T = TypeVar("_T")
_Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Number = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
_Moment = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class _StoredRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    vault_id: _Id
    created_ns: _Moment
    heads: Annotated[list[tuple[_Hash, _Number, _Hash]], msgspec.Meta(max_length=MOST_HEADS)]
    segments: Annotated[dict[_Hash, _Number], msgspec.Meta(max_length=MOST_SEGMENTS)]


class _StoredSpare(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    vault_id: _Id
    created_ns: _Moment
    segments: Annotated[list[_Hash], msgspec.Meta(max_length=MOST_SEGMENTS)]


class _StoredClaim(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    vault_id: _Id
    created_ns: _Moment


class _AnyNote(msgspec.Struct, frozen=True):
    format: int


@dataclass(frozen=True)
class Record:
    """What a prune has given up.

    Attributes:
        vault_id: whose remote it is.
        created_ns: when, in nanoseconds since 1970, by the clock of the machine that pruned.
        heads: snapshots that are to go.
        segments: names and sizes of what is to go with them, or was needed by no snapshot already.
    """

    vault_id: VaultId
    created_ns: int
    heads: tuple[RemoteHead, ...]
    segments: Mapping[SegmentName, int]

    def encode(self) -> bytes:
        """The object's content."""
        heads = sorted((head.device, head.seq, head.hash) for head in self.heads)
        segments = {str(name): self.segments[name] for name in sorted(self.segments)}
        return msgspec.json.encode(_StoredRecord(FORMAT_VERSION, self.vault_id.hex(), self.created_ns, heads, segments))

    @property
    def digest(self) -> str:
        """The hash of its content, which names it."""
        return blake3.blake3(self.encode()).hexdigest()

    def parts(self) -> list[Record]:
        """The same in as many records as the bounds ask for; no snapshot and no segment is in two."""
        names = sorted(self.segments)
        count = max(1, -(-len(names) // MOST_SEGMENTS), -(-len(self.heads) // MOST_HEADS))
        return [
            Record(
                self.vault_id,
                self.created_ns,
                self.heads[number * MOST_HEADS : (number + 1) * MOST_HEADS],
                {name: self.segments[name] for name in names[number * MOST_SEGMENTS : (number + 1) * MOST_SEGMENTS]},
            )
            for number in range(count)
        ]


def put_record(store: Store, record: Record) -> str:
    """Store a record; return the hash that names it.

    Raises:
        RemoteError: as `Store.put`.
    """
    digest = record.digest
    store.put(CONDEMNED_PREFIX + digest, BytesSource(record.encode()))
    return digest


def read_record(store: Store, digest: str, vault_id: VaultId, tick: Tick) -> Record:
    """A record, checked.

    Args:
        store: the remote.
        digest: names it.
        vault_id: whose it must be.
        tick: called for each piece.

    Raises:
        IntegrityError: its content is not that of its name, makes no sense, or is of another vault.
        FormatTooNewError: a newer vaultfs wrote it.
        ObjectMissingError, RemoteError: as `Store.get`.
    """
    data = read_whole(store, CONDEMNED_PREFIX + digest, LARGEST_NOTE_BYTES, tick)
    return decode_record(data, digest, vault_id, store.name)


def decode_record(data: bytes, digest: str, vault_id: VaultId, where: str) -> Record:
    """A record from its bytes, checked.

    Args:
        data: the object's content.
        digest: names it.
        vault_id: whose it must be.
        where: it came from, for messages.

    Raises:
        IntegrityError: it is not that of its name, makes no sense, or is of another vault.
        FormatTooNewError: a newer vaultfs wrote it.
    """
    what = f"{CONDEMNED_PREFIX}{digest} on {where}"
    if blake3.blake3(data).hexdigest() != digest:
        raise IntegrityError(f"{what} is damaged; 'vaultfs prune' removes it")
    stored = _decode(data, _StoredRecord, what)
    heads = tuple(RemoteHead(device, seq, name) for device, seq, name in stored.heads)
    if stored.vault_id != vault_id.hex() or any(parse_head(head_key(head)) != head for head in heads):
        raise IntegrityError(f"{what} is of another vault")
    segments = {SegmentName(name): size for name, size in stored.segments.items()}
    return Record(vault_id, stored.created_ns, heads, segments)


def require_bounded(records: Iterable[Record], name: str) -> None:
    """See that what records name together fits into a remote, and so into memory.

    Args:
        records: of one remote.
        name: of the remote.

    Raises:
        RemoteError: it does not.
    """
    if sum(len(each.segments) + len(each.heads) for each in records) > MOST_OBJECTS:
        raise RemoteError(
            f"{name}: {CONDEMNED_PREFIX} names more than {MOST_OBJECTS} objects, and no remote has as many"
        )


def put_mark(store: Store, name: str) -> None:
    """Say that what a record names is being deleted, or that something is.

    Args:
        store: the remote.
        name: the record's hash, or a token.

    Raises:
        RemoteError: as `Store.put`.
    """
    store.put(SWEPT_PREFIX + name, BytesSource(b"{}"))


def put_claim(store: Store, token: str, vault_id: VaultId, created_ns: int) -> None:
    """Say that a prune is about to delete.

    Args:
        store: the remote.
        token: new.
        vault_id: of the vault.
        created_ns: now.

    Raises:
        RemoteError: as `Store.put`.
    """
    data = msgspec.json.encode(_StoredClaim(FORMAT_VERSION, vault_id.hex(), created_ns))
    store.put(SWEEPING_PREFIX + token, BytesSource(data))


def read_claim(store: Store, token: str, tick: Tick) -> int:
    """When a prune began to delete, by its machine's clock.

    Raises:
        IntegrityError: it makes no sense.
        FormatTooNewError: a newer vaultfs wrote it.
        ObjectMissingError, RemoteError: as `Store.get`.
    """
    key = SWEEPING_PREFIX + token
    return _decode(read_whole(store, key, LARGEST_CLAIM_BYTES, tick), _StoredClaim, f"{key} on {store.name}").created_ns


def put_spare(store: Store, vault_id: VaultId, created_ns: int, segments: Iterable[SegmentName]) -> list[str]:
    """Say that these segments are relied on; return the tokens of the notes, for `remove_spares`.

    Args:
        store: the remote.
        vault_id: of the vault.
        created_ns: now.
        segments: their names.

    Raises:
        RemoteError: as `Store.put`.
    """
    names = sorted(segments)
    tokens = []
    for start in range(0, len(names), MOST_SEGMENTS):
        token = secrets.token_hex(32)
        part = [str(name) for name in names[start : start + MOST_SEGMENTS]]
        data = msgspec.json.encode(_StoredSpare(FORMAT_VERSION, vault_id.hex(), created_ns, part))
        store.put(SPARED_PREFIX + token, BytesSource(data))
        tokens.append(token)
    return tokens


def remove_spares(store: Store, tokens: Iterable[str]) -> None:
    """Take spares back, once snapshots protect what they named.

    Raises:
        RemoteError: as `Store.delete`.
    """
    for token in tokens:
        store.delete(SPARED_PREFIX + token)


@dataclass(frozen=True)
class Spare:
    """Segments that a sync relies on; ``created_ns`` by its machine's clock."""

    created_ns: int
    segments: frozenset[SegmentName]


def read_spare(store: Store, token: str, tick: Tick) -> Spare:
    """A spare.

    Raises:
        IntegrityError: it makes no sense, so nobody knows what it protects.
        FormatTooNewError: a newer vaultfs wrote it.
        ObjectMissingError, RemoteError: as `Store.get`.
    """
    key = SPARED_PREFIX + token
    stored = _decode(read_whole(store, key, LARGEST_NOTE_BYTES, tick), _StoredSpare, f"{key} on {store.name}")
    return Spare(stored.created_ns, frozenset(map(SegmentName, stored.segments)))


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        version = msgspec.json.decode(data, type=_AnyNote).format
        if version > FORMAT_VERSION:
            raise FormatTooNewError(f"{what} was written by a newer version of vaultfs; update vaultfs")
        stored = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"{what} makes no sense: {type(error).__name__}") from error
    if version != FORMAT_VERSION:
        raise IntegrityError(f"{what} has the format {version}, which no vaultfs ever wrote")
    return stored
