from __future__ import annotations

import functools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vaultfs.remotes.counting import CountingStore
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.remotes.limiting import LimitedStore, TokenBucket
from vaultfs.remotes.locations import parse
from vaultfs.remotes.opendal_services import make_store as make_opendal
from vaultfs.remotes.opendal_store import OpenDalStore
from vaultfs.remotes.retrying import RetryingStore, RetryPolicy
from vaultfs.remotes.s3 import S3Options, S3Store
from vaultfs.remotes.s3 import _make_client as make_client
from vaultfs.remotes.store import Store

from .drives.elsewhere import Elsewhere, elsewhere
from .drives.logged_in import log_in
from .drives.town import NAMES as DRIVES
from .drives.town import Town, living
from .faults import FaultyStore
from .memory_store import MemoryStore

START_PATIENCE_S = 60.0
BUCKET = "contract"

PLAIN = ("memory", "directory", "s3", "opendal-memory", "opendal-fs", "webdav", *DRIVES)
NOT_CONDITIONAL = {"webdav", *DRIVES}
"""These ignore ``if_absent``, and `probe` finds out."""
NOT_IN_A_RACE = {*NOT_CONDITIONAL, "opendal-fs"}
"""These look first, and then write."""
WRAPPED = ("retrying", "counting", "limited", "faulty", "all-over-directory", "all-over-s3")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server on loopback, with a bucket."""
    where = tmp_path_factory.mktemp("ministack")
    port = free_port()
    program = Path(sys.executable).with_name("ministack")
    environment = os.environ | {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        "HOME": str(where),
    }
    with (where / "log").open("wb") as log:
        process = subprocess.Popen([program], env=environment, stdout=log, stderr=log, cwd=where)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(endpoint, process)
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass
        yield endpoint
    finally:
        process.terminate()
        process.wait(START_PATIENCE_S)


def _wait_until_it_answers(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    while True:
        assert process.poll() is None, "the S3 server ended"
        try:
            with urllib.request.urlopen(endpoint, timeout=1):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def webdav_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("webdav")


@pytest.fixture(scope="session")
def webdav_endpoint(webdav_root: Path) -> Iterator[str]:
    """A WebDAV server on loopback, where a user named "user" has the password "very-secret"."""
    from cheroot import wsgi
    from wsgidav.wsgidav_app import WsgiDAVApp  # type: ignore[import-untyped]

    port = free_port()
    settings = {
        "provider_mapping": {"/": str(webdav_root)},
        "simple_dc": {"user_mapping": {"*": {"user": {"password": "very-secret"}}}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "lock_storage": False,
        "verbose": 0,
        "logging": {"enable": False},
    }
    server = wsgi.Server(("127.0.0.1", port), WsgiDAVApp(settings), numthreads=8)
    server.prepare()
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield f"127.0.0.1:{port}"
    server.stop()
    thread.join(START_PATIENCE_S)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Fakes of the three drives."""
    with living(tmp_path_factory.mktemp("town")) as town:
        yield town


@pytest.fixture(scope="session")
def near_town(town: Town) -> Iterator[Elsewhere]:
    """A process that takes the fakes for the drives."""
    with elsewhere(town.environment) as other:
        yield other


@functools.cache
def shared_client(options: S3Options) -> Any:
    """Making one takes as long as a hundred requests."""
    return make_client(options)


@pytest.fixture(autouse=True)
def own_credentials(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that the person who runs the tests has set up is used, and no login of another test.

    The process of ``near_town`` shares its logins with the tests that ask for it.
    """
    if "near_town" not in request.fixturenames:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "B2_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def make_store(
    s3_endpoint: str,
    webdav_endpoint: str,
    town: Town,
    near_town: Elsewhere,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[str], Store]]:
    """Makes empty stores by name.

    The servers are always asked for: started within a test, they would be found and ended with that test.
    """
    made: list[Store] = []
    monkeypatch.setattr("vaultfs.remotes.s3._make_client", shared_client)

    def directory() -> Path:
        path = scratch / f"remote-{secrets.token_hex(4)}"
        path.mkdir()
        return path

    def s3() -> S3Store:
        options = S3Options(s3_endpoint, region="us-east-1", path_style=True)
        return S3Store(BUCKET, f"tests/{secrets.token_hex(8)}", options)

    def opendal_fs() -> OpenDalStore:
        root = directory()
        return OpenDalStore("fs:", lambda: {"scheme": "fs", "root": str(root), "atomic_write_dir": str(directory())})

    def webdav() -> Store:
        options = {"username": "user", "password_command": "printf very-secret"}
        url = f"webdav+http://{webdav_endpoint}/{secrets.token_hex(8)}/in%20a%20folder"
        # This server answers 500 to a listing while another request deletes something.
        return RetryingStore(make_opendal(parse(url), options), RetryPolicy(first_wait_s=0.01))

    def drive(name: str) -> Store:
        town.forget()
        log_in(town.accounts[name])
        return near_town.open(f"{name}:Some%20Folder/{secrets.token_hex(8)}")

    def all_over(inner: Store) -> Store:
        policy = RetryPolicy(tries=2, first_wait_s=0.0)
        bucket = TokenBucket(1e12)
        return CountingStore(LimitedStore(RetryingStore(inner, policy), sending=bucket, receiving=bucket))

    makers: dict[str, Callable[[], Store]] = {
        "memory": MemoryStore,
        "directory": lambda: DirectoryStore(directory()),
        "s3": s3,
        "opendal-memory": lambda: OpenDalStore("memory:", lambda: {"scheme": "memory"}),
        "opendal-fs": opendal_fs,
        "webdav": webdav,
        "gdrive": lambda: drive("gdrive"),
        "dropbox": lambda: drive("dropbox"),
        "onedrive": lambda: drive("onedrive"),
        "retrying": lambda: RetryingStore(MemoryStore()),
        "counting": lambda: CountingStore(MemoryStore()),
        "limited": lambda: LimitedStore(MemoryStore(), sending=TokenBucket(1e12), receiving=TokenBucket(1e12)),
        "faulty": lambda: FaultyStore(MemoryStore()),
        "all-over-directory": lambda: all_over(DirectoryStore(directory())),
        "all-over-s3": lambda: all_over(s3()),
    }

    def make(name: str) -> Store:
        made.append(makers[name]())
        return made[-1]

    yield make
    for store in made:
        store.close()
        store.close()
    for path in scratch.glob("remote-*"):
        shutil.rmtree(path)


@pytest.fixture(params=PLAIN + WRAPPED)
def store(request: pytest.FixtureRequest, make_store: Callable[[str], Store]) -> Store:
    """Each kind of store, empty."""
    return make_store(request.param)


@pytest.fixture(params=[name for name in PLAIN + WRAPPED if name not in NOT_CONDITIONAL])
def conditional_store(request: pytest.FixtureRequest, make_store: Callable[[str], Store]) -> Store:
    """Each kind of store that can refuse to replace, empty."""
    return make_store(request.param)


@pytest.fixture(params=[name for name in PLAIN + WRAPPED if name not in NOT_IN_A_RACE])
def racing_store(request: pytest.FixtureRequest, make_store: Callable[[str], Store]) -> Store:
    """Each kind of store that can refuse to replace even in a race, empty."""
    return make_store(request.param)
