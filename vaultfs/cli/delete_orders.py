"""Orders to peers to delete something, which count only with the signature of a device of the vault.

So a prune of peers asks for the password; that of any other remote does not.  The key slot is opened by itself, and the
vault is not: it may be mounted meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from vaultfs.cli.offered_headers import OpenedPeers, open_newest
from vaultfs.cli.remote_place import RemotePlace
from vaultfs.cli.remote_vault import remote_secret, unlocked
from vaultfs.cli.secret_sources import SecretOptions
from vaultfs.cli.targets import Stores
from vaultfs.crypto.device import DeviceKey
from vaultfs.errors import ObjectMissingError, UsageError, VaultError
from vaultfs.ids import PeerId
from vaultfs.remotes.locations import Location
from vaultfs.remotes.store import Store
from vaultfs.sync.public_header import read_header

if TYPE_CHECKING:
    from vaultfs.mesh.client import Signed
    from vaultfs.mesh.store import MeshStore


class SignedOrders:
    """Opens the stores of peers so that they can delete.

    Args:
        devices: sign, each for itself, the newest first: after a rotation of the key a peer may not know that yet.

    Attributes:
        opened: the stores that were opened.
    """

    def __init__(self, devices: Sequence[DeviceKey]) -> None:
        self._devices: Final = tuple(devices)
        self.opened: Final[list[MeshStore]] = []

    @classmethod
    def unlock(cls, place: RemotePlace, stores: Stores, options: SecretOptions | None) -> SignedOrders:
        """Ask for the password of a vault, and take the key that signs for it.

        Args:
            place: the peers; the vault's own header is used where it is on this machine, else theirs.
            stores: opens them, to read that.
            options: where the secret comes from.

        Raises:
            UsageError: there is no secret, or no vault there.
            WrongPasswordError: it does not open the vault.
            IntegrityError: the header is not what vaultfs wrote.
            RemoteError: the peers cannot be asked.
        """
        if place.layout is not None:
            _, keyring = unlocked(read_header(place.layout), options, place.name)
        else:
            peers = OpenedPeers()
            stores.open(place.url, place.options, {"mesh": peers.open})
            assert peers.only is not None, "it was opened just now"
            try:
                offers = peers.only.offered_headers()
            except ObjectMissingError as error:
                raise UsageError(f"{place.name} has no vault.json: it holds no vault") from error
            keyring = open_newest(offers, remote_secret(options, place.name), peers.only.peer_name).keyring
        return cls([DeviceKey(keyring.subkeys(epoch).device) for epoch in sorted(keyring.epochs, reverse=True)])

    def open(self, location: Location, options: Mapping[str, str]) -> Store:
        """The peers that a URL means, as `vaultfs.remotes.urls.StoreMaker`.

        Raises:
            VaultError: as `MeshStore.of_url`.
        """
        from vaultfs.mesh.store import MeshStore  # noqa: PLC0415  # loads an event loop and TLS

        store = MeshStore.of_url(location, options, self.sign)
        self.opened.append(store)
        return store

    def delete_all(self, keys: Sequence[str]) -> None:
        """Have the peers that were opened delete objects, many with one order.

        Args:
            keys: of segments or manifests, all in one place.

        Raises:
            VaultError: as `MeshStore.delete_all`.
        """
        for store in self.opened:
            store.delete_all(keys)

    def undone(self) -> dict[PeerId, VaultError]:
        """The peers that have not carried out an order, and why."""
        return {peer: error for store in self.opened for peer, error in store.undeleted.items()}

    def sign(self, data: bytes) -> list[Signed]:
        """Sign an order, as each device, as `vaultfs.mesh.client.Signer`."""
        from vaultfs.mesh.client import Signed  # noqa: PLC0415  # loaded with the store

        return [Signed(device.public, device.sign(data)) for device in self._devices]
