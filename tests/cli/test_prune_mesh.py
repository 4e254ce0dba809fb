"""``vaultfs prune`` and ``verify`` of peers: what is signed is deleted, if all peers are there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vaultfs
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import ExitCode
from vaultfs.ids import SegmentName
from vaultfs.mesh.grants import Grant
from vaultfs.mesh.identity import format_peer_id
from vaultfs.sync.remote_layout import parse_head, parse_segment, segment_key

from .conftest import PASSWORD, Run, add_to_peers
from .served_peers import ServedPeers

DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def peers(held_by_peers: Path, tmp_path: Path, own_config: Path) -> Iterator[ServedPeers]:
    shutil.copytree(held_by_peers, tmp_path, dirs_exist_ok=True)
    served = ServedPeers.of(tmp_path)
    yield served
    served.close()


@pytest.fixture
def held(peers: ServedPeers, tmp_path: Path) -> Path:
    """The vault."""
    return tmp_path / "vault"


def heads(keys: set[str]) -> set[int]:
    """The numbers of the snapshots among some objects."""
    return {head.seq for key in keys if (head := parse_head(key)) is not None}


def prune(run: Run, *words: str | Path, bare: bool = False) -> list[str]:
    """What a prune that keeps the newest and waits for nothing says on standard error."""
    said = run("prune", *words, "--keep-last", "1", "--grace", "0s", "--quiet", bare=bare)
    assert said.code == 0, said.err
    return said.err.splitlines()


def test_what_is_given_up_is_deleted_from_all_peers(held: Path, peers: ServedPeers, run: Run) -> None:
    before = peers.keys("segments/")
    assert before[0] == before[1]
    assert prune(run, held, "mesh") == []
    for keys in peers.keys(""):
        assert heads(keys) == {3}
        assert not any(key.startswith("heads/condemned/") for key in keys)
    after = peers.keys("segments/")
    assert after[0] == after[1] < before[0]
    assert run("verify", held, "mesh", "--read-data", bare=True).code == 0


def test_the_grace_period_holds_for_peers_too(held: Path, peers: ServedPeers, run: Run) -> None:
    before = peers.keys("segments/")
    assert run("prune", held, "mesh", "--keep-last", "1", "--quiet").code == 0
    assert peers.keys("segments/") == before
    assert [heads(keys) for keys in peers.keys("")] == [{1, 2, 3}] * 2
    assert run("prune", held, "mesh", "--grace", "0s", "--quiet").code == 0
    assert [heads(keys) for keys in peers.keys("")] == [{3}] * 2


def test_by_url(held: Path, peers: ServedPeers, run: Run) -> None:
    prune(run, peers.url)
    assert [heads(keys) for keys in peers.keys("")] == [{3}] * 2


def test_while_the_vault_is_in_use(held: Path, peers: ServedPeers, run: Run) -> None:
    with vaultfs.open_vault(held, vaultfs.Secret.password(PASSWORD)):
        prune(run, held, "mesh")
    assert [heads(keys) for keys in peers.keys("")] == [{3}] * 2


def test_a_wrong_password_changes_nothing(held: Path, peers: ServedPeers, run: Run, tmp_path: Path) -> None:
    before = peers.keys("")
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "wrong").chmod(0o600)
    words = ["--keep-last", "1", "--grace", "0s", "--passfile", str(tmp_path / "wrong")]
    assert run("prune", held, "mesh", *words, bare=True).code == ExitCode.WRONG_PASSWORD
    assert run("prune", peers.url, *words, bare=True).code == ExitCode.WRONG_PASSWORD
    assert peers.keys("") == before


def test_a_dry_run_takes_no_password(held: Path, peers: ServedPeers, run: Run) -> None:
    before = peers.keys("")
    said = run("prune", held, "mesh", "--keep-last", "1", "--grace", "0s", "--dry-run", "--json", bare=True)
    assert said.code == 0
    assert json.loads(said.out)["deleted_snapshots"] == 2
    assert peers.keys("") == before


def test_no_password_for_others(backed_up: Path, run: Run) -> None:
    said = run("prune", backed_up, "disk", "--keep-last", "1")
    assert said.code == ExitCode.USAGE
    assert "--passfile goes with peers" in said.error_line


# --- peers that are away, or refuse


def test_while_a_peer_is_away_nothing_is_given_up(held: Path, peers: ServedPeers, run: Run) -> None:
    """It may have a snapshot that another machine has sent to it alone, and that needs what would be deleted."""
    before = peers.keys("")
    peers.peers[0].stop()
    said = run("prune", held, "mesh", "--keep-last", "1", "--grace", "0s", "--quiet")
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    assert "a prune takes all peers" in said.error_line
    assert "vaultfs peer remove" in said.error_line
    peers.peers[0].start()
    assert peers.keys("") == before
    prune(run, held, "mesh")
    assert [heads(each) for each in peers.keys("")] == [{3}] * 2


def test_while_a_peer_is_away_nothing_is_deleted(held: Path, peers: ServedPeers, run: Run) -> None:
    """It was there when the snapshots were given up."""
    assert run("prune", held, "mesh", "--keep-last", "1", "--quiet").code == 0
    before = peers.keys("")
    peers.peers[1].stop()
    assert run("prune", held, "mesh", "--grace", "0s", "--quiet").code == ExitCode.REMOTE_UNREACHABLE
    peers.peers[1].start()
    assert peers.keys("") == before
    assert run("prune", held, "mesh", "--grace", "0s", "--quiet").code == 0
    assert [heads(each) for each in peers.keys("")] == [{3}] * 2
    after = peers.keys("segments/")
    assert after[0] == after[1]
    assert run("verify", held, "mesh", "--read-data", bare=True).code == 0


def test_without_a_peer_that_is_gone_for_good(held: Path, peers: ServedPeers, run: Run) -> None:
    peers.peers[1].stop()
    assert run("peer", "remove", held, format_peer_id(peers.peers[1].identity.peer_id), bare=True).code == 0
    prune(run, held, "mesh")
    peers.peers[1].start()
    assert [heads(each) for each in peers.keys("")] == [{3}, {1, 2, 3}]


def test_a_peer_that_can_only_be_read_keeps_anything_from_being_deleted(
    held: Path, peers: ServedPeers, run: Run
) -> None:
    """No note can be put there, and a sync that reaches nobody else would not see that something is deleted."""
    before = peers.keys("")
    peers.peers[0].grants.add(Grant(peers.caller, None, "read", None, "", 0))
    said = run("prune", held, "mesh", "--keep-last", "1", "--grace", "0s", "--quiet")
    assert said.code == ExitCode.REMOTE_REFUSED
    assert "only read" in said.error_line
    assert str(peers.peers[0].address) in said.error_line
    assert peers.keys("") == before


# --- new devices


def rotate(run: Run, held: Path, passfile: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Rotate the key; with ``monkeypatch`` it is as if all were rewritten, and the older key gone."""
    rotated = run("key", "rotate", held, "--passfile", passfile, bare=True)
    assert rotated.code == 0, rotated.err
    if monkeypatch is not None:
        monkeypatch.setattr(Keyring, "epochs", property(lambda keyring: (keyring.epoch,)))


