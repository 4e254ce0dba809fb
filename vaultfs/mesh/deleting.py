"""Orders to peers to delete: signed by a device of the vault, for each peer its own, of many objects at once.

An order names up to 256 keys (docs/mesh-protocol.md, section 8) and costs two questions, one for the nonce.  With a
segment go its shares.  All peers are asked at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.asking import ask_all
from vaultfs.mesh.client import MeshClient, Signer
from vaultfs.mesh.messages import MOST_KEYS
from vaultfs.mesh.share_keys import SHARES_PREFIX, parse_share_key, shares_prefix
from vaultfs.sync.remote_layout import parse_segment


class Deletions:
    """Deletes objects of one vault.

    Args:
        vault_id: whose.
        peers: all that may hold some.

    Attributes:
        undeleted: peers that have not carried out an order, and why the first one.
    """

    def __init__(self, vault_id: VaultId, peers: Sequence[PeerId]) -> None:
        self._vault_id: Final = vault_id
        self._peers: Final = tuple(peers)
        self.undeleted: Final[dict[PeerId, VaultError]] = {}

    async def order(self, client: MeshClient, keys: Sequence[str], sign: Signer) -> list[PeerId]:
        """Have objects deleted, in this order, and the shares of those that are segments.

        Args:
            client: to ask with.
            keys: of the objects.
            sign: signs the orders.

        Returns:
            The peers that have carried out all of it; the others are among the `undeleted`.

        Raises:
            VaultError: a peer does not tell which shares it has; or none has carried out an order.
        """
        shares = await self._shares(client, [name for key in keys if (name := parse_segment(key)) is not None])

        async def order(peer: PeerId) -> None:
            of_peer = shares.get(peer, {})
            wanted = [each for key in keys for each in (key, *of_peer.get(parse_segment(key), ()))]
            for start in range(0, len(wanted), MOST_KEYS):
                await client.delete(peer, self._vault_id, tuple(wanted[start : start + MOST_KEYS]), sign)

        orders = await ask_all(self._peers, order)
        for peer, error in orders.failures.items():
            self.undeleted.setdefault(peer, error)
        orders.require_any(keys[0])
        return [peer for peer in self._peers if peer in orders.values]

    async def _shares(
        self, client: MeshClient, names: Sequence[SegmentName]
    ) -> dict[PeerId, dict[SegmentName | None, list[str]]]:
        """The keys of the shares of some segments, by peer."""
        if not names:
            return {}
        wanted = frozenset(names)
        prefix = shares_prefix(names[0]) if len(wanted) == 1 else SHARES_PREFIX

        async def ask(peer: PeerId) -> dict[SegmentName | None, list[str]]:
            found: dict[SegmentName | None, list[str]] = {}
            for info in await client.listing(peer, self._vault_id, prefix):
                share = parse_share_key(info.key)
                if share is not None and share.coded.name in wanted:
                    found.setdefault(share.coded.name, []).append(info.key)
            return found

        answers = await ask_all(self._peers, ask)
        answers.require_all("shares of what is to be deleted")  # what is not found stays, and nobody would miss it
        return answers.values
