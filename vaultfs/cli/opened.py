"""Opening a vault for the commands that work without a mount: put, get, cat, ls, rm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import vaultfs
from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.interrupts import Interrupts
from vaultfs.cli.mounts import require_unmounted_vault
from vaultfs.cli.output import error_line
from vaultfs.cli.secret_sources import Prompt, SecretOptions, obtain
from vaultfs.cli.spare_segments import lent_segments
from vaultfs.crypto.slots import Secret
from vaultfs.errors import UsageError, VaultLockedError
from vaultfs.fuse.allocator import give_back_memory
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder
from vaultfs.vault.api import Vault
from vaultfs.vault.transfer_outcome import Outcome
from vaultfs.vault.transfer_staging import sweep_unfinished

_TRIM_EVERY_BYTES: Final = 256 << 20


def _unlocking(path: Path, options: SecretOptions | None, verb: str) -> tuple[Path, Secret]:
    """The vault's directory and the secret, after everything that can be checked without it."""
    show_warnings()
    root = require_unmounted_vault(path, verb)
    holder = read_holder(VaultLayout(root))
    if holder is not None:  # before anybody types a password
        raise VaultLockedError(f"the vault {path} is in use by {holder}; unmount it or wait until it is done")
    return root, obtain(options or SecretOptions(), Prompt(f"Password for {path}"))


@contextmanager
def reading(path: Path, options: SecretOptions | None, verb: str) -> Iterator[Vault]:
    """A vault that is open for reading.

    Args:
        path: as the person wrote it.
        options: where the secret comes from.
        verb: the command.

    Raises:
        NotAVaultError, VaultLockedError, WrongPasswordError and others: it cannot be opened.
    """
    root, secret = _unlocking(path, options, verb)
    with (
        lent_segments(root) as spare,
        vaultfs.open_vault(root, secret, read_only=True, purpose=f"vaultfs {verb}", source=spare) as vault,
    ):
        yield vault


@contextmanager
def changing(path: Path, options: SecretOptions | None, verb: str) -> Iterator[tuple[Vault, Interrupts]]:
    """A vault that is open for changes, and swept; signals wait for `Interrupts.check` meanwhile.

    Args:
        path: as the person wrote it.
        options: where the secret comes from.
        verb: the command.

    Raises:
        VaultError: as `reading`; at the end, what could not be made durable.
    """
    root, secret = _unlocking(path, options, verb)
    with (
        Interrupts() as interrupts,
        lent_segments(root) as spare,
        vaultfs.open_vault(root, secret, purpose=f"vaultfs {verb}", source=spare) as vault,
    ):
        sweep_unfinished(vault.filesystem)
        interrupts.check()
        yield vault, interrupts


class MemoryTrimmer:
    """Gives free memory back to the system now and then: the pieces of a large file leave gaps between small things."""

    def __init__(self) -> None:
        self._trimmed_bytes = 0

    def __call__(self, done_bytes: int) -> None:
        """So many bytes are copied."""
        if done_bytes - self._trimmed_bytes >= _TRIM_EVERY_BYTES:
            self._trimmed_bytes = done_bytes
            give_back_memory()


def vault_path(text: str, what: str = "PATH") -> bytes:
    """A path in a vault, absolute whether it was written so or not.

    Args:
        text: as the person wrote it.
        what: the argument, for the message.

    Raises:
        UsageError: it is empty or holds NUL.
    """
    path = os.fsencode(text)
    if not path or b"\0" in path:
        raise UsageError(f"{what}: {'empty' if not path else 'holds a NUL byte'}")
    return b"/" + path.lstrip(b"/")


def report(outcome: Outcome) -> int:
    """Print what a transfer left out, one line each, and return the exit code."""
    for problem in outcome.problems:
        error_line(f"{os.fsdecode(problem.path)}: {problem.reason}")
    return outcome.exit_code