def test_as_long_as_the_older_key_is_there_it_signs(held: Path, peers: ServedPeers, run: Run, passfile: Path) -> None:
    rotate(run, held, passfile)
    add_to_peers(held, "of the new key")
    assert prune(run, held, "mesh") == []
    assert [heads(keys) for keys in peers.keys("")] == [{4}] * 2


def test_a_new_device_may_delete_after_seven_days(
    held: Path, peers: ServedPeers, run: Run, passfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the older key is gone, the new device is all there is; for seven days its orders do not count."""
    rotate(run, held, passfile, monkeypatch)
    add_to_peers(held, "of the new key")
    before = peers.keys("segments/")
    said = run("prune", held, "mesh", "--keep-last", "1", "--grace", "0s", "--quiet")
    assert said.code == ExitCode.REMOTE_REFUSED
    assert "seven days after its first snapshot" in said.error_line
    assert peers.keys("segments/") == before
    for peer in peers.peers:
        peer.skew_ns = 7 * DAY_NS - 3600 * 10**9
    said = run("prune", held, "mesh", "--keep-last", "1", "--grace", "0s", "--quiet")
    assert said.code == ExitCode.REMOTE_REFUSED
    for peer in peers.peers:
        peer.skew_ns = 7 * DAY_NS
    prune(run, held, "mesh")
    assert [heads(keys) for keys in peers.keys("")] == [{4}] * 2
    assert all(now < then for now, then in zip(peers.keys("segments/"), before, strict=True))


def test_a_new_key_that_no_peer_has_heard_of(
    held: Path, peers: ServedPeers, run: Run, passfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate(run, held, passfile, monkeypatch)
    before = peers.keys("segments/")
    said = run("prune", held, "mesh", "--keep-last", "1", "--grace", "0s", "--quiet")
    assert said.code == ExitCode.REMOTE_REFUSED
    assert peers.keys("segments/") == before


def test_what_a_peer_has_not_deleted_is_still_given_up_there(
    held: Path, peers: ServedPeers, run: Run, passfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One peer takes orders of the new device, the other not yet: a later prune goes on where this one has ended."""
    rotate(run, held, passfile, monkeypatch)
    add_to_peers(held, "of the new key")
    peers.peers[1].skew_ns = 7 * DAY_NS
    before = peers.keys("segments/")[0]
    (line,) = prune(run, held, "mesh")
    assert str(peers.peers[0].address) in line
    assert "a later prune deletes it there" in line
    keys = peers.keys("")
    assert [heads(each) for each in keys] == [{1, 2, 3, 4}, {4}]
    assert peers.keys("segments/")[0] == before
    assert [any(key.startswith("heads/condemned/") for key in each) for each in keys] == [True, False]
    peers.peers[0].skew_ns = 7 * DAY_NS
    assert run("prune", held, "mesh", "--grace", "0s", "--quiet").code == 0
    keys = peers.keys("")
    assert [heads(each) for each in keys] == [{4}] * 2
    assert not any(key.startswith("heads/condemned/") for each in keys for key in each)
    assert run("verify", held, "mesh", "--read-data", bare=True).code == 0


# --- verify


def a_segment(peers: ServedPeers) -> SegmentName:
    name = parse_segment(min(peers.keys("segments/")[0]))
    assert name is not None
    return name


def test_one_damaged_copy_is_no_problem_of_the_remote(held: Path, peers: ServedPeers, run: Run) -> None:
    peers.peers[0].change(segment_key(a_segment(peers)), b"damaged")
    assert run("verify", held, "mesh", "--read-data", bare=True).code == 0


def test_what_all_peers_have_damaged_is_found_and_sent_again(held: Path, peers: ServedPeers, run: Run) -> None:
    key = segment_key(a_segment(peers))
    for peer in peers.peers:
        (path,) = peer.root.rglob(key)
        peer.change(key, bytes(path.stat().st_size))
    said = run("verify", held, "mesh", "--read-data", bare=True)
    assert said.code == ExitCode.INTEGRITY
    assert key in said.out.decode()
    said = run("verify", held, "mesh", "--read-data", "--repair", bare=True)
    assert said.code == 0, said.out + said.err.encode()
    assert run("verify", held, "mesh", "--read-data", bare=True).code == 0


def test_what_no_peer_has_is_sent_again(held: Path, peers: ServedPeers, run: Run) -> None:
    key = segment_key(a_segment(peers))
    for peer in peers.peers:
        (path,) = peer.root.rglob(key)
        path.unlink()
    assert run("verify", held, "mesh", bare=True).code == ExitCode.INTEGRITY
    assert run("verify", held, "mesh", "--repair", bare=True).code == 0
    assert [key in keys for keys in peers.keys("segments/")] == [True, True]


def test_manifests_that_all_peers_have_damaged_are_sent_again(held: Path, peers: ServedPeers, run: Run) -> None:
    (key,) = (key for key in peers.keys("heads/")[0] if (head := parse_head(key)) is not None and head.seq == 3)
    for peer in peers.peers:
        peer.change(key, b"damaged")
    assert run("verify", held, "mesh", bare=True).code == ExitCode.INTEGRITY
    said = run("verify", held, "mesh", "--repair", bare=True)
    assert said.code == 0, said.out + said.err.encode()


def test_with_the_key(held: Path, peers: ServedPeers, run: Run) -> None:
    assert run("verify", held, "mesh", "--read-data", "--unlock").code == 0
