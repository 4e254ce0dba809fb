"""One cluster for all tests of this package; each test gets a place of its own in its bucket."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remotes.conftest import BUCKET, shared_client
from vaultfs.remotes.s3 import S3Options, S3Store
from vaultfs.remotes.s3 import _make_client as make_client

from .cluster import ACCESS_KEY, SECRET_KEY, Cluster, missing_programs


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with a bucket, below a short path: its sockets have addresses of at most 107 bytes."""
    missing = missing_programs()
    if missing:
        pytest.fail(f"--ceph was given, but these are not installed: {', '.join(missing)}; use ./scripts/test --ceph")
    root = Path(tempfile.mkdtemp(prefix="vaultfs-ceph-"))
    running = Cluster(root)
    try:
        running.start()
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            client = make_client(options(running))
            client.create_bucket(Bucket=BUCKET)
            client.close()
        yield running
    finally:
        running.stop()
        shutil.rmtree(root)


def options(cluster: Cluster) -> S3Options:
    """How to reach it."""
    return S3Options(cluster.endpoint, region="us-east-1", path_style=True)


@pytest.fixture
def prefix() -> str:
    return f"tests/{secrets.token_hex(8)}"


@pytest.fixture
def store(cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    monkeypatch.setattr("vaultfs.remotes.s3._make_client", shared_client)
    made = S3Store(BUCKET, prefix, options(cluster))
    yield made
    made.close()


@pytest.fixture
def conditional_store(store: Any) -> Any:
    return store


@pytest.fixture
def racing_store(store: Any) -> Any:
    return store
