"""The address book: which peers hold a vault, where they listen, and how many copies there are to be; ``peers.json``.

    {"format": 1, "vaults": [{"vault_id": …, "replicas": 2, "coding": null,
        "peers": [{"id": …, "host": …, "port": 7741, "zone": "", "added_ns": …}]}]}

``"is_told": true`` stands with a vault of which somebody has said that it be kept as it is kept anyway.

It is this user's, and not in the vault, as whoever can write there could name peers of his own.  A peer in it is
trusted as far as a peer ever is: it may be asked, and given ciphertext.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec

from vaultfs.errors import UsageError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import LONGEST_HOST, Address, is_host
from vaultfs.mesh.identity import format_peer_id, parse_peer_id
from vaultfs.mesh.peer_words import meant_peer
from vaultfs.mesh.share_format import Coding
from vaultfs.storage.kept_file import FORMAT_VERSION, KeptFile

DEFAULT_REPLICAS: Final = 2
MOST_REPLICAS: Final = 32
MOST_VAULTS: Final = 1000
MOST_PEERS: Final = 200
"""Of a vault."""
LONGEST_ZONE: Final = 64

_LARGEST_FILE_BYTES: Final = 16 << 20
_LIMIT: Final = (1 << 63) - 1

_Zone = Annotated[str, msgspec.Meta(pattern=r"^(?:[a-z0-9][a-z0-9._-]{0,63})?\Z")]


class _StoredPeer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=62, max_length=62)]
    host: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_HOST)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    zone: _Zone
    added_ns: Annotated[int, msgspec.Meta(ge=0, le=_LIMIT)]


class _StoredVault(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    vault_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    replicas: Annotated[int, msgspec.Meta(ge=1, le=MOST_REPLICAS)]
    coding: Annotated[str, msgspec.Meta(max_length=5)] | None
    peers: Annotated[tuple[_StoredPeer, ...], msgspec.Meta(max_length=MOST_PEERS)]
    is_told: bool = False


class _StoredFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    vaults: Annotated[tuple[_StoredVault, ...], msgspec.Meta(max_length=MOST_VAULTS)]


@dataclass(frozen=True)
class KnownPeer:
    """A peer that holds a vault, or is to.

    Attributes:
        id: 32 bytes.
        address: where it listens.
        zone: what is lost with one another, as a house or an office; empty: a zone of its own.
        added_ns: when it was added first, since the epoch.
    """

    id: PeerId
    address: Address
    zone: str = ""
    added_ns: int = 0


@dataclass(frozen=True)
class VaultPeers:
    """The page of a vault.

    Attributes:
        vault_id: 16 bytes.
        replicas: how many peers are to hold each segment.
        coding: shares instead of whole copies, or None.
        peers: in the order in which they were added; each id once.
        is_told: somebody has said on this machine how many copies or shares there are to be.
    """

    vault_id: VaultId
    replicas: int = DEFAULT_REPLICAS
    coding: Coding | None = None
    peers: tuple[KnownPeer, ...] = ()
    is_told: bool = False

    def peer(self, word: str) -> KnownPeer:
        """The peer that a person means.

        Args:
            word: an id, or the beginning of one: at least a group of eight characters, and of no other peer's.

        Raises:
            UsageError: it means none of these, or several.
        """
        known = {peer.id: peer for peer in self.peers}
        return known[meant_peer(word, known, f"the list of peers of the vault {self.vault_id.hex()}")]


def require_zone(zone: str) -> None:
    """See that a zone can have this name.

    Raises:
        UsageError: it cannot.
    """
    try:
        msgspec.convert(zone, _Zone)
    except msgspec.ValidationError:
        raise UsageError(
            f"--zone: {zone!r} cannot be a zone: it has at most {LONGEST_ZONE} lower-case letters, digits, '.', '_' "
            "and '-', and begins with a letter or digit"
        ) from None


class Book:
    """The file.  Methods block; threads and processes may share it.

    Args:
        path: of ``peers.json``.
        clock_ns: nanoseconds since the epoch.
    """

    def __init__(self, path: Path, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._file: Final = KeptFile(
            path,
            _StoredFile,
            _LARGEST_FILE_BYTES,
            title="the list of peers",
            advice="Vaults do not need it: move it away, and add the peers again",
        )
        self._clock_ns: Final = clock_ns

    def load(self) -> list[VaultPeers]:
        """All pages, in the order of their making.

        Raises:
            FormatTooNewError, IntegrityError, StorageError: it cannot be read.
        """
        content = self._file.load()
        if content is None:
            return []
        pages = [self._page(stored) for stored in content.vaults]
        if len({page.vault_id for page in pages}) < len(pages):
            raise self._file.damaged("a vault is in it twice")
        return pages

    def peers_of(self, vault_id: VaultId) -> VaultPeers:
        """The page of a vault; an empty one if there is none.

        Raises:
            FormatTooNewError, IntegrityError, StorageError: it cannot be read.
        """
        return _page_of(self.load(), vault_id)

    def add(self, vault_id: VaultId, peer: PeerId, address: Address, zone: str | None = None) -> KnownPeer:
        """Add a peer to a vault, or give one that is there another address and zone.

        Args:
            vault_id: 16 bytes.
            peer: its id.
            address: where it listens.
            zone: see `KnownPeer`; None: as before.

        Raises:
            UsageError: there are too many, or the zone cannot be one.
            VaultError: as `load`; or the file cannot be written.
        """
        require_zone(zone or "")
        with self._file.locked():
            pages = self.load()
            page = _page_of(pages, vault_id)
            before = next((each for each in page.peers if each.id == peer), None)
            if before is not None:
                added = replace(before, address=address, zone=before.zone if zone is None else zone)
                peers = tuple(added if each.id == peer else each for each in page.peers)
            else:
                if len(page.peers) >= MOST_PEERS:
                    raise UsageError(f"the vault has {MOST_PEERS} peers, the most there may be; remove one first")
                added = KnownPeer(peer, address, zone or "", self._clock_ns())
                peers = (*page.peers, added)
            self._save_with(pages, replace(page, peers=peers))
        return added

    def remove(self, vault_id: VaultId, peer: PeerId) -> None:
        """Remove a peer of a vault; nothing happens if it is not there.

        Raises:
            VaultError: as `load`; or the file cannot be written.
        """
        with self._file.locked():
            pages = self.load()
            page = _page_of(pages, vault_id)
            self._save_with(pages, replace(page, peers=tuple(each for each in page.peers if each.id != peer)))

    def set_replicas(self, vault_id: VaultId, replicas: int, coding: Coding | None = None) -> None:
        """Say how many copies of a vault's segments there are to be.

        Args:
            vault_id: 16 bytes.
            replicas: 1 to `MOST_REPLICAS`.
            coding: shares instead of whole copies; None: whole copies.

        Raises:
            UsageError: so many there cannot be.
            VaultError: as `load`; or the file cannot be written.
        """
        if not 1 <= replicas <= MOST_REPLICAS:
            raise UsageError(f"--replicas: {replicas} is not from 1 to {MOST_REPLICAS}")
        with self._file.locked():
            pages = self.load()
            page = replace(_page_of(pages, vault_id), replicas=replicas, coding=coding, is_told=True)
            self._save_with(pages, page)

    def _page(self, stored: _StoredVault) -> VaultPeers:
        peers = []
        for each in stored.peers:
            try:
                peer = parse_peer_id(each.id)
            except UsageError as error:
                raise self._file.damaged(str(error)) from error
            if format_peer_id(peer) != each.id or not is_host(each.host):
                raise self._file.damaged(f"no vaultfs ever wrote the peer {each.id} at {each.host}")
            peers.append(KnownPeer(peer, Address(each.host, each.port), each.zone, each.added_ns))
        if len({peer.id for peer in peers}) < len(peers):
            raise self._file.damaged("a vault has a peer twice")
        try:
            coding = None if stored.coding is None else Coding.parse(stored.coding)
        except UsageError as error:
            raise self._file.damaged(str(error)) from error
        is_told = stored.is_told or not _is_default(stored.replicas, coding)
        vault_id = VaultId(bytes.fromhex(stored.vault_id))
        return VaultPeers(vault_id, stored.replicas, coding, tuple(peers), is_told)

    def _save_with(self, pages: Sequence[VaultPeers], page: VaultPeers) -> None:
        """Replace the page, or add it; one that says nothing is left out."""
        is_there = any(each.vault_id == page.vault_id for each in pages)
        kept = [page if each.vault_id == page.vault_id else each for each in pages] if is_there else [*pages, page]
        kept = [each for each in kept if each != VaultPeers(each.vault_id)]
        if len(kept) > MOST_VAULTS:
            raise UsageError(f"there are peers of {MOST_VAULTS} vaults, the most there may be; remove some first")
        self._file.save(_StoredFile(FORMAT_VERSION, tuple(map(_stored, kept))))


def _page_of(pages: Sequence[VaultPeers], vault_id: VaultId) -> VaultPeers:
    return next((page for page in pages if page.vault_id == vault_id), VaultPeers(vault_id))


def _is_default(replicas: int, coding: Coding | None) -> bool:
    return replicas == DEFAULT_REPLICAS and coding is None


def _stored(page: VaultPeers) -> _StoredVault:
    return _StoredVault(
        page.vault_id.hex(),
        page.replicas,
        None if page.coding is None else str(page.coding),
        tuple(
            _StoredPeer(format_peer_id(peer.id), peer.address.host, peer.address.port, peer.zone, peer.added_ns)
            for peer in page.peers
        ),
        page.is_told and _is_default(page.replicas, page.coding),
    )
