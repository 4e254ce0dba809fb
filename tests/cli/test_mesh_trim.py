"""``vaultfs mesh repair --trim`` with real peers: surplus goes by signed orders, and nothing that is needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mesh_store.peers import RunningPeer

from vaultfs.errors import ExitCode
from vaultfs.mesh.client import MeshClient

from .conftest import Run, Said, make_snapshot, write_file
from .mesh_household import Household, household

DATA = os.urandom(300_000)

pytestmark = pytest.mark.usefixtures("scratch_directories", "no_scrub")


@pytest.fixture(scope="module")
def written(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("written")
    shutil.copytree(template, base / "vault")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        write_file(base / "vault", "/file", DATA)
        make_snapshot(base / "vault")
    return base / "vault"


@pytest.fixture
def home(written: Path, scratch: Path, run: Run) -> Iterator[Household]:
    """A vault, and five peers that have nothing of it yet."""
    shutil.copytree(written, scratch / "vault")
    with household(scratch / "vault", scratch, run, 5) as made:
        yield made


def counts(home: Household) -> list[int]:
    """How many copies there are of each segment."""
    return [sum(bool(list(peer.root.rglob(f"segments/??/{name}"))) for peer in home.peers) for name in home.segments()]


def shares(home: Household) -> list[str]:
    found = [path for peer in home.peers for path in peer.root.rglob("shares/*/*")]
    return sorted(str(path.relative_to(path.parents[2])) for path in found)


def trim(home: Household, passfile: Path, *words: str) -> Said:
    return home.mesh("repair", "--trim", "--passfile", passfile, "--quiet", *words)


def test_copies_that_are_too_many_go(home: Household, passfile: Path) -> None:
    assert home.mesh("replicate", "--replicas", "4", "--quiet").code == 0
    said = home.mesh("replicate", "--replicas", "2", "--quiet")
    assert said.code == 0
    assert "too many" in said.err
    assert "'vaultfs mesh repair --trim' deletes them" in said.err
    segments = len(home.segments())
    code, planned = home.mesh_json("repair", "--trim", "--dry-run")
    assert (code, planned["trimmed_copies"], planned["trimmed_segments"]) == (0, 2 * segments, segments)
    assert f"would delete {2 * segments} copies too many" in home.mesh("repair", "--trim", "--dry-run").out.decode()
    assert counts(home) == [4] * segments
    said = trim(home, passfile)
    assert (said.code, said.err) == (0, "")
    assert f"deleted {2 * segments} copies too many" in said.out.decode()
    assert counts(home) == [2] * segments
    assert home.mesh("status").code == 0
    assert "there is nothing to delete" in trim(home, passfile).out.decode()


def test_a_peer_that_comes_back_after_a_repair(home: Household, passfile: Path) -> None:
    assert home.mesh("replicate", "--coding", "2/4", "--quiet").code == 0
    before = shares(home)
    gone = next(peer for peer in home.peers if list(peer.root.rglob("shares/*/*")))
    gone.stop()
    assert home.mesh("repair", "--quiet").code == 0
    gone.start()
    more = len(shares(home)) - len(before)
    assert more > 0
    code, done = home.mesh_json("repair", "--trim", "--passfile", passfile)
    assert (code, done["trimmed_shares"], done["trimmed_copies"], done["untrimmed_segments"]) == (0, more, 0, 0)
    assert shares(home) == before


def test_copies_go_where_there_are_shares_now_and_back(home: Household, passfile: Path) -> None:
    assert home.mesh("replicate", "--replicas", "3", "--quiet").code == 0
    assert home.mesh("replicate", "--coding", "2/4", "--quiet").code == 0
    segments = len(home.segments())
    code, done = home.mesh_json("repair", "--trim", "--passfile", passfile)
    assert (code, done["trimmed_copies"], done["trimmed_shares"]) == (0, 3 * segments, 0)
    assert counts(home) == [0] * segments
    assert home.mesh("replicate", "--replicas", "2", "--quiet").code == 0
    code, done = home.mesh_json("repair", "--trim", "--passfile", passfile)
    assert (code, done["trimmed_copies"], done["trimmed_shares"]) == (0, 0, 4 * segments)
    assert (counts(home), shares(home)) == ([2] * segments, [])
    assert home.mesh("audit").code == 0


def test_without_the_vault_here_peers_prove_to_each_other(home: Household, passfile: Path) -> None:
    assert home.mesh("replicate", "--replicas", "3", "--quiet").code == 0
    assert home.mesh("replicate", "--replicas", "2", "--quiet").code == 0
    segments = len(home.segments())
    said = home.mesh("repair", "--trim", "--passfile", passfile, "--json", vault=home.vault_id)
    assert (said.code, json.loads(said.out)["trimmed_copies"]) == (0, segments)
    assert counts(home) == [2] * segments


def test_a_damaged_copy_keeps_the_others(home: Household, passfile: Path) -> None:
    assert home.mesh("replicate", "--replicas", "3", "--quiet").code == 0
    assert home.mesh("replicate", "--replicas", "2", "--quiet").code == 0
    for peer in home.peers:
        for path in peer.root.rglob("segments/??/*"):
            path.write_bytes(bytes(path.stat().st_size))
    said = trim(home, passfile)
    assert said.code == ExitCode.INTEGRITY
    assert "nothing was deleted" in said.out.decode()
    assert "it has other bytes than those of this segment" in said.err
    assert counts(home) == [3] * len(home.segments())
    assert b"failed an audit" in home.mesh("status").out


def test_a_peer_that_is_lost_while_others_are_trimmed_is_made_good(
    home: Household, passfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after its last answer and before the order to another: its copies are made anew at once."""
    assert home.mesh("replicate", "--replicas", "3", "--quiet").code == 0
    assert home.mesh("replicate", "--replicas", "2", "--quiet").code == 0
    original = MeshClient.delete
    dead: list[RunningPeer] = []

    async def delete(self: MeshClient, peer, vault, keys, sign):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if not dead:
            keeper = next(each for each in home.peers if each.id != peer and list(each.root.rglob("segments/??/*")))
            keeper.stop()
            dead.append(keeper)
        return await original(self, peer, vault, keys, sign)

    monkeypatch.setattr(MeshClient, "delete", delete)
    code, done = home.mesh_json("repair", "--trim", "--passfile", passfile)
    assert len(dead) == 1
    assert done["short_segments"] == 0, done
    assert code in {ExitCode.OK, ExitCode.PARTIAL}
    living = [peer for peer in home.peers if peer is not dead[0]]
    for name in home.segments():
        assert sum(peer.has(name) for peer in living) >= 2


