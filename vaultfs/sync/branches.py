"""The note on a remote that two histories of one vault stand side by side there, because a person wished it.

``heads/branches/<token>``.  Which snapshot belongs to which history only their chains tell; where there is such a note,
nobody takes the snapshot with the highest number for the present without being told to.
"""

from __future__ import annotations

import secrets

import msgspec

from vaultfs.ids import VaultId
from vaultfs.remotes.store import BytesSource, Store
from vaultfs.sync.remote_layout import BRANCHES_PREFIX


def put_branch_note(store: Store, vault_id: VaultId, created_ns: int) -> None:
    """Put the note.

    Args:
        store: the remote.
        vault_id: of the vault.
        created_ns: now, in nanoseconds since 1970.

    Raises:
        RemoteError: as `Store.put`.
    """
    content = {"format": 1, "vault_id": vault_id.hex(), "created_ns": created_ns}
    store.put(BRANCHES_PREFIX + secrets.token_hex(32), BytesSource(msgspec.json.encode(content)))
