"""Things that several tests of the crypto use."""

from __future__ import annotations

import os

import pytest

from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret

from .headers import WEAKEST, new_secret


@pytest.fixture(scope="session")
def recovery() -> Secret:
    """A secret that needs no Argon2id, so tests that unlock a hundred times stay quick."""
    return Secret.generate_recovery()[0]


@pytest.fixture(scope="session")
def kdf() -> KdfParameters:
    return WEAKEST


@pytest.fixture
def dead_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's random source always says the same."""
    monkeypatch.setattr(os, "urandom", lambda count: b"\x5a" * count)


@pytest.fixture(scope="session")
def vault(recovery: Secret) -> tuple[VaultHeader, Keyring]:
    """A header with one slot."""
    return VaultHeader.create(recovery, label="first", kdf=WEAKEST)


@pytest.fixture(scope="session")
def three(recovery: Secret) -> tuple[VaultHeader, Keyring, list[Secret]]:
    """A header with three slots, and their secrets."""
    header, ring = VaultHeader.create(recovery, label="first", kdf=WEAKEST)
    secrets = [recovery, new_secret(), new_secret()]
    for label, secret in zip(("second", "third"), secrets[1:], strict=True):
        header = header.add_slot(ring, secret, label=label, kdf=WEAKEST)
    return header, ring, secrets
