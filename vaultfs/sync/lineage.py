"""Which of two histories of a vault comes from the other: each manifest names the one before.

Manifests on this machine are asked first, then those on the remote; one that neither has ends what can be told.  What
is read from a remote here is checked by its hash, and a history is only what the hashes say.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.ids import VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.local_vault import LocalManifest, ManifestHold
from vaultfs.sync.remote_layout import RemoteHead
from vaultfs.sync.remote_objects import Tick, read_remote_manifest


class Relation(enum.Enum):
    """How this vault stands to a snapshot on a remote."""

    OURS = "ours"
    """The snapshot is in this vault's own history: there is nothing to take over."""
    BEHIND = "behind"
    """The snapshot comes from this vault's newest one."""
    APART = "apart"
    """The two have gone different ways, or nobody can tell."""


class Lineage:
    """The chains of manifests, as far as they can be had.

    Args:
        store: the remote.
        layout: the vault on this machine.
        vault_id: whose it is.
        local: the manifests on this machine, oldest first.
        listed: the snapshots on the remote.
        tick: called meanwhile; may raise, to end it.
    """

    def __init__(
        self,
        store: Store,
        layout: VaultLayout,
        vault_id: VaultId,
        local: list[LocalManifest],
        listed: list[RemoteHead],
        tick: Tick,
    ) -> None:
        self._store: Final = store
        self._layout: Final = layout
        self._vault_id: Final = vault_id
        self._local: Final[Mapping[str, LocalManifest]] = {each.hash: each for each in local}
        self._newest: Final = local[-1] if local else None
        self._listed: Final[Mapping[str, RemoteHead]] = {each.hash: each for each in listed}
        self._tick: Final = tick

    def relation(self, theirs: RemoteHead) -> Relation:
        """How the newest snapshot on this machine stands to one on the remote.

        Raises:
            IntegrityError, RemoteError: a manifest on the remote is damaged, or cannot be read.
        """
        if theirs.hash in self._local:
            return Relation.OURS
        if self._newest is None:
            return Relation.APART
        if self._newest.hash in self.ancestors(theirs.hash, self._newest.seq):
            return Relation.BEHIND
        return Relation.OURS if theirs.hash in self.ancestors(self._newest.hash, theirs.seq) else Relation.APART

    def ancestors(self, digest: str, lowest: int) -> Iterator[str]:
        """The hashes of the snapshots before one, newest first, as long as their numbers are not below ``lowest``.

        Raises:
            IntegrityError, RemoteError: as `relation`.
        """
        seq = self._seq_of(digest)
        while seq is not None and seq > lowest:
            previous = self._previous(digest)
            if previous is None:
                return
            yield previous
            digest, seq = previous, self._seq_of(previous)

    def _seq_of(self, digest: str) -> int | None:
        found = self._local.get(digest) or self._listed.get(digest)
        return None if found is None else found.seq

    def _previous(self, digest: str) -> str | None:
        manifest = None
        if digest in self._local:
            manifest = self._here(self._local[digest])
        if manifest is None and digest in self._listed:
            _, manifest = read_remote_manifest(self._store, self._listed[digest], self._vault_id, self._tick)
        return None if manifest is None or manifest.previous is None else manifest.previous.hex()

    def _here(self, local: LocalManifest) -> Manifest | None:
        try:
            hold = ManifestHold.take(self._layout, local)
            if hold is None:
                return None
            try:
                return hold.content(self._vault_id)
            finally:
                hold.release()
        except VaultError:  # the remote's copy is as good
            return None
