"""``vaultfs rm``: remove files and trees of a vault that is not mounted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vaultfs.cli.opened import changing, vault_path
from vaultfs.cli.output import emit_json
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.errors import UsageError
from vaultfs.vault.transfer_staging import remove


def run(
    vault: Path,
    /,
    *paths: str,
    recursive: Annotated[bool, Parameter(name=("--recursive", "-r"))] = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Remove files of a vault that is not mounted; it asks nothing.

    All paths are looked at first: if one does not exist, nothing is removed. A tree vanishes at one stroke.

    Args:
        vault: The vault's directory.
        paths: In the vault; a symlink is removed, not followed.
        recursive: Remove directories too, with everything in them.
        json: Print the outcome as JSON.
        secret: Where the password comes from.
    """
    if not paths:
        raise UsageError("at least one PATH in the vault must follow; see 'vaultfs rm --help'")
    wanted = [vault_path(path) for path in paths]
    with changing(vault, secret, "rm") as (opened, interrupts):
        outcome = remove(opened, wanted, recursive=recursive, progress=lambda *_: interrupts.check())
    if json:
        emit_json({"files": outcome.files})
    return 0
