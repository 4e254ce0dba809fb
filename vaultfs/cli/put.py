"""``vaultfs put``: copy a local file or tree into a vault that is not mounted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vaultfs.cli.opened import MemoryTrimmer, changing, report, vault_path
from vaultfs.cli.output import emit_json
from vaultfs.cli.progress import progress
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.errors import UsageError
from vaultfs.vault import transfer


def run(
    vault: Path,
    local: str,
    path: str,
    /,
    *,
    force: bool = False,
    keep_going: bool = False,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Copy a local file or tree into a vault that is not mounted.

    The copy becomes visible at once when it is complete and durable. If the command fails or is interrupted, nothing
    of it is left in the vault. Modes, times, symlinks, hard links, extended attributes and holes are kept.

    Args:
        vault: The vault's directory.
        local: What to copy; - is standard input.
        path: In the vault: a directory to copy into, or the new name.
        force: Replace a file that has the name already. Directories are never replaced or merged.
        keep_going: Leave out what cannot be read, name it, and exit with 3.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from.
    """
    target = vault_path(path)
    trim = MemoryTrimmer()
    source = None if local == "-" else _source(local)
    with (
        changing(vault, secret, "put") as (opened, interrupts),
        progress(f"put {local}", "none" if quiet else "json" if json else "auto") as bar,
    ):

        def tell(done_bytes: int, total_bytes: int | None, files: int) -> None:
            interrupts.check()
            trim(done_bytes)
            bar(done_bytes, total_bytes, files)

        if source is None:
            read = interrupts.reader(sys.stdin.buffer.read)
            outcome = transfer.put_stream(opened, read, target, replace=force, mode=0o666 & ~_umask(), progress=tell)
        else:
            outcome = transfer.put(opened, source, target, replace=force, keep_going=keep_going, progress=tell)
    code = report(outcome)
    if json:
        emit_json({"files": outcome.files, "bytes": outcome.done_bytes, "problems": len(outcome.problems)})
    return code


def _source(local: str) -> Path:
    """The local file, checked before anybody types a password."""
    if not local:
        raise UsageError("LOCAL: empty")
    source = Path(local)
    if not os.path.lexists(source):
        raise UsageError(f"{local}: there is no such file")
    return source


def _umask() -> int:
    """The process's mask; there is no way to read it but to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
