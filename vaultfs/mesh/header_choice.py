"""Which ``vault.json`` of a vault's peers counts: the newest, or the one that somebody with the key has chosen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from vaultfs.errors import ObjectMissingError, RemoteRefusedError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.asking import worst_of
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.headers import OfferedHeader, offers_of, read_headers, read_offers
from vaultfs.mesh.reading import Reader
from vaultfs.mesh.standing import Standing
from vaultfs.sync.remote_layout import HEADER_KEY

log = logging.getLogger(__name__)


class HeaderChoice:
    """That of one store.

    Args:
        vault_id: whose.
        peers: whom to ask.
        reader: reads objects of this vault.
        standing: which peers were ever there.

    Attributes:
        believed: what the vault's key has verified, and counts therefore; None: the newest counts.
    """

    def __init__(self, vault_id: VaultId, peers: Sequence[PeerId], reader: Reader, standing: Standing) -> None:
        self._vault_id: Final = vault_id
        self._peers: Final = tuple(peers)
        self._reader: Final = reader
        self._standing: Final = standing
        self.believed: bytes | None = None

    async def newest(self, client: MeshClient) -> bytes:
        """The newest that a peer has.

        Raises:
            VaultError: nobody has one, or nobody answers.
        """
        answers = await read_headers(client, self._reader, self._vault_id, self._peers)
        if answers.values:
            return max(answers.values.values()).data
        raise self._none(answers.failures)

    async def offers(self, client: MeshClient) -> Sequence[OfferedHeader]:
        """All that peers have and had, the newest first.

        Raises:
            VaultError: as `newest`.
        """
        answers = await read_offers(client, self._reader, self._vault_id, self._peers)
        if answers.values:
            return offers_of(answers.values)
        raise self._none(answers.failures)

    def _none(self, found: Mapping[PeerId, VaultError]) -> VaultError:
        """What to say when no peer has one.

        Args:
            found: why not.
        """
        # Who never answered, be it that he refuses, or that somebody else is there or makes no sense, was given nothing
        # by this machine, so he keeps nobody from saving a vault at first.
        failures = [
            error
            for peer, error in found.items()
            if self._standing.of(peer).seen_ns or isinstance(error, ObjectMissingError)
        ]
        if failures:
            for error in found.values():
                if isinstance(error, RemoteRefusedError):  # who wants to restore has to know
                    log.warning("%s", error)
        return worst_of(failures or list(found.values()), HEADER_KEY)
