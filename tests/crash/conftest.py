from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.crypto.kdf import KdfParameters

from .vault_store import SMALL_LIMITS, STATE_VARIABLE


@pytest.fixture
def root(scratch: Path) -> Path:
    """Where stores lie."""
    where = scratch / "disk"
    where.mkdir()
    return where


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        pytest.skip("loop devices need root")


@pytest.fixture(scope="module")
def small_vaults() -> Iterator[None]:
    """Small limits; each key derived once in this process: vaults are copies of one, and Argon2id takes 0.1 s.

    For the modules that ask for it and no other: a whole session would test everything after it with these limits.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_VARIABLE, os.environ[STATE_VARIABLE])  # changed by each store; restored here
        patch.setattr(KdfParameters, "derive", functools.cache(KdfParameters.derive))
        for module, limit, size in SMALL_LIMITS:
            patch.setattr(module, limit, size)
        yield
