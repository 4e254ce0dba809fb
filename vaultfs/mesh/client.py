"""The caller's side of the mesh: every request of the protocol, to any peer of a book, over the pool.

Async, for one event loop.  `vaultfs.mesh.thread` is for those who block.  Small requests share connections, bodies have
one alone.  Disks are read and written in threads.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Final, NamedTuple, Self

import trio
from blake3 import blake3

from vaultfs.errors import IntegrityError, RemoteError, RemoteRefusedError, RemoteUnreachableError
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.arrivals import Arrivals
from vaultfs.mesh.connection import PeerConnection, ReadPiece, UnansweredError, require_known
from vaultfs.mesh.dialing import dial, peer_name
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.identity import Identity, format_peer_id
from vaultfs.mesh.message_codec import delete_order
from vaultfs.mesh.message_stream import TookNothingError
from vaultfs.mesh.messages import (
    HASH_BYTES,
    MOST_NAMES,
    MOST_RANGES,
    SHARE_AUDITS,
    Audit,
    Challenge,
    Delete,
    Deleted,
    Forget,
    Have,
    Holds,
    List,
    Listing,
    Nonce,
    Proof,
    Range,
    Size,
    Stat,
    State,
    Statement,
    Status,
    Witness,
)
from vaultfs.mesh.pool import Pool, PoolLimits, open_pool
from vaultfs.mesh.silences import Silences
from vaultfs.mesh.tls import client_context
from vaultfs.mesh.witness import NONCE_BYTES, WitnessStatement, verify_statement
from vaultfs.remotes.bodies import opened
from vaultfs.remotes.store import ObjectInfo, Source

PIECE_BYTES: Final = 1 << 20
_TRICKLE_S: Final = 1.0
LISTING_S: Final = 600.0
"""For all pages of a listing: an honest peer sends two million keys in less, and one that dribbles could take days."""
MOST_PAGES: Final = 4096
MOST_LISTED_BYTES: Final = 256 << 20
"""Of the keys in a listing: three million segments.  A peer that lists more wants this machine's memory."""


class Signed(NamedTuple):
    """What a device of the vault has signed.

    Attributes:
        device: its public key, 32 bytes.
        signature: 64 bytes.
    """

    device: bytes
    signature: bytes


Signer = Callable[[bytes], Sequence[Signed]]
"""Signs as each device of the vault, the newest first; only who has the vault's key can make one."""


@dataclass(frozen=True)
class Contact:
    """A peer that can be called.

    Attributes:
        peer: its id.
        address: where it listens.
    """

    peer: PeerId
    address: Address

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return peer_name(self.peer, self.address)


