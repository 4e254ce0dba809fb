"""``vaultfs mesh replicate | status | repair | fetch`` with real peers on loopback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from vaultfs.cli.mesh_work import MeshWork, asked
from vaultfs.errors import ExitCode, IntegrityError
from vaultfs.ids import VaultId
from vaultfs.mesh.book import Book
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.identity import format_peer_id, short_peer_id
from vaultfs.mesh.places import book_path, vault_state_path
from vaultfs.mesh.standing import StandingFile
from vaultfs.mesh.store import mesh_url
from vaultfs.remotes.retrying import RetryPolicy
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Ledger

from .conftest import Run, damage, make_snapshot, read_file, write_file
from .mesh_household import Household, household

DATA = os.urandom(300_000)


@pytest.fixture(autouse=True)
def own_directories(own_state: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(scratch / name.lower()))


@pytest.fixture(scope="module")
def written(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with a file in a snapshot."""
    base = tmp_path_factory.mktemp("written")
    shutil.copytree(template, base / "vault")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        write_file(base / "vault", "/file", DATA)
        make_snapshot(base / "vault")
    return base / "vault"


@pytest.fixture
def vault(written: Path, scratch: Path) -> Path:
    """A copy of it where syncing costs nothing."""
    shutil.copytree(written, scratch / "vault")
    return scratch / "vault"


@pytest.fixture
def home(vault: Path, scratch: Path, run: Run) -> Iterator[Household]:
    """Three peers, and a vault with a snapshot that they have not yet."""
    with household(vault, scratch, run, 3, ("home", "home", "work")) as made:
        yield made


@pytest.fixture
def held(home: Household) -> Household:
    """The same, replicated."""
    said = home.mesh("replicate", "--quiet")
    assert said.code == 0, said.err
    return home


def standing_of(home: Household) -> StandingFile:
    return StandingFile(vault_state_path(VaultId(bytes.fromhex(home.vault_id))))


# --- replicate


def test_replicate_brings_everything_to_its_peers(home: Household, run: Run) -> None:
    code, said = home.mesh_json("replicate")
    assert code == 0
    assert said["sync"]["is_up_to_date"]
    assert said["mesh"]["is_safe"]
    assert said["mesh"]["segments_by_copies"][2] == said["mesh"]["needed_segments"] > 0
    for name in home.segments():
        assert len(home.copies(name)) in {0, 2}  # one that only the present needs is in no snapshot
    assert sum(len(home.copies(name)) == 2 for name in home.segments()) == said["mesh"]["needed_segments"]
    again = home.mesh("replicate", "--quiet")
    assert again.code == 0
    lines = again.out.decode().splitlines()
    assert lines[:2] == ["mesh: up to date", "nothing had to be copied"]
    assert "all have at least 2 copies" in lines[2]
    status = json.loads(run("status", home.vault, "--json", bare=True).out)
    (remote,) = status["backup"]["remotes"]
    assert (remote["is_complete"], remote["short_segments"]) == (True, 0)


def test_replicate_remembers_how_many_copies(held: Household) -> None:
    code, said = held.mesh_json("replicate", "--replicas", "3")
    assert code == 0
    assert said["mesh"]["copied_segments"] == said["mesh"]["needed_segments"]
    assert Book(book_path()).peers_of(VaultId(bytes.fromhex(held.vault_id))).replicas == 3
    code, said = held.mesh_json("replicate")
    assert (code, said["mesh"]["replicas"], said["mesh"]["copied_segments"]) == (0, 3, 0)
    said_four = held.mesh("replicate", "--quiet", "--replicas", "4")
    assert said_four.code == ExitCode.PARTIAL
    assert "there are to be 4 copies, and the vault has 3 peers" in said_four.err
    assert held.mesh("replicate", "--replicas", "0").code == ExitCode.USAGE


