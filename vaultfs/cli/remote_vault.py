"""A vault on a remote, before any of it is fetched: its place here, the password, and the snapshot that is meant.

What comes from the remote is believed step by step: the password is checked against its ``vault.json`` and the key that
this gives against the signature of the snapshot's manifest.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaultfs.cli.offered_headers import open_newest
from vaultfs.cli.output import note, printable
from vaultfs.cli.secret_sources import Prompt, SecretOptions, obtain
from vaultfs.cli.witnesses import require_witnessed
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ObjectMissingError, UsageError, WrongPasswordError
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import RemoteHead
from vaultfs.sync.public_header import PublicHeader
from vaultfs.sync.remote_objects import read_remote_header, read_remote_manifest
from vaultfs.vault.head import Head
from vaultfs.vault.snapshot_manifest import SnapshotInfo, open_manifest

if TYPE_CHECKING:
    from vaultfs.mesh.store import MeshStore


def warn_if_known(*, is_known: bool) -> None:
    """Say what it means to fetch a vault that this machine knows."""
    if is_known:
        note(
            "this machine knows the vault: once it is restored, its old directory is refused as an older copy.  "
            "For a trial beside a vault in use, set XDG_STATE_HOME to an empty directory"
        )


def require_place(dest: Path, layout: VaultLayout) -> None:
    """Refuse a place where a vault is, before anything else is asked for; `fetch` looks closer.

    Raises:
        UsageError: there is one, or the directory above is missing.
    """
    if not dest.absolute().parent.is_dir():
        raise UsageError(f"{dest}: the directory {dest.absolute().parent} does not exist")
    if layout.head.exists():
        raise UsageError(f"{dest} holds a vault already; choose a directory that is empty or does not exist")


def checked(
    store: Store,
    head: RemoteHead,
    options: SecretOptions | None,
    name: str,
    wanted: str | None,
    peers: MeshStore | None = None,
) -> tuple[VaultHeader, Keyring, SnapshotInfo, bool]:
    """The keys of the vault on the remote, and the snapshot, which is signed with one of them.

    Peers of the vault that this machine knows are asked whether they have seen a newer one.

    Args:
        store: the remote.
        head: the snapshot.
        options: where the secret comes from.
        name: of the remote, for the prompt.
        wanted: how the person named the snapshot; None: it is the newest there.
        peers: the store below, if it is one of peers: the newest header of theirs that the key vouches for is taken.

    Returns:
        The header that was unlocked, its keys, the snapshot, and whether this machine has a witness of the vault.

    Raises:
        UsageError: the remote holds no vault; there is no secret.
        WrongPasswordError: it does not open the vault.
        IntegrityError: header or manifest are not what vaultfs wrote; or a peer has proved another snapshot.
        RollbackError: a peer has proved a newer snapshot.
    """
    if peers is None:
        public = read_remote_header(store)
        if public is None:
            raise UsageError(f"{name} holds no vault")
        data, _ = read_remote_manifest(store, head, public.vault_id)
        header, secret = VaultHeader.decode(public.data), remote_secret(options, name)
        keyring = header.unlock(secret)
    else:
        try:
            offers = peers.offered_headers()
        except ObjectMissingError as error:
            raise UsageError(f"{name} holds no vault") from error
        data, _ = read_remote_manifest(store, head, peers.page.vault_id)
        secret = remote_secret(options, name)
        try:
            opened = open_newest(offers, secret, peers.peer_name)
        except WrongPasswordError:
            note(
                "if the password was changed: peers that were away then have the one before, which counts as long as "
                "no other peer answers; 'vaultfs peer ping' shows who does"
            )
            raise
        header, keyring = opened.header, opened.keyring
        peers.believe(opened.data)
    _, content = open_manifest(keyring, data, head.seq, head.hash)
    away = {} if peers is None else peers.out_of_reach()
    require_witnessed(store.name, head, keyring, secret, wanted, away)
    is_known = Head(VaultLayout(Path()), keyring).seen_generation() > 0
    return header, keyring, content.info(head.hash), is_known


def unlocked(public: PublicHeader, options: SecretOptions | None, name: str) -> tuple[VaultHeader, Keyring]:
    """The keys of the vault on the remote, by its own header.

    Args:
        public: the header, as it came.
        options: where the secret comes from.
        name: of the remote, for the prompt.

    Raises:
        UsageError: there is no secret.
        WrongPasswordError: it does not open the vault.
        IntegrityError: the header is not what vaultfs wrote.
    """
    header = VaultHeader.decode(public.data)
    return header, header.unlock(remote_secret(options, name))


def remote_secret(options: SecretOptions | None, name: str) -> Secret:
    """Whatever opens the vault on a remote.

    Args:
        options: where it comes from.
        name: of the remote, for the prompt.

    Raises:
        UsageError: there is none.
    """
    return obtain(options or SecretOptions(), Prompt(f"Password for the vault on {printable(name)}"))


def as_json(layout: VaultLayout, info: SnapshotInfo, received_bytes: int) -> dict[str, Any]:
    """What has become of it."""
    return {"vault": str(layout.root), "snapshot": asdict(info), "received_bytes": received_bytes}
