"""A vault with a remote, and a clone of it on a machine that has never seen the vault."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cli.conftest import Run, write_file


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Files, each large one in a segment of its own."""
    return {
        "small": b"a few bytes",
        "first": os.urandom((2 << 20) + 12345),
        "second": os.urandom((1 << 20) + 200_001),
        "third": os.urandom(1 << 20),
    }


@pytest.fixture
def copied(vault: Path, disk: Path, contents: dict[str, bytes], run: Run) -> Path:
    """A vault whose remote has everything."""
    for name, data in contents.items():
        write_file(vault, f"/{name}", data)
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    assert run("sync", vault, "--snapshot").code == 0
    return vault


@pytest.fixture
def clone(copied: Path, disk: Path, tmp_path: Path, run: Run, own_state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone on a machine that has never seen the vault, and where it is no more."""
    shutil.rmtree(copied)
    monkeypatch.setenv("XDG_STATE_HOME", str(own_state / "other"))
    where = tmp_path / "clone"
    assert run("clone", disk.as_uri(), where).code == 0
    return where
