"""A vault with one snapshot, a store that can misbehave, and what must hold after every fault."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import (
    PASSWORD,
    Run,
    Said,
    disk,
    folder,
    own_state,
    passfile,
    quick_unlocking,
    run,
    template,
    vault,
)
from remotes.conftest import own_credentials

import vaultfs
from vaultfs.cli.main import main
from vaultfs.remotes.retrying import RetryPolicy
from vaultfs.remotes.s3 import S3Options
from vaultfs.remotes.s3 import _make_client as make_client
from vaultfs.storage.manifest_format import Manifest, manifest_hash

from .s3_double import S3Double, running

__all__ = [
    "disk",
    "folder",
    "own_credentials",
    "own_state",
    "passfile",
    "quick_unlocking",
    "run",
    "template",
    "vault",
]

CONTENTS = {f"/{name}": os.urandom(size) for name, size in (("large", 300_000), ("other", 200_000), ("small", 10))}


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


@pytest.fixture(scope="package")
def server() -> Iterator[S3Double]:
    with running() as double:
        yield double


@pytest.fixture
def double(server: S3Double) -> Iterator[S3Double]:
    """The store, empty and well-behaved."""
    server.begin()
    server.watch = lambda _asked: require_complete_heads(server.stored())
    yield server
    server.release()


@functools.cache
def _client(options: S3Options) -> Any:
    """Making one takes as long as a hundred requests."""
    return make_client(options)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process give up soon, and share a client."""
    policy = RetryPolicy(tries=3, first_wait_s=0.001, total_s=60.0)
    monkeypatch.setattr("vaultfs.remotes.urls.RetryPolicy", lambda: policy)
    monkeypatch.setattr("vaultfs.remotes.s3._make_client", _client)


@pytest.fixture(scope="package")
def filled(template: Path, server: S3Double, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with one snapshot, in three segments, and with the store as its remote; nothing was sent yet."""
    base = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        shutil.copytree(template, base / "vault")
        fill(base / "vault")
        assert main(["remote", "add", str(base / "vault"), "s3", server.url, *server.options]) == 0
    return base / "vault"


def fill(vault: Path) -> None:
    """Put files into a vault, and make a snapshot."""
    for name, data in CONTENTS.items():
        with vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD)) as found, found.open(name, "wb") as file:
            file.write(data)
    with vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD)) as found:
        found.create_snapshot("")


@pytest.fixture
def source(filled: Path, tmp_path: Path) -> Path:
    """A copy of that vault of one's own."""
    copy = tmp_path / "source"
    shutil.copytree(filled, copy)
    return copy


@pytest.fixture
def copied(source: Path, double: S3Double, run: Run, impatient: None) -> Path:
    """The same, and everything was sent."""
    assert run("sync", source, "--quiet", bare=True).code == 0
    double.heal()
    return source


def require_complete_heads(stored: dict[str, bytes]) -> None:
    """Invariant 8: every snapshot that is shown has all its segments, byte for byte, and a header."""
    for key, data in stored.items():
        if key.startswith("heads/"):
            assert key.endswith(manifest_hash(data)), f"{key} is not what its name says"
            assert "vault.json" in stored
            manifest, _ = Manifest.decode(data)
            for name, size in manifest.segments:
                found = stored.get(f"segments/{name[:2]}/{name}")
                assert found is not None, f"{key} needs {name}, which is not there"
                assert len(found) == size


def require_same(vault: Path, stored: dict[str, bytes]) -> None:
    """The store has what the vault has, byte for byte, and all its snapshots."""
    require_complete_heads(stored)
    assert stored["vault.json"] == (vault / "vault.json").read_bytes()
    for key, data in stored.items():
        if key.startswith("segments/"):
            path = vault / f"{key}.seg"
            assert not path.exists() or path.read_bytes() == data, key
    heads = {path.name.removesuffix(".manifest"): path for path in (vault / "heads").glob("*.manifest")}
    shown = {key.rpartition("/")[2]: data for key, data in stored.items() if key.startswith("heads/")}
    assert heads, "the vault has no snapshot"
    for name, path in heads.items():
        assert shown[name] == path.read_bytes()


def verified(double: S3Double, run: Run) -> Said:
    """`vaultfs verify --read-data`."""
    return run("verify", double.url, *double.options, "--read-data", "--quiet", bare=True)


def require_next_is_clean(source: Path, double: S3Double, run: Run) -> None:
    """After each fault: the next sync succeeds, the remote is sound, and a further one has nothing to do."""
    assert double.troubles == []
    require_complete_heads(double.stored())
    double.heal()
    said = run("sync", source, "--quiet", bare=True)
    assert said.code == 0, said.err
    assert said.out.endswith(b"up to date\n")
    said = verified(double, run)
    assert (said.code, said.out.endswith(b"nothing is wrong\n")) == (0, True), said.out
    require_same(source, double.stored())
    double.heal()
    assert run("sync", source, "--quiet", bare=True).out == b"s3: up to date\n"
    assert {asked.method for asked in double.asked} <= {"GET", "LIST"}
    assert double.troubles == []


def require_restored(back: Path) -> None:
    """A restored vault has every file, byte for byte."""
    with vaultfs.open_vault(back, vaultfs.Secret.password(PASSWORD), read_only=True) as found:
        assert sorted(found.listdir("/")) == sorted(name[1:].encode() for name in CONTENTS)
        for name, data in CONTENTS.items():
            with found.open(name) as file:
                assert file.read() == data