def test_replicate_with_a_peer_away_says_so(home: Household, run: Run) -> None:
    home.peers[0].stop()
    home.peers[1].stop()
    said = home.mesh("replicate", "--quiet")
    assert said.code == ExitCode.PARTIAL
    assert "with fewer than 2 copies" in said.err
    assert short_peer_id(home.peers[0].id) in said.err
    assert "cannot be reached" in said.err
    state = run("status", home.vault, bare=True)
    assert state.code == ExitCode.PARTIAL
    assert b"with too few copies" in state.out
    home.peers[0].start()
    home.peers[1].start()
    assert home.mesh("replicate", "--quiet").code == 0
    assert run("status", home.vault, bare=True).code == 0


def test_a_sync_tells_what_has_too_few_copies(home: Household, run: Run) -> None:
    home.peers[0].stop()
    home.peers[1].stop()
    said = run("sync", home.vault, "--quiet", bare=True)
    assert said.code == ExitCode.PARTIAL
    assert "with too few copies; 'vaultfs mesh status' tells why" in said.err
    assert b"up to date" in said.out
    home.peers[0].start()
    assert home.mesh("repair", "--quiet").code == 0
    assert run("sync", home.vault, "--quiet", bare=True).code == 0


def test_replicate_as_shares(home: Household, scratch: Path, run: Run) -> None:
    code, said = home.mesh_json("replicate", "--coding", "2/3")
    assert code == 0
    assert (said["mesh"]["replicas"], said["mesh"]["is_safe"]) == (3, True)
    home.lose(home.peers[1])
    said_status = home.mesh("status")
    assert said_status.code == ExitCode.PARTIAL
    assert "with fewer than 3 shares" in said_status.err
    assert b", by shares, any 2 of which are enough:" in said_status.out
    audited = home.mesh("audit").out
    assert (audited.count(b"proven\n"), audited.count(b"holds nothing")) == (2, 1)
    listed = run("peer", "list", home.vault, bare=True).out
    assert b": there are to be 3 shares, of which 2 are enough, of each segment" in listed
    code, done = home.mesh_json("repair")
    assert code == 0
    assert done["copied_segments"] == done["needed_segments"]
    home.peers[0].stop()
    said_clone = run("clone", f"mesh://{home.vault_id}", scratch / "clone", "--fill", "--quiet")
    assert said_clone.code == 0, said_clone.err
    assert read_file(scratch / "clone", "/file") == DATA
    assert home.mesh("replicate", "--coding", "2/3", "--replicas", "2").code == ExitCode.USAGE
    assert home.mesh("replicate", "--coding", "3/2").code == ExitCode.USAGE


def as_on_a_new_machine() -> None:
    """Forget what was said here: whether there are to be copies or shares."""
    book = book_path()
    stored = json.loads(book.read_text())
    for page in stored["vaults"]:
        page.pop("is_told", None)
        page |= {"replicas": 2, "coding": None}
    book.write_text(json.dumps(stored))


def test_a_new_machine_learns_that_there_are_shares(home: Household, scratch: Path, run: Run) -> None:
    assert home.mesh("replicate", "--coding", "2/3").code == 0
    as_on_a_new_machine()
    for known in (home.vault_id, home.vault):
        said = home.mesh("status", vault=known)
        assert said.code == 0, said.err
        assert b", by shares, any 2 of which are enough:" in said.out
    said_clone = run("clone", f"mesh://{home.vault_id}", scratch / "clone", "--fill", "--quiet")
    assert said_clone.code == 0, said_clone.err
    home.vault = scratch / "clone"
    assert read_file(home.vault, "/file") == DATA
    write_file(home.vault, "/more", DATA[::-1])
    make_snapshot(home.vault)
    said_sync = run("sync", home.vault, "--quiet", bare=True)
    assert said_sync.code == 0, said_sync.err
    code, state = home.mesh_json("status")
    assert (code, state["coding"], state["is_told"], state["kept_otherwise"]) == (0, "2/3", False, {})
    assert state["newest"]["seq"] == 2
    assert home.mesh_json("replicate")[1]["mesh"]["copied_segments"] == 0
    assert not any(list(peer.root.rglob("segments/??/*")) for peer in home.peers), "a whole copy"


