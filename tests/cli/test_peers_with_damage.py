"""Clones of what is damaged on all peers: another peer would help, and there is no vault here that could be checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode

from .conftest import Run
from .served_peers import ServedPeers


@pytest.fixture
def peers(held_by_peers: Path, tmp_path: Path, own_config: Path) -> Iterator[ServedPeers]:
    shutil.copytree(held_by_peers, tmp_path, dirs_exist_ok=True)
    served = ServedPeers.of(tmp_path)
    yield served
    served.close()


def spoil(root: Path) -> None:
    """Change some bytes in each segment."""
    for path in root.glob("*/segments/??/*"):
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[100:-100] = bytes(byte ^ 255 for byte in data[100:-100])
        path.write_bytes(data)


def test_of_damage_on_all_peers_the_advice_is_another_peer(peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    for peer in peers.peers:
        spoil(peer.root)
    said = run("clone", peers.url, tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    line = said.err.splitlines()[-1]
    assert "fsck" not in line
    assert f"vaultfs peer add {peers.vault_id.hex()} ID@HOST" in line
    assert f"vaultfs mesh audit {peers.vault_id.hex()} --all" in line


def test_of_damage_on_a_disk_it_is_another_remote(peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    peers.peers[0].stop()
    (directory,) = (peers.peers[0].root / peers.vault_id.hex(),)
    spoil(peers.peers[0].root)
    said = run("clone", directory.as_uri(), tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    line = said.err.splitlines()[-1]
    assert "fsck" not in line
    assert "clone from another remote, or an older snapshot" in line