class MeshClient:
    """Requests to peers.

    Args:
        pool: of connections.
        contacts: the peers.
        arrivals: is told what comes of objects.

    Raises:
        VaultError: every method, as `PeerConnection`; a peer that is not a contact is a `RemoteError`.
    """

    def __init__(
        self, pool: Pool[PeerConnection], contacts: Iterable[Contact], arrivals: Arrivals | None = None
    ) -> None:
        self.pool: Final = pool
        self._arrivals: Final = arrivals or Arrivals()
        self._contacts: Final = {contact.peer: contact for contact in contacts}
        self._silences: Final = Silences()

    @asynccontextmanager
    async def _lease(self, peer: PeerId, *, is_shared: bool = False) -> AsyncIterator[PeerConnection]:
        """A connection of the pool, unless the peer has been silent lately."""
        self._silences.require_none(peer, trio.current_time())
        async with self.pool.lease(peer, is_shared=is_shared) as connection:
            try:
                with self.pool.waiting(peer) if is_shared else nullcontext():
                    yield connection
            except (UnansweredError, TookNothingError) as error:
                self._silences.note(peer, str(error), trio.current_time())
                raise
        self._silences.end(peer)

    def name(self, peer: PeerId) -> str:
        """What a peer is called in messages."""
        return self._contacts[peer].name

    async def ping(self, peer: PeerId) -> float:
        """How many seconds a question and its answer take."""
        async with self._lease(peer, is_shared=True) as connection:
            began_s = trio.current_time()
            await connection.ping()
            return trio.current_time() - began_s

    async def status(self, peer: PeerId, vault: VaultId) -> State:
        """How much room there is for a vault."""
        async with self._lease(peer, is_shared=True) as connection:
            return await connection.ask(lambda number: Status(number, vault), State)

    async def have(self, peer: PeerId, vault: VaultId, names: Sequence[SegmentName]) -> dict[SegmentName, int]:
        """Which of these segments a peer says it has, and their sizes."""
        found = {}
        for start in range(0, len(names), MOST_NAMES):
            batch = names[start : start + MOST_NAMES]
            joined = bytes.fromhex("".join(batch))
            async with self._lease(peer, is_shared=True) as connection:
                holds = await connection.ask(partial(_have, vault, joined), Holds)
            if len(holds.sizes) != len(batch):
                raise RemoteError(f"{self.name(peer)} answers for {len(holds.sizes)} segments instead of {len(batch)}")
            found.update({name: size for name, size in zip(batch, holds.sizes, strict=True) if size})
        return found

    async def listing(self, peer: PeerId, vault: VaultId, prefix: str) -> list[ObjectInfo]:
        """The objects of a vault whose keys begin so, ascending."""
        found: list[ObjectInfo] = []
        after = ""
        left_bytes = MOST_LISTED_BYTES
        end_s = trio.current_time() + LISTING_S
        for _ in range(MOST_PAGES):
            if trio.current_time() > end_s:
                raise RemoteUnreachableError(f"{self.name(peer)} takes more than {LISTING_S:.0f} s to list its objects")
            async with self._lease(peer, is_shared=True) as connection:
                page = await connection.ask(partial(_list, vault, prefix, after), Listing)
            for key, size in page.entries:
                if key <= after or not key.startswith(prefix):
                    raise RemoteError(f"{self.name(peer)} lists objects out of their order")
                after = key
                left_bytes -= len(key)
                found.append(ObjectInfo(key, size))
            if not page.has_more:
                return found
            if not page.entries or left_bytes < 0:
                break
        raise RemoteError(f"{self.name(peer)} lists objects without end")

    async def stat(self, peer: PeerId, vault: VaultId, key: str) -> Size:
        """The length of an object, and its revision."""
        async with self._lease(peer, is_shared=True) as connection:
            return await connection.ask(lambda number: Stat(number, vault, key), Size)

    async def fetch(
        self, peer: PeerId, vault: VaultId, key: str, sink: BinaryIO, *, offset: int = 0, length: int | None = None
    ) -> int:
        """Write an object, or a part of it, to a file; what it holds when this raises is worth nothing.

        Returns:
            The length of the whole object, as the peer says.
        """
        with self._counted(key) as count:
            return await self._fetch(peer, vault, key, sink, offset, length, count)

    @contextmanager
    def _counted(self, key: str) -> Iterator[Callable[[int], None]]:
        """What comes in this block counts, unless it fails; gives what is to be called with each number of bytes."""
        attempt = self._arrivals.begin(key)
        if attempt is None:
            yield lambda _: None
            return
        is_whole = False
        try:
            yield partial(self._arrivals.came, attempt)
            is_whole = True
        finally:
            self._arrivals.end(attempt, is_whole=is_whole)

    async def _fetch(
        self,
        peer: PeerId,
        vault: VaultId,
        key: str,
        sink: BinaryIO,
        offset: int,
        length: int | None,
        came: Callable[[int], None],
    ) -> int:
        async with self._lease(peer) as connection, connection.get(vault, key, offset, length) as body:
            if length is not None and body.body_bytes != length:
                raise RemoteError(f"{self.name(peer)} sends {body.body_bytes} bytes of {key} instead of {length}")
            if length is None and offset + body.body_bytes != body.size_bytes:
                raise RemoteError(
                    f"{self.name(peer)} sends {body.body_bytes} bytes of {key} from {offset} on, and says that it has "
                    f"{body.size_bytes}"
                )
            held: list[bytes] = []
            held_bytes = 0
            wrote_s = trio.current_time()
            while piece := await body.receive():
                came(len(piece))
                held.append(piece)
                held_bytes += len(piece)
                # What trickles is written too, so that who looks at the file sees that it moves.
                if held_bytes >= PIECE_BYTES or trio.current_time() - wrote_s >= _TRICKLE_S:
                    await trio.to_thread.run_sync(sink.writelines, held)
                    held, held_bytes, wrote_s = [], 0, trio.current_time()
            if held:
                await trio.to_thread.run_sync(sink.writelines, held)
            return body.size_bytes

    async def store(
        self,
        peer: PeerId,
        vault: VaultId,
        key: str,
        source: Source,
        digest: bytes,
        *,
        if_absent: bool = False,
        revision: int = 0,
    ) -> int:
        """Store an object.

        Args:
            peer: where.
            vault: whose it is.
            key: its name.
            source: its bytes; opened when the peer wants them.
            digest: BLAKE3 of them, 32 bytes.
            if_absent: refuse to replace an object.
            revision: of ``vault.json``; else 0.

        Returns:
            How many bytes were sent; 0: the peer had it.
        """
        async with _Opening(key, source) as opening, self._lease(peer) as connection:
            put = partial(
                connection.put,
                vault,
                key,
                source.size_bytes,
                digest,
                opening.open_at,
                if_absent=if_absent,
                revision=revision,
            )
            try:
                return await put()
            except IntegrityError:
                # What the peer had kept of an earlier try may have been damaged; it has dropped that now.
                if not opening.offset or connection.is_closed:
                    raise
            return await put()

    async def delete(self, peer: PeerId, vault: VaultId, keys: tuple[str, ...], sign: Signer) -> int:
        """Order that objects be deleted, by each device that signs until one is obeyed.

        Returns:
            How many of them were there.

        Raises:
            RemoteRefusedError: none is; what the peer said to the first.
        """
        refusals: list[RemoteRefusedError] = []
        while True:
            async with self._lease(peer) as connection:  # alone: the nonce is for the very next order
                nonce = (await connection.ask(Challenge, Nonce)).nonce
                signed = await trio.to_thread.run_sync(sign, delete_order(nonce, peer, vault, keys))
                if len(refusals) == len(signed):
                    raise refusals[0]
                device, signature = signed[len(refusals)]
                try:
                    is_long = len(keys) > 1
                    order = partial(_delete, vault, keys, device, signature)
                    answer = await connection.ask(order, Deleted, is_long=is_long)
                except RemoteRefusedError as error:
                    refusals.append(error)
                else:
                    return answer.count

    async def forget(self, peer: PeerId, vault: VaultId, key: str) -> None:
        """Delete a note."""
        async with self._lease(peer, is_shared=True) as connection:
            await connection.ask(lambda number: Forget(number, vault, key), Deleted)

    async def audit(self, peer: PeerId, vault: VaultId, key: bytes, ranges: Sequence[Range]) -> list[bytes]:
        """Proofs of possession, 32 bytes for each range; zeros where the peer has it not.

        Args:
            peer: whom to ask.
            vault: whose segments.
            key: 32 bytes, drawn for this question.
            ranges: at most `MOST_RANGES`.

        Raises:
            RemoteError: it is asked for parts of shares, and its vaultfs is older than such questions.
        """
        if not 0 < len(ranges) <= MOST_RANGES:
            raise ValueError(f"an audit asks for 1 to {MOST_RANGES} ranges, not {len(ranges)}")
        async with self._lease(peer, is_shared=True) as connection:
            if SHARE_AUDITS not in connection.features and any(each.share for each in ranges):
                raise RemoteError(f"{self.name(peer)} runs an older vaultfs, which cannot prove shares")
            proof = await connection.ask(lambda number: Audit(number, vault, key, tuple(ranges)), Proof, is_long=True)
        if len(proof.digests) != len(ranges) * HASH_BYTES:
            raise RemoteError(f"{self.name(peer)} proves {len(proof.digests)} bytes for {len(ranges)} ranges")
        return [proof.digests[start : start + HASH_BYTES] for start in range(0, len(proof.digests), HASH_BYTES)]

    async def statement(self, peer: PeerId, vault: VaultId) -> WitnessStatement:
        """What a peer says it has seen of a vault.

        Raises:
            IntegrityError: the peer did not sign it, or it answers another question.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        async with self._lease(peer, is_shared=True) as connection:
            answer = await connection.ask(lambda number: Witness(number, vault, nonce), Statement)
        return verify_statement(
            answer.statement, answer.public_key, answer.signature, vault=vault, peer=peer, nonce=nonce
        )


def _have(vault: VaultId, names: bytes, number: int) -> Have:
    return Have(number, vault, names)


def _delete(vault: VaultId, keys: tuple[str, ...], device: bytes, signature: bytes, number: int) -> Delete:
    return Delete(number, vault, keys, device, signature)


def _list(vault: VaultId, prefix: str, after: str, number: int) -> List:
    return List(number, vault, prefix, after)


class _Opening:
    """A source that may be opened at an offset, and is closed at the end.  An async context manager.

    Attributes:
        offset: at which it was opened last.
    """

    def __init__(self, key: str, source: Source) -> None:
        self._key: Final = key
        self._source: Final = source
        self._open: Final = ExitStack()
        self.offset = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open.close()  # a file that was read: nothing to wait for

    async def open_at(self, offset: int) -> ReadPiece:
        self.offset = offset
        reader = await trio.to_thread.run_sync(self._open.enter_context, opened(self._key, self._source))
        # Read and not seek: what is read may be hashed, and its end refused if that is wrong.
        reader.is_sending = False
        left = offset
        while left:
            skipped = await trio.to_thread.run_sync(reader.read, min(left, PIECE_BYTES))
            left -= len(skipped)
        reader.is_sending = True

        return partial(reader.read, DATA_BYTES)  # a frame: it is hashed and sealed while the processor's cache has it


@asynccontextmanager
async def open_client(
    identity: Identity,
    contacts: Iterable[Contact],
    limits: PoolLimits | None = None,
    arrivals: Arrivals | None = None,
    vault: VaultId | None = None,
) -> AsyncIterator[MeshClient]:
    """A client, whose connections are closed at the end.

    Args:
        identity: of this machine.
        contacts: the peers.
        limits: of the pool.
        arrivals: is told what comes of objects.
        vault: that it is about; who does not know this machine is to accept it for that one.
    """
    known: Mapping[PeerId, Contact] = {contact.peer: contact for contact in contacts}
    context = client_context(identity)
    accepted = format_peer_id(identity.peer_id) + ("" if vault is None else f" --vault {vault.hex()}")

    async def connect(peer: PeerId) -> PeerConnection:
        contact = known[peer]
        connection = await dial(context, contact.address, peer)
        try:
            require_known(connection, accepted)
        except BaseException:
            connection.abort()
            raise
        return connection

    def describe(peer: PeerId) -> str:
        return known[peer].name

    async with open_pool(connect, limits or PoolLimits(), describe=describe) as pool:
        yield MeshClient(pool, known.values(), arrivals)


def proof_of(key: bytes, segment: str, offset: int, data: bytes) -> bytes:
    """What an honest peer answers to one range of an audit; for who has the bytes.

    Args:
        key: of the audit, 32 bytes.
        segment: the segment's name, or a share's.
        offset: of the range.
        data: its bytes.
    """
    return blake3(bytes.fromhex(segment) + offset.to_bytes(8, "big") + data, key=key).digest()
