"""The ``vault.json`` that each peer has.

Nobody here can tell which is genuine: that takes the vault's key.  The newest is the one with the highest epoch and,
among these, revision.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Final, NamedTuple

from vaultfs.errors import IntegrityError, NotAVaultError, ObjectMissingError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.asking import Answers, ask_all
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.reading import Reader
from vaultfs.sync.public_header import LARGEST_HEADER_BYTES, PublicHeader
from vaultfs.sync.remote_layout import HEADER_KEY

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
        size = await client.stat(peer, vault, HEADER_KEY)
        if size.size_bytes is None:
            raise ObjectMissingError(f"{client.name(peer)} has no {HEADER_KEY}")
        with closing(await reader.whole(client, [peer], HEADER_KEY, None, LARGEST_HEADER_BYTES)) as file:
            data = file.read()
        try:
            header = PublicHeader.decode(data, f"{HEADER_KEY} of {client.name(peer)}")
        except NotAVaultError as error:
            raise IntegrityError(str(error)) from error
        if header.vault_id != vault:
            raise IntegrityError(f"{client.name(peer)} has the {HEADER_KEY} of another vault")
        return FoundHeader(header.epoch, size.revision, data)

    return await ask_all(peers, ask)


def next_revision(revisions: Iterable[int]) -> int:
    """The revision of a header that is to replace others.

    Args:
        revisions: that peers say they have; one that cannot be is passed over, or its peer could use up all numbers.
    """
    return 1 + max((revision for revision in revisions if revision < _MOST_REVISIONS), default=0)
