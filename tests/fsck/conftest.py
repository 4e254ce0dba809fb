"""One vault is made for all tests; each gets a copy of it, and a state directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsck.vault_copies import Copy, make, quick_derive
from vaultfs.crypto.kdf import KdfParameters


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


@pytest.fixture(scope="session", autouse=True)
def quick_unlocking() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KdfParameters, "derive", quick_derive())
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, quick_unlocking: None) -> Copy:
    base = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        return make(base / "vault")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of one vault are rollbacks of each other, as far as the witness can tell."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def copy(template: Copy, own_state: Path, tmp_path: Path) -> Copy:
    return template.copy(tmp_path / "vault")
