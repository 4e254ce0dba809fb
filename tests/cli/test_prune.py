"""``vaultfs prune`` and ``vaultfs snapshots`` of a real vault: what is given up, deleted, and shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vaultfs.errors import ExitCode
from vaultfs.ids import VaultId
from vaultfs.sync.ledger import Ledger

from .conftest import Run, objects, write_file


def report(run: Run, *words: object) -> dict[str, Any]:
    said = run("prune", *words, "--json", "--quiet", bare=True)
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


@pytest.fixture
def history(backed_up: Path, run: Run) -> Path:
    """Three snapshots on the remote; the vault itself keeps the newest two."""
    for number in range(3):
        write_file(backed_up, "/file", bytes([number]) * 300_000)
        assert run("sync", backed_up, "--snapshot").code == 0
    return backed_up


def numbers(run: Run, *words: object) -> list[int]:
    said = run("snapshots", *words, "--json", bare=True)
    assert said.code == 0, said.err
    return [each["seq"] for each in json.loads(said.out)["snapshots"]]


def test_the_snapshots_of_a_remote(history: Path, disk: Path, run: Run) -> None:
    said = run("snapshots", history, "disk", bare=True)
    assert said.code == 0
    lines = said.out.decode().splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["number", "id", "made", "size", "new", "follows"]
    by_url = run("snapshots", disk.as_uri(), bare=True)
    assert by_url.out == said.out
    found = json.loads(run("snapshots", history, "disk", "--json", bare=True).out)["snapshots"]
    assert [each["seq"] for each in found] == [1, 2, 3]
    assert [each["previous"] for each in found] == [None, *(each["id"] for each in found[:-1])]
    stored = sum(len(data) for key, data in objects(disk).items() if key.startswith("segments/"))
    assert sum(each["new_bytes"] for each in found) == stored
    assert all(0 < each["new_bytes"] <= each["bytes"] for each in found)


def test_the_snapshots_of_a_vault(history: Path, passfile: Path, run: Run) -> None:
    shown = run("snapshots", history)
    assert shown.code == 0
    assert shown.out == run("snapshot", "list", history, "--passfile", passfile, bare=True).out
    assert run("snapshots", history, "--option", "a=b").code == ExitCode.USAGE


def test_what_makes_no_sense(history: Path, disk: Path, run: Run) -> None:
    for words in (
        (history,),
        (history, "none"),
        (disk.as_uri(), "disk"),
        (history, "disk", "--option", "a=b"),
        (history, "disk", "--keep-last", "-1"),
        (history, "disk", "--keep-within", "7"),
        (history, "disk", "--grace", "soon"),
        (history, "disk", "--drop", "99"),
        (history, "disk", "--drop", "3"),
        (history, "disk", "--connections", "0"),
    ):
        before = objects(disk)
        said = run("prune", *words, bare=True)
        assert said.code == ExitCode.USAGE, words
        assert said.error_line
        assert objects(disk) == before


def test_given_up_by_name_and_again(history: Path, disk: Path, run: Run) -> None:
    assert [each["seq"] for each in report(run, history, "disk", "--drop", "2")["dropped"]] == [2]
    before = objects(disk)
    assert report(run, history, "disk", "--drop", "2")["dropped"] == []
    assert objects(disk) == before


def test_given_up_first_and_deleted_later(
    history: Path, disk: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = objects(disk)
    said = run("prune", history, "disk", "--keep-last", "1", bare=True)
    assert said.code == 0
    text = said.out.decode()
    assert text.count("given up") == 3
    assert "newest, last" in text
    (waiting,) = report(run, history, "disk", "--dry-run")["waiting"]
    shown = time.mktime(time.strptime(said.err.partition("a prune after ")[2][:19], "%Y-%m-%d %H:%M:%S"))
    assert 0 <= shown - waiting["due_ns"] / 1e9 < 1
    assert before.items() <= objects(disk).items()
    found = json.loads(run("snapshots", history, "disk", "--json", bare=True).out)["snapshots"]
    assert [each["given_up_ns"] is None for each in found] == [False, False, True]
    assert "given up 20" in run("snapshots", history, "disk", bare=True).out.decode()
    # An old one comes back as long as it is there.
    with monkeypatch.context() as patch:  # on another machine
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
        assert run("restore", disk.as_uri(), tmp_path / "old", "--snapshot", "1").code == 0

    now = time.time_ns() + 8 * 24 * 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)
    done = report(run, history, "disk")
    assert done["deleted_snapshots"] == 2
    assert done["deleted_segments"] > 0
    assert done["waiting"] == []
    assert numbers(run, history, "disk") == [3]
    left = sum(len(data) for key, data in objects(disk).items() if key.startswith("segments/"))
    assert left + done["deleted_bytes"] == sum(len(data) for key, data in before.items() if key.startswith("segments/"))
    assert run("verify", history, "disk", "--read-data", bare=True).code == 0
    # The vault goes on, and what was pruned is not sent again.
    idle = json.loads(run("sync", history, "--json", bare=True).out)["remotes"][0]
    assert (idle["segments"], idle["snapshots"], idle["is_up_to_date"]) == (0, 0, True)
    assert "safe to close" in run("status", history, bare=True).out.decode()
    write_file(history, "/file", b"new" * 100_000)
    assert run("sync", history, "--snapshot").code == 0
    assert run("restore", disk.as_uri(), tmp_path / "back").code == 0


def test_without_a_vault_by_url(history: Path, disk: Path, run: Run) -> None:
    shutil.rmtree(history)
    done = report(run, disk.as_uri(), "--keep-last", "2", "--grace", "0s")
    assert [each["seq"] for each in done["dropped"]] == [1]
    assert numbers(run, disk.as_uri()) == [2, 3]
    assert run("verify", disk.as_uri(), "--read-data", bare=True).code == 0


def test_a_dry_run(history: Path, disk: Path, run: Run) -> None:
    before = objects(disk)
    said = run("prune", history, "disk", "--keep-daily", "7", "--dry-run", bare=True)
    assert said.code == 0
    assert "2 snapshots" in said.out.decode()
    assert "would be given up" in said.out.decode()
    assert objects(disk) == before
    dry = report(run, history, "disk", "--keep-daily", "7", "--dry-run")
    done = report(run, history, "disk", "--keep-daily", "7")
    assert (dry["dry_run"], done["dry_run"]) == (True, False)
    same = ("kept", "dropped", "condemned_segments", "condemned_bytes", "deleted_segments")
    assert {key: dry[key] for key in same} == {key: done[key] for key in same}


def test_nothing_to_do(history: Path, run: Run) -> None:
    said = run("prune", history, "disk", "--keep-last", "9", bare=True)
    assert said.code == 0
    assert said.out.decode().endswith("disk: nothing to give up or to delete\n")


def test_a_sync_is_running(history: Path, run: Run) -> None:
    vault_id = VaultId(bytes.fromhex(json.loads((history / "vault.json").read_bytes())["vault_id"]))
    url = json.loads(run("remote", "list", history, "--json", bare=True).out)["remotes"][0]["url"]
    with Ledger.of(vault_id, "disk").locked(url):
        said = run("prune", history, "disk", bare=True)
    assert said.code == ExitCode.LOCKED


def test_no_password_and_no_key_code(history: Path) -> None:
    """A process of its own, without any secret; it imports nothing that has keys."""
    program = (
        "import sys; from vaultfs.cli.main import main; code = main(sys.argv[1:]); "
        "print([name for name in sys.modules if name.startswith(('vaultfs.crypto', 'vaultfs.vault', 'cryptography'))], "
        "file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "prune", str(history), "disk", "--keep-last", "1", "--quiet"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_two_histories_side_by_side(history: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """Two copies of a vault both go on: refused, then side by side, and each can be restored by its id."""
    other = tmp_path / "other"
    shutil.copytree(history, other)
    write_file(history, "/whose", b"ours")
    assert run("sync", history, "--snapshot").code == 0
    mine = json.loads(run("snapshots", history, "disk", "--json", bare=True).out)["snapshots"][-1]["id"]
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:  # another machine: it has its own state
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state of the other"))
        write_file(other, "/whose", b"theirs")
        said = run("sync", other, "--snapshot")
        assert said.code == ExitCode.ERROR
        assert "--fork" in said.err
        assert run("sync", other, "--fork", bare=True).code == 0
        theirs = json.loads(run("snapshots", other, "disk", "--json", bare=True).out)["snapshots"]
    [their_id] = [each["id"] for each in theirs if each["seq"] == 4 and each["id"] != mine]
    said = run("restore", disk.as_uri(), tmp_path / "which")
    assert said.code == ExitCode.USAGE
    assert "side by side" in said.error_line
    shown = run("snapshots", disk.as_uri(), bare=True)
    assert "two histories" in shown.err
    for digest, content in ((mine, b"ours"), (their_id, b"theirs")):
        with monkeypatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(tmp_path / digest[:8]))
            where = tmp_path / f"back {digest[:8]}"
            assert run("restore", disk.as_uri(), where, "--snapshot", digest).code == 0
            assert run("cat", where, "/whose").out == content
    said = run("prune", disk.as_uri(), "--keep-last", "1", bare=True)
    assert said.code == ExitCode.USAGE
    assert "side by side" in said.error_line


def test_another_prune_is_deleting(history: Path, disk: Path, run: Run) -> None:
    vault_id = json.loads((history / "vault.json").read_text())["vault_id"]
    claim = disk / "heads" / "sweeping" / ("ab" * 32)
    claim.parent.mkdir()
    claim.write_text(json.dumps({"format": 1, "vault_id": vault_id, "created_ns": time.time_ns()}))
    said = run("prune", history, "disk", "--keep-last", "1", "--grace", "0s", "--quiet", bare=True)
    assert said.code == ExitCode.LOCKED
    assert said.error_line.startswith("vaultfs: another prune is deleting on ")
    assert numbers(run, history, "disk") == [1, 2, 3]
    assert [path.name for path in claim.parent.iterdir()] == [claim.name]
    claim.write_text(json.dumps({"format": 1, "vault_id": vault_id, "created_ns": 0}))
    assert report(run, history, "disk", "--grace", "0s")["deleted_snapshots"] == 2
    assert list(claim.parent.iterdir()) == []
