"""Manifests that peers have and this vault has not any more, kept so that each look does not fetch them again.

A year of daily snapshots may be a hundred megabytes of manifests, and which segments are needed only they tell.  Each
lies under its hash, and counts only if that is its hash.  It is a cache: what cannot be read or kept is fetched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.storage.durable import atomic_replace
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, manifest_hash
from vaultfs.storage.private_files import make_private_directory

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[0-9a-f]{64}")


class ManifestShelf:
    """A directory of them.  Methods block.

    Args:
        directory: its own; made when something is kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory: Final = directory

    def get(self, digest: str) -> bytes | None:
        """A manifest; None if it is not here, or damaged.

        Args:
            digest: its hash, 64 hexadecimal digits.
        """
        try:
            with (self._directory / digest).open("rb") as file:
                data: bytes = file.read(MAX_MANIFEST_BYTES + 1)
        except OSError:
            return None
        return data if manifest_hash(data) == digest else None

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a manifest, if that can be done."""
        try:
            make_private_directory(self._directory)
            atomic_replace(self._directory / digest, data)
        except VaultError as error:
            log.info("%s", error)

    def keep_only(self, digests: Collection[str]) -> None:
        """Remove all others."""
        if not self._directory.is_dir():
            return
        for path in self._directory.iterdir():
            if _NAME.fullmatch(path.name) and path.name not in digests:
                with suppress(OSError):
                    path.unlink()
