"""``mesh://VAULT-ID``: the peers of a vault as one remote, for sync, restore, clone, verify and healing.

It holds one vault, and its id is the URL.  Which peers there are stands in this user's address book
(`vaultfs.mesh.book`).  What is stored is spread by `vaultfs.mesh.writing` and read by `vaultfs.mesh.reading`.

Where it differs from other stores, within the contract of `vaultfs.remotes.store`:

- an object counts as stored when one peer has it durably, and as there if any peer that answers has it;
- a listing is what all peers that answer list together;
- segments and manifests are deleted only with a signer, which takes the vault's key (docs/mesh-protocol.md, section 8).
  Who has one is a prune, and takes all peers: what it lists, or finds missing, is what all say, and its notes are on
  all.  So it and a sync see each other, however few peers the sync can reach.  A peer that then fails to carry out an
  order keeps what it has, and the record that names it.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import trio

from vaultfs.errors import (
    NobodyAnswersError,
    RemoteRefusedError,
    RemoteUnreachableError,
    UsageError,
    VaultError,
)
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.arrivals import Arrivals
from vaultfs.mesh.asking import Answers, ask_all, worst_of
from vaultfs.mesh.book import Book, VaultPeers
from vaultfs.mesh.claims import Held, Shares
from vaultfs.mesh.client import Contact, MeshClient, Signer
from vaultfs.mesh.coded import CodedSegments
from vaultfs.mesh.deleting import Deletions
from vaultfs.mesh.dialing import peer_name
from vaultfs.mesh.header_choice import HeaderChoice
from vaultfs.mesh.headers import OfferedHeader
from vaultfs.mesh.identity import Identity, require_identity
from vaultfs.mesh.losses import find_losses
from vaultfs.mesh.places import book_path, identity_path, vault_state_path
from vaultfs.mesh.reading import Reader
from vaultfs.mesh.share_keys import SHARES_PREFIX, whole_segments
from vaultfs.mesh.standing import StandingFile
from vaultfs.mesh.survey import placement_of
from vaultfs.mesh.thread import MeshThread
from vaultfs.mesh.writing import Writer
from vaultfs.remotes.bodies import require_range, wanted_bytes
from vaultfs.remotes.keys import require_key, require_prefix
from vaultfs.remotes.locations import Location, require_options
from vaultfs.remotes.store import ObjectInfo, Source
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES
from vaultfs.sync.remote_layout import (
    BRANCHES_PREFIX,
    CONDEMNED_PREFIX,
    HEADER_KEY,
    LARGEST_SEGMENT_BYTES,
    SEGMENTS_PREFIX,
    SPARED_PREFIX,
    SWEEPING_PREFIX,
    SWEPT_PREFIX,
    parse_head,
    parse_segment,
    segment_key,
)

log = logging.getLogger(__name__)

SCHEME: Final = "mesh"
NOTE_PREFIXES: Final = (CONDEMNED_PREFIX, SWEPT_PREFIX, SWEEPING_PREFIX, SPARED_PREFIX, BRANCHES_PREFIX, "probe/")
_PIECE_BYTES: Final = 1 << 20

_T = TypeVar("_T")


def mesh_url(vault_id: VaultId) -> str:
    """The URL of a vault's peers."""
    return f"{SCHEME}://{vault_id.hex()}"


def vault_of_url(location: Location) -> VaultId:
    """The vault that a URL names.

    Raises:
        UsageError: it names none.
    """
    try:
        vault = bytes.fromhex(location.authority)
    except ValueError:
        vault = b""
    if len(vault) != 16 or location.path:
        raise UsageError(
            f"{location.url} names no vault: write mesh:// and the 32 digits of its id, which 'vaultfs status' shows"
        )
    return VaultId(vault)


