"""``VAULT REMOTE`` or ``URL``: how verbs that need no password say which remote they mean."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from vaultfs.cli.targets import chosen_remotes, vault_of
from vaultfs.errors import UsageError
from vaultfs.ids import VaultId
from vaultfs.remotes.store import Store
from vaultfs.remotes.urls import redacted
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Holdings, Ledger, OpenLedger
from vaultfs.sync.public_header import read_header


class RemotePlace:
    """The remote that a person means.

    Attributes:
        name: what to call it in messages.
        url: of the remote.
        options: settings of its kind.
        layout: the vault on this machine; None if only a URL was given.
        vault_id: of that vault.
    """

    def __init__(self, name: str, url: str, options: dict[str, str], layout: VaultLayout | None) -> None:
        self.name: Final = name
        self.url: Final = url
        self.options: Final = options
        self.layout: Final = layout
        self.vault_id: Final[VaultId | None] = None if layout is None else read_header(layout).vault_id

    @classmethod
    def of(
        cls, verb: str, vault: str, remote: str | None, options: dict[str, str], hint: str | None = None
    ) -> RemotePlace:
        """What the words mean: a vault and the name of one of its remotes, or a URL alone.

        Args:
            verb: whose words they are, for messages.
            vault: the first word.
            remote: the second; None if there is none.
            options: as given with a URL.
            hint: what to do if more than a URL was given; None: read the help.

        Raises:
            UsageError: they make no sense together.
            NotAVaultError: there is no vault.
        """
        if remote is None:
            if ":" not in vault:
                raise UsageError(
                    f"name a vault and one of its remotes, or the URL of a remote; see 'vaultfs {verb} --help'"
                )
            return cls(redacted(vault), vault, options, None)
        if "://" in vault:
            advice = hint or f"see 'vaultfs {verb} --help'"
            raise UsageError(f"a URL stands alone; {advice}")
        if options:
            raise UsageError("--option goes with a URL; a remote has its own")
        layout, _ = vault_of(Path(vault))
        (chosen,) = chosen_remotes(layout, [remote])
        return cls(chosen.name, chosen.url, chosen.options, layout)

    def ledger(self, store: Store, *, dry_run: bool) -> AbstractContextManager[OpenLedger]:
        """What is known to be there; unless it is for a dry run, no sync of this machine runs meanwhile.

        Args:
            store: the remote.
            dry_run: what is learned is forgotten again.

        Raises:
            VaultLockedError: a sync is running.
            StorageError: the ledger cannot be read or written.
        """
        if self.vault_id is None:
            return nullcontext(OpenLedger(Holdings(), None, ""))
        ledger = Ledger.of(self.vault_id, self.name)
        return nullcontext(ledger.looking(store.name)) if dry_run else ledger.locked(store.name)

    def known(self, store: Store) -> Holdings:
        """What is known to be there, while a sync may be running.

        Raises:
            StorageError: the ledger cannot be read.
        """
        return Holdings() if self.vault_id is None else Ledger.of(self.vault_id, self.name).read(store.name)
