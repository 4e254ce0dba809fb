from __future__ import annotations

from vault_compaction.conftest import data, empty_copy, path, tmp_path, vault

__all__ = ["data", "empty_copy", "path", "tmp_path", "vault"]