class MeshStore:
    """The peers of a vault as a `vaultfs.remotes.store.Store`.

    Args:
        page: the vault's peers.
        identity: gives that of this machine; called when the first peer is called.
        standing: where it is remembered how the peers were.
        scratch: a directory for files without a name; None: the system's.
        sign: signs orders to delete; None: nothing but notes can be deleted.  With it, all peers have to answer.
    """

    def __init__(
        self,
        page: VaultPeers,
        identity: Callable[[], Identity],
        standing: StandingFile,
        *,
        scratch: Path | None = None,
        sign: Signer | None = None,
    ) -> None:
        self.name = mesh_url(page.vault_id)
        self.page: Final = page
        self._vault: Final = page.vault_id
        self._file: Final = standing
        self._standing: Final = standing.load()
        self._before: Final = standing.load()
        self._arrivals: Final = Arrivals()
        contacts = [Contact(peer.id, peer.address) for peer in page.peers]
        self._thread: Final = MeshThread(identity, contacts, arrivals=self._arrivals, vault=page.vault_id)
        self._reader: Final = Reader(page.vault_id, scratch)
        self._peers: Final = tuple(peer.id for peer in page.peers)
        self._coded: Final = CodedSegments(page.vault_id, self._peers, scratch)
        self._writer: Final = Writer(page, self._standing, self._coded, self._remembered)
        self._is_coded = page.coding is not None
        self._sign = sign
        self._former: Final[set[PeerId]] = set()
        self._headers: Final = HeaderChoice(page.vault_id, self._peers, self._reader, self._standing)
        self._deletions: Final = Deletions(page.vault_id, self._peers)

    @classmethod
    def of_url(cls, location: Location, options: Mapping[str, str], sign: Signer | None = None) -> MeshStore:
        """The peers of the vault that a URL names, as the address book has them.

        Raises:
            UsageError: the URL names no vault, or the vault has no peers.
            VaultError: the address book cannot be read.
        """
        require_options(location, options, frozenset())
        vault = vault_of_url(location)
        page = Book(book_path()).peers_of(vault)
        if not page.peers:
            raise UsageError(
                f"this machine knows no peer of the vault {vault.hex()}; add one with "
                f"'vaultfs peer add {vault.hex()} ID@HOST'"
            )
        return cls(page, partial(require_identity, identity_path()), StandingFile(vault_state_path(vault)), sign=sign)

    # --- the contract

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`: a segment on as many peers as there are to be copies, all else on all."""
        require_key(key)
        if key == HEADER_KEY:
            self._headers.believed = None
        name = parse_segment(key)
        if name is None:
            takes_all = self._sign is not None
            self._call(
                lambda client: self._writer.everywhere(client, key, source, if_absent=if_absent, takes_all=takes_all)
            )
        else:
            self._call(lambda client: self._writer.segment(client, name, source, self._reader.distrusted))

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`; a whole one with a hash in its name is checked before a byte is given out."""
        require_key(key)
        require_range(offset, length)
        if length == 0:
            return
        with self._arrivals.reading(key), closing(self._open(key, offset, length)) as file:
            while piece := file.read(_PIECE_BYTES):
                self._arrivals.handed(key, len(piece))
                yield piece

    def _open(self, key: str, offset: int, length: int | None) -> BinaryIO:
        if key == HEADER_KEY:
            data = self._headers.believed or self._call(self._headers.newest)
            wanted = wanted_bytes(f"{key} in {self.name}", len(data), offset, length)
            return io.BytesIO(data[offset : offset + wanted])
        name = parse_segment(key)
        if name is not None:
            return self._call(lambda client: self._segment(client, name, offset, length))
        return self._call(lambda client: self._copy(client, key, offset, length))

    async def _segment(self, client: MeshClient, name: SegmentName, offset: int, length: int | None) -> BinaryIO:
        """A segment, from a whole copy or from shares; first as the vault has them now."""

        async def from_copy() -> BinaryIO:
            return await self._copy(client, segment_key(name), offset, length)

        async def from_shares() -> BinaryIO:
            if offset or length is not None:
                return await self._coded.part(client, name, offset, length)
            return await self._coded.whole(client, name)

        ways = {False: from_copy, True: from_shares}
        failures: list[VaultError] = []
        for is_coded in (self._is_coded, not self._is_coded):
            try:
                found = await ways[is_coded]()
            except VaultError as error:
                failures.append(error)
            else:
                self._is_coded = is_coded  # the next one is so too, on a machine where nobody has said
                return found
        raise worst_of(failures, segment_key(name))

    async def _copy(self, client: MeshClient, key: str, offset: int, length: int | None) -> BinaryIO:
        if offset or length is not None:
            return await self._reader.part(client, self._order(key), key, offset, length)
        digest, most_bytes = bound_of(key)
        return await self._reader.whole(client, self._order(key), key, digest, most_bytes)

    def size_bytes(self, key: str) -> int | None:
        """The length of an object, as `Store.size_bytes`."""
        require_key(key)
        name = parse_segment(key)
        return self._call(lambda client: self._size(client, key, name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, as `Store.list`: what the peers that answer list together."""
        require_prefix(prefix)
        found = self._call(lambda client: self._listing(client, prefix))
        return iter([ObjectInfo(key, size) for key, size in found.items()])

    def delete(self, key: str) -> None:
        """Remove an object, as `Store.delete`, from all peers that answer.

        Raises:
            RemoteRefusedError: it is no note, and there is nobody who can sign.
        """
        require_key(key)
        self._call(lambda client: self._delete(client, key))

    def close(self) -> None:
        """End connections, and remember how the peers were.  Doing it twice is harmless."""
        self._thread.close()
        try:
            if self._standing != self._before:
                self._file.save(self._standing, self._before)
                self._before.peers, self._before.short = dict(self._standing.peers), set(self._standing.short)
            known = self._writer.known
            self._writer.reset()
            for view in () if known is None else known.present:
                self._file.save_held(view.known.id, view.segments, view.shares)
            for peer in self._former:
                self._file.forget_held(peer)
            self._former.clear()
        except VaultError as error:  # hints only: what was asked for is done
            log.warning("%s", error)

    # --- beyond the contract

    @property
    def undeleted(self) -> Mapping[PeerId, VaultError]:
        """Peers that have not carried out an order to delete, and why the first one."""
        return self._deletions.undeleted

    def delete_all(self, keys: Sequence[str]) -> None:
        """Remove segments and manifests from all peers, in this order, with few questions.

        Args:
            keys: of the objects; no notes.

        Raises:
            RemoteRefusedError: there is nobody who can sign.
            VaultError: no peer has carried it out; `undeleted` tells of single ones.
        """
        sign = self._sign
        if sign is None:
            raise _nobody_signs(keys[0])
        self._call(lambda client: self._order_deletion(client, keys, sign))

    @property
    def pending_bytes(self) -> int:
        """What has come of objects that are being read, and was not given out: it is not checked yet."""
        return self._arrivals.pending_bytes

    def offered_headers(self) -> Sequence[OfferedHeader]:
        """All that the peers have and had as ``vault.json``, the newest first; who has the key chooses.

        Raises:
            VaultError: nobody has one, or nobody answers.
        """
        return self._call(self._headers.offers)

    def believe(self, header: bytes) -> None:
        """Have reads of ``vault.json`` give this one, which the vault's key has verified, until another is put.

        Args:
            header: one that was offered.
        """
        self._headers.believed = header

    def out_of_reach(self) -> dict[PeerId, VaultError]:
        """Peers that could not be called when they were tried last, and why."""

        async def look(client: MeshClient) -> dict[PeerId, VaultError]:
            failing = client.pool.snapshot().breakers
            return {peer: RemoteUnreachableError(state.last_error) for peer, state in failing.items()}

        return self._call(look)

    def peer_name(self, peer: PeerId) -> str:
        """What one of the peers is called in messages."""
        (known,) = (each for each in self.page.peers if each.id == peer)
        return peer_name(peer, known.address)

    def lost(self, known: Mapping[SegmentName, int]) -> set[SegmentName]:
        """Which of some segments that were stored are on no peer any more, though nobody deleted them.

        What has only fewer copies than before is remembered as short.

        Args:
            known: their sizes in bytes.

        Raises:
            VaultError: no peer answers.
        """
        return self._call(lambda client: self._lost(client, known))

    async def _lost(self, client: MeshClient, known: Mapping[SegmentName, int]) -> set[SegmentName]:
        found = await self._writer.survey(client)
        found.require_any()
        holders = await trio.to_thread.run_sync(self._file.holders)
        before = {peer: await trio.to_thread.run_sync(self._file.load_held, peer) for peer in holders}
        never_seen = {peer for peer in self._peers if not self._standing.of(peer).seen_ns}
        shares = {peer: await trio.to_thread.run_sync(self._file.load_shares, peer) for peer in holders}
        losses = find_losses(
            found,
            before,
            known,
            self.page.replicas,
            coding=self._writer.coding,
            shares_before={peer: held for peer, held in shares.items() if held is not None},
            never_seen=never_seen,
        )
        self._standing.short |= losses.short
        self._former.update(peer for peer in holders if peer not in found.views)
        return losses.gone

    # --- the parts

    def _remembered(self, peer: PeerId) -> tuple[Held, Shares]:
        """What a peer said it has, the last time."""
        return self._file.load_held(peer), self._file.load_shares(peer) or {}

    def _call(self, function: Callable[[MeshClient], Awaitable[_T]]) -> _T:
        return self._thread.call(partial(_unless_nobody, function))

    def _order(self, key: str) -> Sequence[PeerId]:
        """Whom to ask for an object: who should have it first, and everybody in the end."""
        name = parse_segment(key)
        if name is None:
            return self._peers
        views = None if self._writer.known is None else self._writer.known.views
        ranked = placement_of(self.page, self._standing, views).ranking(name)
        return [site.peer for site in ranked]

    async def _size(self, client: MeshClient, key: str, name: SegmentName | None) -> int | None:
        async def ask(peer: PeerId) -> int | None:
            if name is None:
                return (await client.stat(peer, self._vault, key)).size_bytes
            return (await client.have(peer, self._vault, [name])).get(name)

        if name is not None and (holders := self._holders(name)):
            # Who has said that he has it, or was sent it; the others may be slow, and have no say.
            sizes = [size for size in (await ask_all(holders, ask)).values.values() if size is not None]
            if sizes:
                return _most_often(sizes)
        answers = await ask_all(self._peers, ask)
        self._require_enough(answers, key)
        sizes = [size for size in answers.values.values() if size is not None]
        if name is not None and not sizes:
            size = await self._coded.size_bytes(client, name)
            if size is None:
                self._require_answers_of_holders(name, answers.failures)
            return size
        return _most_often(sizes)

    def _holders(self, name: SegmentName) -> Sequence[PeerId]:
        """Peers that held a segment when they were asked last."""
        known = self._writer.known
        return [] if known is None else [view.known.id for view in known.present if name in view.segments]

    def _require_answers_of_holders(self, name: SegmentName, failures: Mapping[PeerId, VaultError]) -> None:
        """What a peer had a moment ago is not missing because it is away now.

        Raises:
            VaultError: one that had it does not answer.
        """
        holders = self._holders(name)
        away = [error for peer, error in failures.items() if peer in holders]
        if away:
            raise worst_of(away, segment_key(name))

    async def _listing(self, client: MeshClient, prefix: str) -> dict[str, int]:
        answers = await ask_all(self._peers, lambda peer: client.listing(peer, self._vault, prefix))
        self._require_enough(answers, f"a list of {prefix or 'all objects'}")
        found: dict[str, int] = {}
        for infos in answers.values.values():
            for info in infos:
                found[info.key] = max(info.size_bytes, found.get(info.key, 0))
        if segment_prefix_of(prefix):
            shares = await ask_all(self._peers, lambda peer: client.listing(peer, self._vault, SHARES_PREFIX))
            self._require_enough(shares, "a list of shares")
            keys = (info.key for infos in shares.values.values() for info in infos)
            for name, size in whole_segments(keys).items():
                if (key := segment_key(name)).startswith(prefix):
                    found.setdefault(key, size)
        return found

    def _require_enough(self, answers: Answers[Any], what: str) -> None:
        """That one peer has answered will do, but for a prune."""
        if self._sign is None:
            answers.require_any(what)
        else:
            answers.require_all(what)

    async def _delete(self, client: MeshClient, key: str) -> None:
        sign = self._sign
        if key.startswith(NOTE_PREFIXES):
            # Where something was not deleted, the record that says so stays: a later prune goes on with it.
            kept = self.undeleted.keys() if key.startswith(CONDEMNED_PREFIX) else frozenset()
            peers = [peer for peer in self._peers if peer not in kept]
            answers = await ask_all(peers, lambda peer: client.forget(peer, self._vault, key))
        elif sign is None:
            raise _nobody_signs(key)
        else:
            await self._order_deletion(client, [key], sign)
            return
        answers.require_any(key)

    async def _order_deletion(self, client: MeshClient, keys: Sequence[str], sign: Signer) -> None:
        done = await self._deletions.order(client, keys, sign)
        names = [name for key in keys if (name := parse_segment(key)) is not None]
        if names:
            self._writer.forget(names, done)


