"""Servers that cannot be reached: nobody listens, nobody has the name, or nobody answers.  Exit code 17, in time."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cli.conftest import Run

from vaultfs.errors import ExitCode
from vaultfs.remotes.configured import load_remotes, save_remotes
from vaultfs.remotes.retrying import RetryPolicy
from vaultfs.remotes.s3 import _make_client as make_client
from vaultfs.storage.layout import VaultLayout

from .conftest import require_next_is_clean
from .s3_double import S3Double

TRIES = 3
Place = AbstractContextManager[tuple[str, Callable[[], int]]]
"""The URL of a server, and what counts how often somebody connected."""


@contextmanager
def nobody_listens() -> Iterator[tuple[str, Callable[[], int]]]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}", lambda: TRIES


@contextmanager
def nobody_has_the_name() -> Iterator[tuple[str, Callable[[], int]]]:
    yield "http://nobody.invalid", lambda: TRIES


@contextmanager
def nobody_answers() -> Iterator[tuple[str, Callable[[], int]]]:
    """Connections are made, and that is all: as behind a firewall that drops what follows."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        silent.setblocking(False)

        def count() -> int:
            found = 0
            while True:
                try:
                    silent.accept()[0].close()
                except BlockingIOError:
                    return found
                found += 1

        yield f"http://127.0.0.1:{silent.getsockname()[1]}", count


@pytest.mark.parametrize("place", [nobody_listens, nobody_has_the_name, nobody_answers])
def test_a_server_that_cannot_be_reached(
    copied: Path,
    double: S3Double,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[], Place],
) -> None:
    """With the patience of a test; how long the real one is, is tested without a server (remotes/test_retrying)."""
    monkeypatch.setattr("vaultfs.remotes.s3._make_client", make_client)
    monkeypatch.setattr("vaultfs.remotes.s3._CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr("vaultfs.remotes.s3._READ_TIMEOUT_S", 0.05)
    policy = RetryPolicy(tries=TRIES, first_wait_s=0.001)
    monkeypatch.setattr("vaultfs.remotes.urls.RetryPolicy", lambda: policy)
    layout = VaultLayout(copied)
    [remote] = load_remotes(layout)
    with place() as (endpoint, requests):
        save_remotes(layout, [replace(remote, options=remote.options | {"endpoint": endpoint})])
        options = [word.replace(double.endpoint, endpoint) for word in double.options]
        for words in (
            ["sync", copied],
            ["verify", copied, "s3"],
            ["restore", double.url, tmp_path / "back", *options],
            ["clone", double.url, tmp_path / "back", *options],
        ):
            said = run(*words, "--quiet", bare=words[0] in {"sync", "verify"})
            assert said.code == ExitCode.REMOTE_UNREACHABLE, said
            assert said.err.splitlines()[-1].endswith("check the network and try again")
            assert requests() == TRIES
        assert run("status", copied, bare=True).code == 0, "which asks nobody"
    assert double.asked == []
    assert not (tmp_path / "back").exists()
    save_remotes(layout, [remote])
    require_next_is_clean(copied, double, run)
