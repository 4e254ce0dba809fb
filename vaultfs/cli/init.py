"""``vaultfs init``: create a vault."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import vaultfs
from vaultfs.cli.output import emit_json, say
from vaultfs.cli.secret_sources import Prompt, SecretOption, SecretOptions, obtain
from vaultfs.cli.sizes import format_size, parse_size
from vaultfs.errors import UsageError

_SMALLEST_CHUNK_BYTES = 4 << 10
_LARGEST_CHUNK_BYTES = 4 << 20


def run(
    vault: Path,
    /,
    *,
    chunk_size: str = "128K",
    compression: Literal["none", "zstd"] = "none",
    kdf_memory: str | None = None,
    label: str = "password",
    secret: SecretOption | None = None,
    json: bool = False,
) -> int:
    """Create a vault in a directory that is new or empty.

    The password is asked for twice, unless an option gives it. It cannot be recovered: add a recovery key with
    'vaultfs key add --recovery VAULT' and keep it on paper.

    Args:
        vault: The directory; it must be empty or not exist.
        chunk_size: Unit of encryption: a power of two from 4K to 4M. Fixed for the life of the vault.
        compression: zstd saves space, and lets the size of what is stored tell a little about what it is.
        kdf_memory: Memory that every guess at the password costs, at least 64M. Measured to take about a second if not
            given.
        label: Name of the first key slot.
        json: Print JSON.
        secret: Where the password comes from.
    """
    size = parse_size(chunk_size, "--chunk-size")
    if not _SMALLEST_CHUNK_BYTES <= size <= _LARGEST_CHUNK_BYTES or size & (size - 1):
        raise UsageError(f"--chunk-size: {chunk_size} is no power of two from 4K to 4M")
    memory_kib = None if kdf_memory is None else _memory_kib(kdf_memory)
    require_empty(vault)
    unlocking = obtain(secret or SecretOptions(), Prompt(f"New password for {vault}", twice=True))
    vaultfs.create_vault(
        vault, unlocking, chunk_size_bytes=size, compression=compression, kdf_memory_kib=memory_kib, label=label
    )
    if json:
        emit_json({"vault": str(vault.resolve()), "chunk_size_bytes": size, "compression": compression})
    else:
        say(f"Created {vault} (chunks of {format_size(size)}).  Mount it with: vaultfs mount {vault} DIR")
    return 0


def _memory_kib(text: str) -> int:
    size = parse_size(text, "--kdf-memory")
    if not 64 << 20 <= size <= 4 << 30:
        raise UsageError(f"--kdf-memory: {text} is not from 64M to 4G")
    return size >> 10


def require_empty(vault: Path) -> None:
    """Refuse a place where something is already, before asking for a password.

    Args:
        vault: where the vault shall be.

    Raises:
        UsageError: it is no directory, not empty, or its parent is missing.
    """
    if vault.is_symlink() and not vault.exists():
        raise UsageError(f"{vault}: a symlink that leads nowhere")
    if not vault.exists():
        if not vault.parent.is_dir():
            raise UsageError(f"{vault}: the directory {vault.parent} does not exist")
        return
    if not vault.is_dir():
        raise UsageError(f"{vault}: exists, and is no directory")
    if any(vault.iterdir()):
        raise UsageError(f"{vault}: not empty; a vault needs a directory of its own")
