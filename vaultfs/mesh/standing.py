"""What this machine remembers of a vault's peers between two commands: hints, and nothing that must be right.

When each was there last, how much it offers, what it held then, and which segments have too few copies.  Losing it
costs a question to each peer.  It lies in the user's state directory: ``<vault id>.json``, and for each peer
``<vault id>.<group>.held``, the 32-byte hashes and 8-byte sizes of the segments that it said it has, and
``<vault id>.<group>.shares``, likewise the shares.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec

from vaultfs.errors import UsageError, VaultError
from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.identity import format_peer_id, parse_peer_id
from vaultfs.mesh.share_keys import PACKED_BYTES, ShareKey, pack_shares, unpack_shares
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.kept_file import FORMAT_VERSION, KeptFile

log = logging.getLogger(__name__)

_LARGEST_FILE_BYTES: Final = 64 << 20
_MOST_SHORT: Final = 1 << 18
_HELD: Final = struct.Struct("<32sQ")
_MOST_HELD_BYTES: Final = _HELD.size << 20
_MOST_SHARES_BYTES: Final = PACKED_BYTES << 20
_NONE: Final[Mapping[SegmentName, Iterable[ShareKey]]] = {}
_LIMIT: Final = (1 << 63) - 1

_Number = Annotated[int, msgspec.Meta(ge=0, le=_LIMIT)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _StoredPeer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    seen_ns: _Number
    capacity_bytes: _Number
    newest_seq: _Number
    failed_audit_ns: _Number
    failed_audit_samples: _Number = 0
    audited_ns: _Number = 0


class _StoredFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    peers: Annotated[dict[str, _StoredPeer], msgspec.Meta(max_length=1000)]
    short: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=_MOST_SHORT)]


@dataclass(frozen=True)
class PeerStanding:
    """What is remembered of one peer.

    Attributes:
        seen_ns: when it answered last, since the epoch; 0: never.
        capacity_bytes: what it offered then; 0: unknown.
        newest_seq: the highest snapshot that it has ever witnessed.
        failed_audit_ns: when it failed to prove what it claims; 0: never, or it has been proved since.
        failed_audit_samples: how many ranges it was asked for then; fewer do not clear it.
        audited_ns: when an audit found out something about it last.
    """

    seen_ns: int = 0
    capacity_bytes: int = 0
    newest_seq: int = 0
    failed_audit_ns: int = 0
    failed_audit_samples: int = 0
    audited_ns: int = 0

    def with_later(self, other: PeerStanding) -> PeerStanding:
        """The same, with what somebody else has learned meanwhile of audits and witnesses."""
        merged = replace(self, newest_seq=max(self.newest_seq, other.newest_seq))
        if other.audited_ns <= self.audited_ns:
            return merged
        return replace(
            merged,
            audited_ns=other.audited_ns,
            failed_audit_ns=other.failed_audit_ns,
            failed_audit_samples=other.failed_audit_samples,
        )


@dataclass
class Standing:
    """What is remembered of a vault's peers.

    Attributes:
        peers: by id.
        short: segments that had fewer copies than they should, when they were looked at last.
    """

    peers: dict[PeerId, PeerStanding] = field(default_factory=dict)
    short: set[SegmentName] = field(default_factory=set)

    def of(self, peer: PeerId) -> PeerStanding:
        """What is remembered of a peer."""
        return self.peers.get(peer, PeerStanding())

    def note(self, peer: PeerId, **changes: int) -> None:
        """Remember something of a peer: fields of `PeerStanding`."""
        self.peers[peer] = replace(self.of(peer), **changes)


class StandingFile:
    """Where it is kept.

    Args:
        path: of the file, `vaultfs.mesh.places.vault_state_path`.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._file: Final = KeptFile(
            path, _StoredFile, _LARGEST_FILE_BYTES, title="what is remembered of peers", advice="It can be deleted"
        )

    def load(self) -> Standing:
        """What is remembered; nothing, with a line in the log, if the file is damaged or cannot be read."""
        try:
            stored = self._file.load()
        except VaultError as error:
            log.warning("%s", error)
            return Standing()
        if stored is None:
            return Standing()
        peers = {printed: PeerStanding(**msgspec.structs.asdict(each)) for printed, each in stored.peers.items()}
        known = {}
        for printed, standing in peers.items():
            peer = _peer_of(printed)
            if peer is not None:
                known[peer] = standing
        return Standing(known, {SegmentName(name) for name in stored.short})

    def save(self, standing: Standing, since: Standing | None = None) -> None:
        """Remember it; what others have learned of audits and witnesses, since it was loaded, stays.

        Args:
            standing: what is to be remembered.
            since: as it was loaded: of what has too few copies, only what was found out since then is changed; None:
                everything was looked at.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: it is not remembered.
        """
        with self._file.locked():
            now = self.load()
            short = standing.short
            if since is not None:
                short = (now.short - (since.short - short)) | (short - since.short)
            peers = {
                peer.hex(): _StoredPeer(**asdict(each.with_later(now.of(peer))))
                for peer, each in (now.peers | standing.peers).items()
            }
            self._file.save(_StoredFile(FORMAT_VERSION, peers, tuple(sorted(short)[:_MOST_SHORT])))

    def load_held(self, peer: PeerId) -> dict[SegmentName, int]:
        """The segments that a peer said it has, and their sizes; none if that is not known."""
        try:
            with self._held_path(peer).open("rb") as file:
                data = file.read(_MOST_HELD_BYTES)
        except OSError:
            return {}
        data = data[: len(data) - len(data) % _HELD.size]
        return {SegmentName(name.hex()): size for name, size in _HELD.iter_unpack(data)}

    def load_shares(self, peer: PeerId) -> dict[SegmentName, list[ShareKey]] | None:
        """The shares that a peer said it has, by segment; None if that is not known."""
        try:
            with self._shares_path(peer).open("rb") as file:
                data = file.read(_MOST_SHARES_BYTES)
        except OSError:
            return None
        found: dict[SegmentName, list[ShareKey]] = {}
        for share in unpack_shares(data):
            found.setdefault(share.coded.name, []).append(share)
        return found

    def save_held(
        self, peer: PeerId, held: Mapping[SegmentName, int], shares: Mapping[SegmentName, Iterable[ShareKey]] = _NONE
    ) -> None:
        """Remember what a peer said it has.

        Args:
            peer: its id.
            held: segments, and their sizes in bytes.
            shares: shares, by segment.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: it is not remembered.
        """
        path = self._held_path(peer)
        with storage_errors(f"cannot create {path.parent}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = b"".join(_HELD.pack(bytes.fromhex(name), size) for name, size in held.items())
        atomic_replace(path, data[:_MOST_HELD_BYTES])
        packed = pack_shares(share for name in shares for share in shares[name])
        atomic_replace(self._shares_path(peer), packed[:_MOST_SHARES_BYTES])

    def holders(self) -> list[PeerId]:
        """The peers of which `load_held` knows something, those that are in no book any more included."""
        found = []
        for path in sorted(self._path.parent.glob(f"{self._path.stem}.*.held")):
            printed = path.name.removeprefix(f"{self._path.stem}.").removesuffix(".held")
            with contextlib.suppress(UsageError):  # a file that nobody here has written
                found.append(parse_peer_id(printed))
        return found

    def forget_held(self, peer: PeerId) -> None:
        """Forget what a peer said it has.

        Raises:
            ReadOnlyError, StorageError: it cannot be forgotten.
        """
        path = self._held_path(peer)
        with storage_errors(f"cannot remove {path}"):
            path.unlink(missing_ok=True)
            self._shares_path(peer).unlink(missing_ok=True)

    def removed(self, peer: PeerId, others: Iterable[PeerId], replicas: int) -> int:
        """A peer holds the vault no more: remember what has too few copies without it.

        Args:
            peer: its id.
            others: those that are left.
            replicas: how many copies there are to be.

        Returns:
            How many segments.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: it is not remembered.
        """
        left = [self.load_held(other) for other in others]
        short = {
            name
            for name, size in self.load_held(peer).items()
            if sum(held.get(name) == size for held in left) < replicas
        }
        standing = self.load()
        since = Standing(short=set(standing.short))
        standing.short |= short
        self.save(standing, since)
        self.forget_held(peer)
        return len(short)

    def _held_path(self, peer: PeerId) -> Path:
        return self._path.with_suffix(f".{format_peer_id(peer)}.held")

    def _shares_path(self, peer: PeerId) -> Path:
        return self._path.with_suffix(f".{format_peer_id(peer)}.shares")


def _peer_of(text: str) -> PeerId | None:
    try:
        peer = bytes.fromhex(text)
    except ValueError:
        return None
    return PeerId(peer) if len(peer) == 32 else None
