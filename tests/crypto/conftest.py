"""Things that several tests of the crypto use."""

from __future__ import annotations

import os

import pytest

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret


@pytest.fixture(scope="session")
def recovery() -> Secret:
    """A secret that needs no Argon2id, so tests that unlock a hundred times stay quick."""
    return Secret.generate_recovery()[0]


@pytest.fixture(scope="session")
def kdf() -> KdfParameters:
    return KdfParameters.weakest()


@pytest.fixture
def dead_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's random source always says the same."""
    monkeypatch.setattr(os, "urandom", lambda count: b"\x5a" * count)
