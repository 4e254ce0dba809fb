"""The ``vault.json`` that each peer has, and those that it had before.

Nobody here can tell which is genuine: that takes the vault's key.  The newest is the one with the highest epoch and,
among these, revision.  Who has the password takes the newest *that verifies*, of all that the peers offer
(`read_offers`): somebody who has stolen the identity of a machine can put a false one there, and a peer keeps for a
while what it replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, NamedTuple

from vaultfs.errors import FormatTooNewError, IntegrityError, NotAVaultError, ObjectMissingError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.asking import Answers, ask_all
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.kept_headers import HEADERS_PREFIX, MOST_KEPT, parse_kept_header
from vaultfs.mesh.reading import Reader
from vaultfs.sync.public_header import LARGEST_HEADER_BYTES, PublicHeader
from vaultfs.sync.remote_layout import HEADER_KEY

log = logging.getLogger(__name__)

_MOST_REVISIONS: Final = 1 << 32
"""No vault has its password changed so often; a peer that says it was lies."""


class FoundHeader(NamedTuple):
    """What a peer has; the greater one is newer.

    Attributes:
        epoch: of the vault's key.
        revision: how often it was replaced, as the peers count.
        data: the whole object.
    """

    epoch: int
    revision: int
    data: bytes


async def read_headers(
    client: MeshClient, reader: Reader, vault: VaultId, peers: Iterable[PeerId]
) -> Answers[FoundHeader]:
    """Ask peers for it.

    Args:
        client: to ask with.
        reader: reads objects of this vault.
        vault: whose it must be.
        peers: whom; who has none, or something else, is among the failures.
    """

    async def ask(peer: PeerId) -> FoundHeader:
        return await _current(client, reader, vault, peer)

    return await ask_all(peers, ask)


@dataclass(frozen=True)
class OfferedHeader:
    """A header that peers have, or had.

    Attributes:
        epoch: of the vault's key, as it says.
        revision: the highest that a peer says it has or had.
        data: the whole object.
        peers: who offers it, in the order of asking.
    """

    epoch: int
    revision: int
    data: bytes
    peers: tuple[PeerId, ...]


async def read_offers(
    client: MeshClient, reader: Reader, vault: VaultId, peers: Sequence[PeerId]
) -> Answers[list[FoundHeader]]:
    """Ask peers for all headers that they have, those that were replaced included.

    Args:
        client: to ask with.
        reader: reads objects of this vault.
        vault: whose they must be.
        peers: whom; who has none, or nothing else, is among the failures.
    """

    async def ask(peer: PeerId) -> list[FoundHeader]:
        found: list[FoundHeader] = []
        failure: VaultError | None = None
        try:
            found.append(await _current(client, reader, vault, peer))
        except (ObjectMissingError, IntegrityError, FormatTooNewError) as error:  # it may have one from before
            failure = error
        kept = (parse_kept_header(info.key) for info in await client.listing(peer, vault, HEADERS_PREFIX))
        ranked = sorted((each for each in kept if each is not None), key=lambda each: (-each.stood_s, each.digest))
        for each in ranked[:MOST_KEPT]:
            try:
                data = await _bytes(client, reader, peer, str(each), each.digest)
                found.append(FoundHeader(_decoded(client, vault, peer, data).epoch, each.revision, data))
            except (ObjectMissingError, IntegrityError, FormatTooNewError) as error:
                log.info("%s", error)
        if failure is not None and not found:
            raise failure
        return found

    return await ask_all(peers, ask)


def offers_of(found: Mapping[PeerId, Sequence[FoundHeader]]) -> list[OfferedHeader]:
    """What peers offer together, the newest first.

    Args:
        found: what each has, or had.
    """
    offers: dict[bytes, OfferedHeader] = {}
    for peer, headers in found.items():
        for header in headers:
            known = offers.get(header.data, OfferedHeader(header.epoch, 0, header.data, ()))
            peers = known.peers if peer in known.peers else (*known.peers, peer)
            offers[header.data] = OfferedHeader(header.epoch, max(known.revision, header.revision), header.data, peers)
    return sorted(offers.values(), key=lambda each: (each.epoch, each.revision, each.data), reverse=True)


async def _current(client: MeshClient, reader: Reader, vault: VaultId, peer: PeerId) -> FoundHeader:
    size = await client.stat(peer, vault, HEADER_KEY)
    if size.size_bytes is None:
        raise ObjectMissingError(f"{client.name(peer)} has no {HEADER_KEY}")
    data = await _bytes(client, reader, peer, HEADER_KEY, None)
    return FoundHeader(_decoded(client, vault, peer, data).epoch, size.revision, data)


async def _bytes(client: MeshClient, reader: Reader, peer: PeerId, key: str, digest: str | None) -> bytes:
    with closing(await reader.whole(client, [peer], key, digest, LARGEST_HEADER_BYTES)) as file:
        return file.read()


def _decoded(client: MeshClient, vault: VaultId, peer: PeerId, data: bytes) -> PublicHeader:
    try:
        header = PublicHeader.decode(data, f"{HEADER_KEY} of {client.name(peer)}")
    except NotAVaultError as error:
        raise IntegrityError(str(error)) from error
    if header.vault_id != vault:
        raise IntegrityError(f"{client.name(peer)} has the {HEADER_KEY} of another vault")
    return header


def next_revision(revisions: Iterable[int]) -> int:
    """The revision of a header that is to replace others.

    Args:
        revisions: that peers say they have; one that cannot be is passed over, or its peer could use up all numbers.
    """
    return 1 + max((revision for revision in revisions if revision < _MOST_REVISIONS), default=0)