def test_what_is_kept_otherwise_is_told(held: Household, run: Run) -> None:
    assert held.mesh("replicate", "--coding", "2/3").code == 0
    write_file(held.vault, "/more", DATA[::-1])
    make_snapshot(held.vault)
    assert run("sync", held.vault, "--quiet", bare=True).code == 0
    as_on_a_new_machine()
    path = min(each.name for peer in held.peers for each in peer.root.rglob("segments/??/*"))
    for peer in held.peers:
        for share in peer.root.rglob(f"shares/{path}/*"):
            share.unlink()
    said = held.mesh("status")
    assert said.code == ExitCode.PARTIAL
    assert (
        "peers have 1 segment only as whole copies; there are to be 2/3 shares, as they have most; 'vaultfs mesh "
        "replicate' with --coding or --replicas changes that"
    ) in said.err
    assert held.mesh("replicate", "--coding", "2/3", "--quiet").code == 0
    assert "whole copies" not in held.mesh("status").err
    code, said_json = held.mesh_json("replicate", "--replicas", "2", "--quiet")
    assert (code, said_json["mesh"]["coding"], said_json["mesh"]["is_told"]) == (0, None, True)


def test_status_of_a_peer_that_refuses(held: Household) -> None:
    held.peers[0].stop()
    for grant in held.peers[0].grants.all():
        held.peers[0].grants.remove(grant.peer, every=True)
    held.peers[0].start()
    said = held.mesh("status")
    assert b"refuses this machine" in said.out
    assert b"away" not in said.out


def test_a_peer_that_is_full_is_named(held: Household) -> None:
    for peer in held.peers:
        (grant,) = peer.grants.all()
        peer.grants.add(replace(grant, quota_bytes=1))
    assert "is full" not in held.mesh("status").err, "nothing is lacking"
    said = held.mesh("replicate", "--replicas", "3", "--quiet")
    assert said.code == ExitCode.PARTIAL
    assert said.err.count("is full: it needs a larger quota for this machine") == 3


def test_what_has_too_few_copies_is_not_mended_by_a_sync(home: Household, run: Run) -> None:
    assert b"'vaultfs sync' copies what is missing" in run("status", home.vault, bare=True).out
    for peer in home.peers[:2]:
        peer.stop()
    assert run("sync", home.vault, "--quiet", bare=True).code == ExitCode.PARTIAL
    assert b"no; 'vaultfs mesh replicate' copies what is missing" in run("status", home.vault, bare=True).out


def test_shares_instead_of_copies_and_back(held: Household) -> None:
    code, said = held.mesh_json("replicate", "--coding", "2/3")
    assert (code, said["mesh"]["replicas"]) == (0, 3)
    assert held.mesh_json("replicate")[1]["mesh"]["copied_segments"] == 0
    code, said = held.mesh_json("replicate", "--replicas", "3")
    assert (code, said["mesh"]["replicas"]) == (0, 3)
    assert said["mesh"]["copied_segments"] == said["mesh"]["needed_segments"]


