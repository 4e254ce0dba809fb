"""``vaultfs get``: copy a file or tree out of a vault that is not mounted."""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.opened import reading, report, vault_path
from vaultfs.cli.output import emit_json
from vaultfs.cli.progress import progress
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.errors import UsageError
from vaultfs.vault import transfer_out


def run(
    vault: Path,
    path: str,
    local: str,
    /,
    *,
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Copy a file or tree out of a vault that is not mounted.

    Every byte is verified. The copy gets its name when it is complete and on the disk. A damaged file is named, with
    the place of the damage, and not written; the other files of a tree are. The exit code is then 15; it is 3 if
    something else had to be left out.

    Args:
        vault: The vault's directory.
        path: In the vault.
        local: A directory to copy into, or the new name.
        force: Replace a file that has the name already. Directories are never replaced or merged.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from.
    """
    source = vault_path(path)
    if not local or "\0" in local:
        raise UsageError(f"LOCAL: {'holds a NUL byte' if local else 'empty'}")
    if local == "-":
        raise UsageError("LOCAL: to write to standard output use 'vaultfs cat'")
    with (
        reading(vault, secret, "get") as opened,
        progress(f"get {path}", "none" if quiet else "json" if json else "auto") as bar,
    ):
        outcome = transfer_out.get(opened, source, local, replace=force, progress=bar)
    code = report(outcome)
    if json:
        emit_json({"files": outcome.files, "bytes": outcome.done_bytes, "problems": len(outcome.problems)})
    return code
