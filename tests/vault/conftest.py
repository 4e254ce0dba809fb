"""Templates of vaults for all tests of this package, and a state directory for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .vaults import Makers, Place


@pytest.fixture(scope="session")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Makers]:
    base = tmp_path_factory.mktemp("templates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        yield Makers(base)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of one template are forks of one vault; what one test saw must not count in another."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def place(makers: Makers, scratch: Path) -> Place:
    """A vault with chunks of 4 KiB."""
    return makers.place(scratch)
