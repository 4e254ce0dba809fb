"""``vaultfs verify --unlock``: the checks that take the key, for the sidecar, which has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaultfs.cli.one_remote import OneRemote
from vaultfs.cli.output import counted, note, printable
from vaultfs.cli.remote_vault import unlocked
from vaultfs.cli.scratch import scratch_directory
from vaultfs.cli.secret_sources import SecretOptions
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError, NotAVaultError
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.remote_layout import HEADER_KEY, RemoteHead, segment_key
from vaultfs.sync.remote_objects import read_remote_header, read_remote_manifest
from vaultfs.sync.verify import StoppedError
from vaultfs.vault.sealed_checks import SealedChecks


class UnlockedChecks:
    """The checks of one run, as `vaultfs.sync.verify.KeyedChecks`.

    Args:
        store: the remote.
        keyring: that its header gave.
        scratch: an empty directory.
    """

    def __init__(self, store: Store, keyring: Keyring, scratch: Path) -> None:
        self._store = store
        self._checks = SealedChecks(keyring, VaultLayout(scratch / "looked at"))
        self._vault_id = keyring.vault_id
        self._heads: dict[tuple[int, str], RemoteHead] = {}

    def manifest(self, head: RemoteHead, data: bytes) -> None:
        """As `KeyedChecks.manifest`."""
        self._checks.manifest(head.seq, head.hash, data)
        self._heads[head.seq, head.hash] = head

    def place(self, name: SegmentName) -> Path:
        """As `KeyedChecks.place`."""
        return self._checks.place(name)

    def segment(self, name: SegmentName, *, is_needed: bool) -> list[str]:
        """As `KeyedChecks.segment`."""
        return self._checks.segment(name, is_needed=is_needed)

    def rest(self, is_stopped: Callable[[], bool]) -> list[str]:
        """What takes the metadata of snapshots, when everything else is done.

        Args:
            is_stopped: asked in this thread before each request; may raise.

        Returns:
            What is wrong.

        Raises:
            StoppedError: it is.
            RemoteError: the remote failed, so there is no telling.
        """

        def tick() -> None:
            if is_stopped():
                raise StoppedError("stopped")

        def manifest_of(seq: SnapshotSeq, snapshot_id: str) -> bytes:
            return read_remote_manifest(self._store, self._heads[seq, snapshot_id], self._vault_id, tick)[0]

        source = OneRemote(self._store)
        source.is_gap_damage, source.tick = True, tick
        return [f"{segment_key(name)}: {text}" for name, text in self._checks.rest(source, manifest_of)]

    def summary(self) -> list[str]:
        """What was done, for people."""
        strange = self._checks.strange_segments
        told = f"{counted(strange, 'segment')} that no snapshot needs could not be opened"
        return [f"{counted(self._checks.chunks, 'chunk')} opened", *([told] if strange else [])]

    def as_json(self) -> dict[str, Any]:
        """What was done, for machines."""
        return {"chunks_opened": self._checks.chunks, "strange_segments": self._checks.strange_segments}


@contextmanager
def unlocked_checks(
    store: Store, options: SecretOptions | None, name: str, problems: list[str]
) -> Iterator[UnlockedChecks | None]:
    """Ask for the password of the vault on a remote, and give what it can check; None if its header is no good.

    Args:
        store: the remote.
        options: where the secret comes from.
        name: of the remote, for the prompt.
        problems: takes what is wrong with the header, unless the checks without a key say it anyway.

    Raises:
        UsageError: there is no secret.
        WrongPasswordError: it does not open the vault.
        StorageError: there is no room for what is looked at.
        RemoteError: the remote failed.
    """
    keyring = None
    try:
        public = read_remote_header(store)
    except IntegrityError:
        public = None
    if public is not None:
        try:
            _, keyring = unlocked(public, options, name)
        except (IntegrityError, NotAVaultError) as error:
            problems.append(f"{HEADER_KEY}: {error}")
    if keyring is None:
        note(f"{printable(name)}: its {HEADER_KEY} gives no key, so nothing is checked with one")
        yield None
        return
    with scratch_directory() as scratch:
        yield UnlockedChecks(store, keyring, scratch)
