"""The vault of the tests of fsck, to be tampered with."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsck.conftest import copy, own_state, quick_unlocking, template
from fsck.vault_copies import Copy, make

__all__ = ["copy", "other", "own_state", "quick_unlocking", "template"]


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


@pytest.fixture(scope="session")
def _other_template(tmp_path_factory: pytest.TempPathFactory, quick_unlocking: None) -> Copy:
    base = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        return make(base / "vault", seed=2)


@pytest.fixture
def other(_other_template: Copy, own_state: Path, tmp_path: Path) -> Copy:
    """Another vault with files of the same names and sizes."""
    return _other_template.copy(tmp_path / "other")