def test_replicate_with_nobody_there(home: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.remotes.urls.RetryPolicy", lambda: RetryPolicy(tries=1))
    for peer in home.peers:
        peer.stop()
    code, document = home.mesh_json("replicate")
    assert (code, document["mesh"]) == (ExitCode.REMOTE_UNREACHABLE, None)


def test_replicate_makes_a_snapshot_if_asked(held: Household, passfile: Path) -> None:
    write_file(held.vault, "/more", b"more")
    said = held.mesh("replicate", "--snapshot", "--passfile", passfile, "--quiet")
    assert said.code == 0, said.err
    _, state = held.mesh_json("status")
    assert state["newest"]["seq"] == 2


def test_a_vault_without_peers_or_remote(vault: Path, run: Run, home: Household, scratch: Path) -> None:
    other = scratch / "other"
    shutil.copytree(vault, other)
    (other / "remotes.json").unlink()
    said = run("mesh", "replicate", other, bare=True)
    assert (said.code, "has no remote that is its peers" in said.err) == (ExitCode.USAGE, True)
    for verb in ("status", "repair"):
        said = run("mesh", verb, "00" * 15 + "01", bare=True)
        assert (said.code, "has no peers" in said.error_line) == (ExitCode.USAGE, True)


# --- status


def test_status_tells_what_each_peer_has(held: Household) -> None:
    code, state = held.mesh_json("status")
    assert code == 0
    assert state["is_safe"]
    assert state["is_verified"]
    assert state["zones"] == 2
    assert [peer["zone"] for peer in state["peers"]] == ["home", "home", "work"]
    assert all(peer["is_present"] and peer["newest"] == 1 and not peer["lacks_header"] for peer in state["peers"])
    assert sum(peer["segments"] for peer in state["peers"]) == 2 * state["needed_segments"]
    assert state["pool"]["opened"] >= 3
    assert state["pool"]["leases"] == 0
    assert state["pool"]["failing"] == []
    said = held.mesh("status")
    assert said.out.decode().splitlines()[-1] == "safe to close: yes"
    assert said.err == ""


def test_status_with_a_peer_away(held: Household) -> None:
    held.peers[2].stop()
    code, state = held.mesh_json("status")
    assert code == ExitCode.PARTIAL
    away = state["peers"][2]
    assert (away["is_present"], away["newest"]) == (False, None)
    assert away["seen_ns"] > 0
    assert away["segments"] == state["needed_segments"]
    assert "cannot be reached" in away["error"]
    assert state["segments_by_copies"][1] == state["needed_segments"]
    assert state["missing_bytes"] == state["needed_bytes"]
    assert state["lost"] == []
    assert [each["id"] for each in state["pool"]["failing"]] == [format_peer_id(held.peers[2].id)]
    said = held.mesh("status")
    assert said.code == ExitCode.PARTIAL
    assert b"away for less than a minute" in said.out
    assert said.out.decode().splitlines()[-1] == "safe to close: no"
    held.peers[2].start()
    assert held.mesh("status").code == 0


def test_status_tells_what_peers_have_witnessed(held: Household) -> None:
    _, state = held.mesh_json("status")
    assert [(peer["witnessed"], peer["has_fallen_back"]) for peer in state["peers"]] == [(1, False)] * 3


def test_status_with_a_peer_that_was_restored_from_an_old_backup(held: Household, passfile: Path) -> None:
    peer = held.peers[0]
    peer.stop()
    shutil.copytree(peer.root / "store", peer.root / "backup", symlinks=True)
    peer.start()
    write_file(held.vault, "/more", b"more")
    said = held.mesh("replicate", "--snapshot", "--passfile", passfile, "--quiet")
    assert said.code == 0, said.err
    assert held.mesh("status").code == 0
    peer.stop()
    shutil.rmtree(peer.root / "store")
    (peer.root / "backup").rename(peer.root / "store")
    peer.start()
    said = held.mesh("status")
    assert said.code == ExitCode.PARTIAL
    warning = (
        "has seen snapshot 2 once, and now says that it has seen only snapshot 1: it was restored from an old backup"
    )
    assert [short_peer_id(peer.id) in line for line in said.err.splitlines() if warning in line] == [True]
    _, state = held.mesh_json("status")
    assert [(each["witnessed"], each["has_fallen_back"]) for each in state["peers"]] == [
        (1, True),
        (2, False),
        (2, False),
    ]
    assert held.mesh("repair", "--quiet").code == 0
    assert held.mesh("status").err == ""


def test_status_when_what_was_witnessed_is_gone(held: Household, passfile: Path) -> None:
    """Whoever can delete on all disks cannot make the peers forget what they have seen."""
    write_file(held.vault, "/more", b"more")
    assert held.mesh("replicate", "--snapshot", "--passfile", passfile, "--quiet").code == 0
    for peer in held.peers:
        peer.stop()
        for head in (peer.root / "store").rglob("heads/*/0000000002-*"):
            head.unlink()
        peer.start()
    said = held.mesh("status", vault=held.vault_id)
    warnings = [line for line in said.err.splitlines() if "says that it has seen snapshot 2, and no peer" in line]
    assert len(warnings) == 3


def test_status_by_the_id_alone(held: Household) -> None:
    shutil.rmtree(held.vault)
    code, state = held.mesh_json("status", vault=held.vault_id)
    assert code == 0
    assert not state["is_verified"]
    assert state["needed_segments"] > 0
    said = held.mesh("status", vault=held.vault_id)
    assert said.code == 0
    assert "nobody has verified" in said.err


def test_status_of_a_snapshot_that_is_nowhere(held: Household) -> None:
    write_file(held.vault, "/more", b"more")
    make_snapshot(held.vault)
    said = held.mesh("status")
    assert said.code == ExitCode.PARTIAL
    assert "snapshot 2 " in said.err
    assert "vaultfs mesh replicate" in said.err


# --- repair


def test_repair_of_a_peer_that_has_lost_its_disk(held: Household) -> None:
    victim = held.peers[2]
    held.lose(victim)
    _, before = held.mesh_json("status")
    assert before["segments_by_copies"][1] == before["needed_segments"]
    code, plan = held.mesh_json("repair", "--dry-run")
    assert code == ExitCode.PARTIAL
    assert plan["planned_segments"] == before["needed_segments"]
    assert plan["copied_segments"] == 0
    said = held.mesh("repair", "--quiet")
    assert said.code == 0, said.err
    assert said.err == ""
    assert said.out.decode().startswith(f"copied {before['needed_segments']} segments")
    assert "sent 1 manifest and vault.json" in said.out.decode()
    code, after = held.mesh_json("status")
    assert (code, after["peers"][2]["segments"]) == (0, after["needed_segments"])


def test_repair_by_the_id_alone_from_other_peers(held: Household, scratch: Path) -> None:
    shutil.rmtree(held.vault)
    held.lose(held.peers[2])
    code, done = held.mesh_json("repair", vault=held.vault_id)
    assert code == 0
    assert done["copied_segments"] == done["needed_segments"]
    assert not list((scratch / "cache" / "vaultfs").glob("tmp*"))


def test_repair_with_grace_waits_for_who_was_there_lately(held: Household) -> None:
    held.peers[2].stop()
    code, done = held.mesh_json("repair", "--grace", "1h")
    assert (code, done["copied_segments"]) == (0, 0)
    code, done = held.mesh_json("repair", "--bwlimit", "100M")
    assert code == 0
    assert done["copied_segments"] == done["needed_segments"]


def test_repair_names_what_is_lost(held: Household, run: Run) -> None:
    name = min(name for name in held.segments() if held.copies(name))
    for peer in held.copies(name):
        peer.path(VaultId(bytes.fromhex(held.vault_id)), name).unlink()
    file = held.vault / "segments" / name[:2] / f"{name}.seg"
    content = file.read_bytes()
    file.unlink()
    code, done = held.mesh_json("repair")
    assert (code, done["lost"]) == (ExitCode.INTEGRITY, [name])
    said = held.mesh("repair", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert f"lost: the segment {name}" in said.err
    file.write_bytes(content)
    assert held.mesh("repair", "--quiet").code == 0
    assert len(held.copies(name)) == 2


def test_repair_does_not_count_who_failed_an_audit(held: Household) -> None:
    file = standing_of(held)
    standing = file.load()
    standing.note(held.peers[2].id, failed_audit_ns=7)
    file.save(standing)
    said = held.mesh("status")
    assert said.code == ExitCode.PARTIAL
    assert "failed an audit" in said.err
    code, done = held.mesh_json("repair")
    assert code == 0
    assert done["copied_segments"] == done["needed_segments"]


def test_repair_without_anybody(held: Household) -> None:
    for peer in held.peers:
        peer.stop()
    said = held.mesh("repair", "--quiet")
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    assert "cannot be reached" in said.error_line


@pytest.mark.parametrize("verb", ["repair", "replicate"])
def test_two_at_once(held: Household, verb: str) -> None:
    vault_id = VaultId(bytes.fromhex(held.vault_id))
    with Ledger.of(vault_id, "mesh").locked(mesh_url(vault_id)):
        said = held.mesh(verb, "--quiet")
    assert said.code == ExitCode.LOCKED
    assert "wait until it is done" in said.err


def test_whoever_waits_is_woken_however_it_ends(home: Household) -> None:
    work = MeshWork.of(str(home.vault))
    woken: list[str] = []

    async def succeed(_client: MeshClient) -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async def fail(_client: MeshClient) -> int:
        await trio.lowlevel.checkpoint()
        raise IntegrityError("wrong")

    assert asked(work, succeed, hurry=lambda: woken.append("success")) == 7
    with pytest.raises(IntegrityError, match="wrong"):
        asked(work, fail, hurry=lambda: woken.append("failure"))
    assert woken == ["success", "failure"]


# --- fetch


def test_fetch_brings_back_what_is_missing_or_damaged(held: Household) -> None:
    layout = VaultLayout(held.vault)
    said = held.mesh("fetch", "--quiet")
    assert (said.code, said.out) == (0, b"nothing had to be fetched\n")
    name = next(each for each in layout.sealed_names() if held.copies(each))
    layout.sealed_path(name).unlink()
    code, done = held.mesh_json("fetch")
    assert (code, done["segments"], done["missing"]) == (0, 1, [])
    assert read_file(held.vault, "/file") == DATA
    damage(held.vault, "/file", 5)
    assert held.mesh_json("fetch")[1]["segments"] == 0
    code, done = held.mesh_json("fetch", "--check")
    assert (code, done["segments"]) == (0, 1)
    assert read_file(held.vault, "/file") == DATA


def test_fetch_goes_on_without_what_nobody_has(held: Household) -> None:
    layout = VaultLayout(held.vault)
    names = [each for each in layout.sealed_names() if held.copies(each)]
    assert len(names) > 1
    for peer in held.copies(names[0]):
        peer.path(VaultId(bytes.fromhex(held.vault_id)), names[0]).unlink()
    for name in names:
        layout.sealed_path(name).unlink()
    said = held.mesh("fetch", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert f"the segment {names[0]} cannot be had" in said.error_line
    assert [each for each in names if layout.sealed_path(each).exists()] == names[1:]


# --- all of it


def test_a_vault_comes_back_from_two_peers_of_three(held: Household, run: Run, scratch: Path) -> None:
    held.lose(held.peers[0])
    assert held.mesh("repair", "--quiet").code == 0
    held.peers[2].stop()
    assert held.mesh("repair", "--quiet").code == 0
    shutil.rmtree(held.vault)
    said = run("clone", f"mesh://{held.vault_id}", scratch / "clone", "--quiet")
    assert said.code == 0, said.err
    assert read_file_of_clone(run, scratch / "clone") == DATA
    home = Household(scratch / "clone", held.peers, run)
    code, done = home.mesh_json("fetch")
    assert code == 0
    assert done["segments"] > 0
    for peer in held.peers:
        peer.stop()
    assert read_file(scratch / "clone", "/file") == DATA


def read_file_of_clone(run: Run, clone: Path) -> bytes:
    said = run("cat", clone, "/file")
    assert said.code == 0, said.err
    return said.out