def test_peers_that_refuse_the_order_are_named(home: Household, passfile: Path) -> None:
    """They do not remember who the vault's device is, as after their disks were half restored."""
    assert home.mesh("replicate", "--replicas", "3", "--quiet").code == 0
    assert home.mesh("replicate", "--replicas", "2", "--quiet").code == 0
    for peer in home.peers:
        peer.stop()
        for path in peer.root.rglob(".mesh/record.json"):
            path.unlink()
        peer.start()
    code, done = home.mesh_json("repair", "--trim", "--passfile", passfile)
    assert (code, done["trimmed_copies"]) == (ExitCode.PARTIAL, 0)
    assert all("may not delete here yet" in text for text in done["trim_errors"].values())
    assert done["trim_errors"]
    assert counts(home) == [3] * len(home.segments())


def test_it_takes_a_password_and_a_number(home: Household, passfile: Path, scratch: Path) -> None:
    untold = trim(home, passfile)
    assert untold.code == ExitCode.USAGE
    assert "nobody has said on this machine how many copies or shares there are to be" in untold.err
    assert home.mesh("replicate", "--replicas", "3", "--quiet").code == 0
    assert home.mesh("replicate", "--replicas", "2", "--quiet").code == 0
    wrong = scratch / "wrong"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    assert trim(home, wrong).code == ExitCode.WRONG_PASSWORD
    for words in (("--passfile", passfile), ("--trim", "--dry-run", "--passfile", passfile)):
        said = home.mesh("repair", *words)
        assert said.code == ExitCode.USAGE
        assert "--passfile goes with --trim" in said.err
    assert counts(home) == [3] * len(home.segments())
