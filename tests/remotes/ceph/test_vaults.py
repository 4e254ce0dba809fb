"""A vault backed up to Ceph and restored from it, also when a part of the cluster dies in the middle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Run, own_state, passfile, quick_unlocking, read_file, run, template, vault, write_file

from remotes.conftest import BUCKET
from vaultfs.remotes.s3 import S3Store
from vaultfs.remotes.store import Source

from .cluster import Cluster

__all__ = ["own_state", "passfile", "quick_unlocking", "run", "template", "vault"]

pytestmark = pytest.mark.ceph


@pytest.fixture
def where(cluster: Cluster, prefix: str) -> list[str]:
    """A URL and its options."""
    given = (f"endpoint={cluster.endpoint}", "region=us-east-1", "path_style=true")
    return [f"s3://{BUCKET}/{prefix}", *(word for each in given for word in ("--option", each))]


@pytest.fixture
def contents() -> dict[str, bytes]:
    return {f"/{number}": os.urandom(1 << 20) for number in range(8)}


@pytest.fixture
def synced_to(vault: Path, contents: dict[str, bytes], where: list[str], run: Run) -> Path:
    """A vault with a remote that has nothing yet; each file is in a segment of its own."""
    for name, data in contents.items():
        write_file(vault, name, data)
    assert run("remote", "add", vault, "ceph", *where, bare=True).code == 0
    return vault


def require_restored(vault: Path, contents: dict[str, bytes], where: list[str], run: Run) -> None:
    """The remote is sound, and with nothing but it the vault comes back."""
    assert run("verify", *where, "--read-data", "--quiet", bare=True).code == 0
    shutil.rmtree(vault)
    assert run("restore", where[0], vault, *where[1:], "--quiet").code == 0
    assert {name: read_file(vault, name) for name in contents} == contents


def test_there_and_back_again(synced_to: Path, contents: dict[str, bytes], where: list[str], run: Run) -> None:
    assert run("sync", synced_to, "--snapshot", "--quiet").code == 0
    said = run("sync", synced_to, "--json", bare=True)
    assert json.loads(said.out)["remotes"][0]["requests"] == 2
    write_file(synced_to, "/later", b"later")
    assert run("sync", synced_to, "--snapshot", "--quiet").code == 0
    require_restored(synced_to, contents | {"/later": b"later"}, where, run)


def test_an_osd_is_killed_in_the_middle_of_a_sync(
    cluster: Cluster,
    synced_to: Path,
    contents: dict[str, bytes],
    where: list[str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After some segments were stored; what comes then goes to the two that are left.  Last in this package."""
    count = 0
    real = S3Store.put

    def put(self: S3Store, key: str, source: Source, **more: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            cluster.kill_osd(1)
        real(self, key, source, **more)

    monkeypatch.setattr(S3Store, "put", put)
    said = run("sync", synced_to, "--snapshot", "--connections", "1", "--json")
    assert said.code == 0, said.err
    assert count > 9, "it was the middle"
    cluster.wait_until_down(1)
    require_restored(synced_to, contents, where, run)