async def _unless_nobody(function: Callable[[MeshClient], Awaitable[_T]], client: MeshClient) -> _T:
    """Ask; if not even one peer could be called since the first question, trying again at once is vain.

    Raises:
        NobodyAnswersError: that is so.
        VaultError: what the function raises.
    """
    try:
        return await function(client)
    except RemoteUnreachableError as error:
        if client.pool.snapshot().counters.opened:
            raise
        raise NobodyAnswersError(str(error)) from error


def _nobody_signs(key: str) -> VaultError:
    return RemoteRefusedError(
        f"peers delete {key} only on an order that the vault's key has signed; 'vaultfs prune' asks for the password"
    )


def _most_often(sizes: Sequence[int]) -> int | None:
    """What most of some peers say; of two that as many say, the greater."""
    return max(sizes, key=lambda size: (sizes.count(size), size), default=None)


def segment_prefix_of(prefix: str) -> bool:
    """Whether a listing of this prefix shows segments."""
    return SEGMENTS_PREFIX.startswith(prefix) or prefix.startswith(SEGMENTS_PREFIX)


def bound_of(key: str) -> tuple[str | None, int]:
    """The hash that an object must have by its name, None if that says nothing, and the most bytes it may have."""
    name = parse_segment(key)
    if name is not None:
        return name, LARGEST_SEGMENT_BYTES
    head = parse_head(key)
    return (None if head is None else head.hash), MAX_MANIFEST_BYTES
