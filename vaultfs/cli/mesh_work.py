"""What the verbs about a vault's peers share: which peers, what is remembered of them, and how they are asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import trio

from vaultfs.cli.async_calls import completed
from vaultfs.cli.directories import cache_directory
from vaultfs.cli.mesh_vault import MeshVault, mesh_vault
from vaultfs.errors import UsageError, VaultError
from vaultfs.mesh.book import Book, VaultPeers
from vaultfs.mesh.client import Contact, MeshClient, open_client
from vaultfs.mesh.identity import Identity, require_identity
from vaultfs.mesh.local_copy import LocalCopy
from vaultfs.mesh.manifest_shelf import ManifestShelf
from vaultfs.mesh.places import book_path, identity_path, manifests_path, vault_state_path
from vaultfs.mesh.pool import PoolLimits
from vaultfs.mesh.standing import StandingFile
from vaultfs.mesh.store import mesh_url
from vaultfs.remotes.configured import Remote, load_remotes
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Holdings, Ledger

REMOTE_NAME: Final = "mesh"
"""What `vaultfs peer add` calls the remote that is the peers."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class MeshWork:
    """A vault, and its peers.

    Attributes:
        word: as it was written.
        vault: which vault.
        page: its peers.
        identity: of this machine.
        file: where it is remembered how the peers were.
        remote: the remote of the vault that is its peers; None: it has none, or is not on this machine.
    """

    word: str
    vault: MeshVault
    page: VaultPeers
    identity: Identity
    file: StandingFile
    remote: Remote | None

    @classmethod
    def of(cls, word: str) -> MeshWork:
        """The one that is meant.

        Args:
            word: a vault, a folder where one is mounted, or a vault's id.

        Raises:
            NotAVaultError: it is none of these.
            UsageError: the vault has no peers, or this machine has no identity.
            VaultError: something cannot be read.
        """
        vault = mesh_vault(word)
        page = Book(book_path()).peers_of(vault.vault_id)
        if not page.peers:
            raise UsageError(f"{word} has no peers; add one with 'vaultfs peer add {word} ID@HOST'")
        return cls(
            word,
            vault,
            page,
            require_identity(identity_path()),
            StandingFile(vault_state_path(vault.vault_id)),
            None if vault.layout is None else mesh_remote(vault.layout, vault),
        )

    @property
    def contacts(self) -> list[Contact]:
        """The peers as they can be called."""
        return [Contact(peer.id, peer.address) for peer in self.page.peers]

    @property
    def shelf(self) -> ManifestShelf:
        """Where manifests are kept that this machine has not."""
        return ManifestShelf(manifests_path(self.page.vault_id))

    @property
    def ledger(self) -> Ledger:
        """Of the syncs with these peers; whoever changes what they hold has it locked."""
        return Ledger.of(self.page.vault_id, REMOTE_NAME if self.remote is None else self.remote.name)

    def holdings(self) -> Holdings:
        """What syncs with these peers have learned.

        Raises:
            StorageError: it cannot be read.
        """
        return self.ledger.read(mesh_url(self.page.vault_id))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep syncs, prunes and repairs of this vault's peers away, on this machine.

        Raises:
            VaultLockedError: one is running.
            VaultError: it cannot be found out.
        """
        with self.ledger.locked(mesh_url(self.page.vault_id)):
            yield

    def here(self) -> LocalCopy | None:
        """The vault on this machine, as it is now.

        Raises:
            VaultError: it cannot be read.
        """
        layout = self.vault.layout
        return None if layout is None else LocalCopy(layout, self.holdings())

    def scratch(self) -> Path:
        """A directory for files without a name.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: there is none.
        """
        if self.vault.layout is not None:
            return self.vault.layout.root
        directory = cache_directory()
        with storage_errors(f"cannot create {directory}"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory


def mesh_remote(layout: VaultLayout, vault: MeshVault) -> Remote | None:
    """The remote of a vault that is its peers; None if it has none.

    Raises:
        IntegrityError: the list of remotes is damaged.
    """
    url = mesh_url(vault.vault_id)
    return next((remote for remote in load_remotes(layout) if remote.url == url), None)


def asked(
    work: MeshWork,
    function: Callable[[MeshClient], Awaitable[_T]],
    *,
    limits: PoolLimits | None = None,
    hurry: Callable[[], None] = lambda: None,
) -> _T:
    """Run a coroutine with a client, until it ends or a signal comes.

    Args:
        work: whose peers.
        function: is given the client.
        limits: of its connections.
        hurry: called at the end, however it comes: wakes threads that wait.

    Raises:
        KeyboardInterrupt, Terminated: a signal came.
        VaultError: what the function raises.
    """
    done: list[_T] = []
    failures: list[VaultError] = []

    async def hurry_at_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            hurry()

    async def run() -> None:
        async with (
            open_client(work.identity, work.contacts, limits, vault=work.page.vault_id) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(hurry_at_end)
            try:
                done.append(await function(client))
            except VaultError as error:  # out of the nurseries, which would wrap it
                failures.append(error)
            nursery.cancel_scope.cancel()

    completed(run)
    if failures:
        raise failures[0]
    return done[0]
