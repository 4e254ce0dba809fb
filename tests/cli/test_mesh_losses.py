"""Peers that are removed, have lost what they had, or have only what is old: nothing says that all is safe or right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vaultfs.errors import ExitCode
from vaultfs.mesh.identity import format_peer_id

from .conftest import Run, make_snapshot, write_file
from .mesh_household import Household, household


@pytest.fixture(autouse=True)
def own_directories(own_state: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(scratch / name.lower()))


@pytest.fixture
def home(template: Path, scratch: Path, run: Run) -> Iterator[Household]:
    """Two peers, and a vault with a snapshot that they have not yet."""
    vault = scratch / "vault"
    shutil.copytree(template, vault)
    write_file(vault, "/file", os.urandom(300_000))
    make_snapshot(vault)
    with household(vault, scratch, run, 2) as made:
        yield made


def backup(home: Household, run: Run) -> dict[str, Any]:
    """What 'vaultfs status' says of the remotes."""
    found: dict[str, Any] = json.loads(run("status", home.vault, "--json", bare=True).out)["backup"]
    return found


def sync(home: Household, run: Run, *words: str) -> tuple[int, dict[str, Any]]:
    said = run("sync", home.vault, "--json", *words, bare=True)
    return said.code, json.loads(said.out)["remotes"][0]


def with_one_copy(home: Household, run: Run) -> set[str]:
    """Bring everything to the peers, once; the segments."""
    assert home.mesh("replicate", "--replicas", "1", "--quiet").code == 0
    assert sync(home, run)[0] == 0
    assert backup(home, run)["is_complete"]
    segments = home.segments()
    assert all(len(home.copies(name)) == 1 for name in segments)
    return segments


def test_what_only_a_removed_peer_had_is_not_said_to_be_safe_and_sent_again(home: Household, run: Run) -> None:
    segments = with_one_copy(home, run)
    gone = home.copies(min(segments))[0]
    (left,) = (peer for peer in home.peers if peer is not gone)
    had = [name for name in segments if gone.has(name)]
    assert run("peer", "remove", home.vault, format_peer_id(gone.id), bare=True).code == 0
    state = backup(home, run)
    assert not state["is_complete"]
    assert state["remotes"][0]["short_segments"] == len(had)
    code, outcome = sync(home, run)
    assert code == 0
    assert outcome["segments"] == len(had)
    assert all(left.has(name) for name in segments)
    assert backup(home, run)["is_complete"]
    assert sync(home, run)[1]["segments"] == 0


def test_what_only_a_peer_had_that_has_lost_its_disk_is_sent_again(home: Household, run: Run) -> None:
    segments = with_one_copy(home, run)
    lost = home.copies(min(segments))[0]
    had = [name for name in segments if lost.has(name)]
    home.lose(lost)
    code, outcome = sync(home, run, "--dry-run")
    assert (code, outcome["segments"]) == (0, len(had))
    code, outcome = sync(home, run)
    assert (code, outcome["segments"]) == (0, len(had))
    assert all(home.copies(name) for name in segments)
    assert home.mesh("status").code == ExitCode.PARTIAL  # manifests and vault.json are a repair's
    assert sync(home, run)[1]["segments"] == 0


def test_a_copy_less_is_told(home: Household, run: Run) -> None:
    assert home.mesh("replicate", "--quiet").code == 0
    assert sync(home, run)[0] == 0
    segments = home.segments()
    home.lose(home.peers[0])
    code, outcome = sync(home, run)
    assert (code, outcome["segments"]) == (ExitCode.PARTIAL, 0)
    state = backup(home, run)
    assert not state["is_complete"]
    assert state["remotes"][0]["short_segments"] == len(segments)
    assert sync(home, run)[0] == ExitCode.PARTIAL
    assert home.mesh("repair", "--quiet").code == 0
    assert sync(home, run)[0] == 0
    assert backup(home, run)["is_complete"]


def test_a_copy_less_by_a_removal_is_told(home: Household, run: Run) -> None:
    assert home.mesh("replicate", "--quiet").code == 0
    segments = home.segments()
    assert run("peer", "remove", home.vault, format_peer_id(home.peers[1].id), bare=True).code == 0
    assert backup(home, run)["remotes"][0]["short_segments"] == len(segments)
    assert sync(home, run)[0] == ExitCode.PARTIAL


def test_a_peer_that_is_away_has_lost_nothing(home: Household, run: Run) -> None:
    segments = with_one_copy(home, run)
    away = home.copies(min(segments))[0]
    away.stop()
    code, outcome = sync(home, run)
    assert (code, outcome["segments"]) == (0, 0)
    assert backup(home, run)["is_complete"]


def test_a_peer_that_has_missed_a_change_of_the_password(home: Household, run: Run, scratch: Path) -> None:
    assert home.mesh("replicate", "--quiet").code == 0
    home.peers[1].stop()
    new = scratch / "new"
    new.write_text("another password\n")
    new.chmod(0o600)
    assert run("passwd", home.vault, "--new-passfile", new).code == 0
    assert sync(home, run)[0] == 0
    home.peers[0].stop()
    home.peers[1].start()

    def restored(*words: str | Path, bare: bool = False) -> tuple[int, str]:
        said = run("restore", f"mesh://{home.vault_id}", scratch / "restored", "--quiet", *words, bare=bare)
        return said.code, said.err

    code, text = restored("--passfile", new, bare=True)
    assert code == ExitCode.WRONG_PASSWORD
    assert "peers that were away then have the one before" in text
    home.peers[0].start()
    code, text = restored()
    assert code == ExitCode.WRONG_PASSWORD, "the old one: somebody has the new header"
    assert restored("--passfile", new, bare=True)[0] == 0
