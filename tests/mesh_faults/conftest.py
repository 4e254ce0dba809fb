"""Vaults that are made once, and households that each test has for itself."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import vaultfs

from .household import Household, household
from .machines import HASTY_PEER, PASSWORD, Forker, forking
from .network import Network, networking

MakeHousehold = Callable[..., Household]

_made: Final = random.Random(7)
SMALL: Final = {f"/{name}": _made.randbytes(size) for name, size in (("a", 200_000), ("b", 70_000), ("c", 10))}
LARGE: Final = {**SMALL, "/large": _made.randbytes(8 << 20)}


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process opens knows nothing of other copies of the vault."""
    for name in ("CONFIG", "CACHE", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "own" / name.lower()))


@pytest.fixture(scope="session", autouse=True)
def quick_unlocking() -> Iterator[None]:
    """The password is stretched once: that takes longer than most tests."""
    known: dict[tuple[object, bytes, bytes], bytes] = {}
    real = vaultfs.KdfParameters.derive

    def derive(self: vaultfs.KdfParameters, secret: bytes, salt: bytes) -> bytes:
        key = (self, bytes(secret), bytes(salt))
        if key not in known:
            known[key] = real(self, secret, salt)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vaultfs.KdfParameters, "derive", derive)
        yield


@pytest.fixture(scope="package")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with some small segments, and one snapshot."""
    base = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        secret = vaultfs.Secret.password(PASSWORD)
        vaultfs.create_vault(base / "vault", secret, kdf=vaultfs.KdfParameters.weakest())
        _write(base / "vault", SMALL)
    return base / "vault"


@pytest.fixture(scope="package")
def large(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vault, with a segment of 8 MiB."""
    base = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        shutil.copytree(small, base / "vault")
        _write(base / "vault", {"/large": LARGE["/large"]})
    return base / "vault"


def _write(vault: Path, contents: dict[str, bytes]) -> None:
    """Each file is a segment of its own."""
    secret = vaultfs.Secret.password(PASSWORD)
    for path, data in contents.items():
        with vaultfs.open_vault(vault, secret) as found, found.open(path, "wb") as file:
            file.write(data)
    with vaultfs.open_vault(vault, secret) as found:
        found.create_snapshot("")


@pytest.fixture(scope="package")
def forker(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with forking(tmp_path_factory.mktemp("said"), small) as started:
        yield started


@pytest.fixture
def make_household(scratch: Path, forker: Forker, small: Path, large: Path) -> Iterator[MakeHousehold]:
    """Makes a laptop and some peers that have nothing yet, hasty ones unless they are to be patient."""
    with ExitStack() as stack:

        def make(
            count: int, *, is_large: bool = False, network: Network | None = None, is_patient: bool = False
        ) -> Household:
            vault, contents = (large, LARGE) if is_large else (small, SMALL)
            settings = {} if is_patient else dict(HASTY_PEER)
            made = household(scratch / "machines", forker, vault, dict(contents), count, network, settings)
            return stack.enter_context(made)

        yield make


@pytest.fixture
def network() -> Iterator[Network]:
    """A network without hosts."""
    with networking() as made:
        yield made


@pytest.fixture(scope="session")
def has_fuse() -> bool:
    """Whether something can be mounted here."""
    return os.access("/dev/fuse", os.R_OK | os.W_OK)
