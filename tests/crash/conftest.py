from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.crypto.kdf import KdfParameters

SHARED_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 1 << 30


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: thousands of small disks are laid out there, one after the other."""
    if not os.access(SHARED_MEMORY, os.W_OK) or shutil.disk_usage(SHARED_MEMORY).free < NEEDED_BYTES:
        yield tmp_path
        return
    where = SHARED_MEMORY / f"vaultfs-{os.environ['VAULTFS_TEST_RUN']}" / tmp_path.name
    where.mkdir(parents=True)
    try:
        yield where
    finally:
        shutil.rmtree(where)
        if not any(where.parent.iterdir()):
            where.parent.rmdir()


@pytest.fixture
def root(scratch: Path) -> Path:
    """Where stores lie."""
    where = scratch / "disk"
    where.mkdir()
    return where


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        pytest.skip("loop devices need root")


@pytest.fixture(scope="session")
def quick_unlocking() -> Iterator[None]:
    """Derive each key once in this process: all vaults of a test are copies of one, and Argon2id takes 0.1 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KdfParameters, "derive", functools.cache(KdfParameters.derive))
        yield
