"""Vaults with something in them; the password is derived once for each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from vault_snapshots.sample import Sample, fill


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


def _template(directory: Path, chunk_size_bytes: int, compression: Literal["none", "zstd"] = "none") -> Sample:
    sample = Sample.create(directory / "vault", chunk_size_bytes, compression)
    with sample.open() as vault:
        fill(vault)
    return sample


@pytest.fixture(scope="session")
def _small_chunks(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return _template(tmp_path_factory.mktemp("small-chunks"), 4096)


@pytest.fixture(scope="session")
def _compressed(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return _template(tmp_path_factory.mktemp("compressed"), 128 << 10, "zstd")


@pytest.fixture
def _own_witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of one vault are rollbacks of each other, as far as the witness can tell."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def sample(_own_witness: None, _small_chunks: Sample, tmp_path: Path) -> Sample:
    """With chunks of 4 KiB, so that a database has many pieces."""
    return _small_chunks.copy(tmp_path / "vault")


@pytest.fixture
def compressed(_own_witness: None, _compressed: Sample, tmp_path: Path) -> Sample:
    """With the default chunk size, and compression."""
    return _compressed.copy(tmp_path / "vault")
