"""``vaultfs mesh audit`` of a vault kept as shares, over connections to real peers; and what comes of a failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mesh_store.peers import RunningPeer

from vaultfs.errors import ExitCode
from vaultfs.mesh.identity import format_peer_id, short_peer_id
from vaultfs.mesh.share_keys import parse_share_key

from .conftest import Run, make_snapshot, write_file
from .mesh_household import Household, household

pytestmark = pytest.mark.usefixtures("scratch_directories", "no_scrub")


@pytest.fixture(scope="module")
def written(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("written")
    shutil.copytree(template, base / "vault")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        for label in ("first", "second", "third"):
            write_file(base / "vault", f"/{label}", os.urandom(200_000))
            make_snapshot(base / "vault", label)
    return base / "vault"


@pytest.fixture
def home(written: Path, scratch: Path, run: Run) -> Iterator[Household]:
    """A vault as 2/4 shares on five peers."""
    shutil.copytree(written, scratch / "vault")
    with household(scratch / "vault", scratch, run, 5) as made:
        said = made.mesh("replicate", "--coding", "2/4", "--quiet")
        assert said.code == 0, said.err
        yield made


def shares_at(peer: RunningPeer) -> list[Path]:
    return sorted(peer.root.rglob("shares/*/*"))


def rot(home: Household) -> tuple[RunningPeer, str]:
    """One share of one peer is damaged on its disk; which."""
    peer = next(each for each in home.peers if shares_at(each))
    path = shares_at(peer)[0]
    path.chmod(0o600)
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    share = parse_share_key("/".join(path.parts[-3:]))
    assert share is not None
    return peer, f"share {share.index} of segment {share.coded.name[:16]}: it has other bytes than those of this share"


@pytest.mark.parametrize("is_here", [True, False])
def test_honest_peers(home: Household, is_here: bool) -> None:
    vault = home.vault if is_here else home.vault_id
    said = home.mesh("audit", vault=vault)
    assert (said.code, said.err) == (0, "")
    text = said.out.decode()
    for peer in home.peers:
        (row,) = (line for line in text.splitlines() if line.startswith(short_peer_id(peer.id)))
        assert f"{len(shares_at(peer))} shares, " in row
        assert row.endswith("200  proven")
    assert "A peer that had lost 1 % of the shares it claims would have been found for certain." in text
    code, found = home.mesh_json("audit", "--all", vault=vault)
    assert code == 0
    for peer, told in zip(home.peers, found["peers"], strict=True):
        held = shares_at(peer)
        assert told["id"] == format_peer_id(peer.id)
        assert (told["claimed_segments"], told["claimed_shares"], told["proven"]) == (0, len(held), len(held))
        assert told["claimed_share_bytes"] == sum(path.stat().st_size for path in held)
    total = sum(len(shares_at(peer)) for peer in home.peers)
    assert found["proof_bytes"] <= total * (133 + 32) + 5 * 2 * 80
    assert found["fetched_bytes"] <= (0 if is_here else len(home.segments()) * 2 * 4096)


@pytest.mark.parametrize("is_here", [True, False])
def test_a_share_that_rotted_is_found_and_made_again_elsewhere(home: Household, is_here: bool) -> None:
    vault = home.vault if is_here else home.vault_id
    bad, reason = rot(home)
    said = home.mesh("audit", vault=vault)
    assert said.code == ExitCode.INTEGRITY
    assert f"peer {short_peer_id(bad.id)}: {reason}" in said.out.decode()
    assert "'vaultfs mesh repair' stores its share elsewhere" in said.err
    status = home.mesh("status", vault=vault)
    assert status.code == ExitCode.PARTIAL
    assert b"failed an audit" in status.out
    assert "with fewer than 4 shares" in status.err
    code, done = home.mesh_json("repair", vault=vault)
    assert (code, done["short_segments"]) == (0, 0)
    assert done["copied_segments"] == len(shares_at(bad))
    others = [peer for peer in home.peers if peer is not bad]
    for name in home.segments():
        keys = {path.name for peer in others for path in peer.root.rglob(f"shares/{name}/*")}
        assert len(keys) == 4
    code, found = home.mesh_json("audit", vault=vault)
    assert code == ExitCode.INTEGRITY
    assert [each["verdict"] for each in found["peers"] if each["id"] != format_peer_id(bad.id)] == ["proven"] * 4


def test_a_peer_with_an_older_vaultfs_is_named(home: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.mesh.conversation.FEATURES", frozenset({"shares", "witness"}))
    said = home.mesh("audit")
    assert said.code == ExitCode.ERROR
    assert "runs an older vaultfs, which cannot prove shares" in said.error_line


def test_a_peer_away_for_a_short_time_is_waited_for(home: Household) -> None:
    gone = next(peer for peer in home.peers if shares_at(peer))
    before = sum(len(shares_at(peer)) for peer in home.peers)
    gone.stop()
    assert home.mesh("status").code == ExitCode.PARTIAL
    code, done = home.mesh_json("repair", "--grace", "1h")
    assert (code, done["copied_segments"], done["short_segments"]) == (0, 0, 0)
    code, done = home.mesh_json("repair")
    assert (code, done["short_segments"]) == (0, 0)
    assert done["copied_segments"] == len(shares_at(gone))
    assert sum(len(shares_at(peer)) for peer in home.peers) == before + done["copied_segments"]
