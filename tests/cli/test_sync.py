"""``vaultfs sync``, and what ``status`` says of remotes: what is copied, when, without a password, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import vaultfs
from vaultfs.errors import ExitCode
from vaultfs.ids import VaultId
from vaultfs.sync.ledger import Ledger

from .conftest import PASSWORD, Run, Said, command, damage, digest, make_snapshot, objects, opened, process, write_file

PATIENCE_S = 60
CANARY = b"canary-7d0a44-plaintext"


def outcome(said: Said, name: str = "disk") -> dict[str, Any]:
    """What JSON says of one remote."""
    found: dict[str, Any] = {each["name"]: each for each in json.loads(said.out)["remotes"]}
    each: dict[str, Any] = found[name]
    return each


def segments(remote: Path) -> set[str]:
    return {key for key in objects(remote) if key.startswith("segments/")}


def heads(remote: Path) -> set[str]:
    return {key for key in objects(remote) if key.startswith("heads/")}


def second_remote(vault: Path, where: Path, run: Run, name: str = "second") -> Path:
    where.mkdir()
    assert run("remote", "add", vault, name, where.as_uri(), bare=True).code == 0
    return where


# --- a vault that is not mounted


def test_nothing_to_copy_yet(backed_up: Path, disk: Path, run: Run) -> None:
    said = run("sync", backed_up, bare=True)
    assert said.code == ExitCode.USAGE
    assert "no snapshot yet" in said.error_line
    assert "--snapshot" in said.error_line
    assert objects(disk) == {}


def test_a_snapshot_and_its_copy(backed_up: Path, disk: Path, run: Run) -> None:
    said = run("sync", backed_up, "--snapshot", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert said.out.decode().startswith("disk: sent ")
    assert said.out.decode().endswith("; up to date\n")
    stored = objects(disk)
    assert stored["vault.json"] == (backed_up / "vault.json").read_bytes()
    assert len(heads(disk)) == 1
    for key in segments(disk):
        assert stored[key] == (backed_up / f"{key}.seg").read_bytes()


def test_without_any_password(backed_up: Path, disk: Path, run: Run) -> None:
    """What is there is copied, and a line tells how old that is."""
    make_snapshot(backed_up)
    said = process("sync", backed_up, "--quiet")
    assert said.code == 0
    assert said.error_line.endswith(
        "not mounted, so nothing newer than snapshot 1 is copied, which is less than a minute old; --snapshot makes a "
        "new one first, with the password"
    )
    assert len(heads(disk)) == 1
    said = process("sync", backed_up, "--quiet")
    assert (said.code, said.out) == (0, b"disk: up to date\n")


def test_a_wrong_password_copies_nothing(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    said = run("sync", backed_up, "--snapshot", "--passfile", wrong, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD
    assert objects(disk) == {}


def test_only_what_is_new(backed_up: Path, disk: Path, run: Run) -> None:
    assert run("sync", backed_up, "--snapshot").code == 0
    before = segments(disk)
    write_file(backed_up, "/more", os.urandom(1 << 20))
    said = run("sync", backed_up, "--snapshot", "--json")
    sent = outcome(said)
    assert 0 < sent["segments"] <= 3
    assert 1 << 20 <= sent["bytes"] < 2 << 20
    assert sent["sent_bytes"] == sent["bytes"]
    assert len(segments(disk) - before) == sent["segments"]
    assert before <= segments(disk)


def test_the_cost_of_nothing_to_do(backed_up: Path, run: Run) -> None:
    assert run("sync", backed_up, "--snapshot").code == 0
    idle = outcome(run("sync", backed_up, "--json", bare=True))
    assert idle == {
        "name": "disk",
        "url": idle["url"],
        "segments": 0,
        "bytes": 0,
        "snapshots": 0,
        "is_up_to_date": True,
        "requests": 2,
        "sent_bytes": 0,
        "received_bytes": (backed_up / "vault.json").stat().st_size,
        "error": None,
        "exit_code": 0,
    }


def test_a_dry_run_changes_nothing(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    make_snapshot(backed_up)
    before = digest(backed_up), digest(tmp_path / "state")
    said = run("sync", backed_up, "--dry-run", bare=True)
    assert said.code == 0
    assert said.out.decode().startswith("disk: lacks ")
    assert "a dry run makes no snapshot" in said.error_line
    assert objects(disk) == {}
    assert (digest(backed_up), digest(tmp_path / "state")) == before
    planned = outcome(run("sync", backed_up, "--dry-run", "--json", bare=True))
    done = outcome(run("sync", backed_up, "--json", bare=True))
    assert [planned[key] for key in ("segments", "bytes", "snapshots")] == [
        done[key] for key in ("segments", "bytes", "snapshots")
    ]
    assert run("sync", backed_up, "--dry-run", bare=True).out == b"disk: up to date\n"
    assert run("sync", backed_up, "--dry-run", "--snapshot").code == ExitCode.USAGE


def test_what_the_remote_lost(backed_up: Path, disk: Path, run: Run) -> None:
    """A sync trusts what this machine remembers; --check asks, and sends again."""
    assert run("sync", backed_up, "--snapshot").code == 0
    lost = max(segments(disk), key=lambda key: (disk / key).stat().st_size)
    (disk / lost).unlink()
    assert outcome(run("sync", backed_up, "--json", bare=True))["segments"] == 0
    said = run("sync", backed_up, "--check", "--json", bare=True)
    assert (said.code, outcome(said)["segments"]) == (0, 1)
    assert lost in segments(disk)
    (lost_head,) = heads(disk)
    (disk / lost_head).unlink()
    assert outcome(run("sync", backed_up, "--json", bare=True))["snapshots"] == 1
    assert heads(disk) == {lost_head}


def test_a_new_password_reaches_the_remote(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    assert run("sync", backed_up, "--snapshot").code == 0
    new = tmp_path / "new"
    new.write_text("another password")
    new.chmod(0o600)
    assert run("passwd", backed_up, "--new-passfile", new).code == 0
    said = run("status", backed_up, bare=True)
    assert (said.code, b"lacks the current vault.json" in said.out) == (ExitCode.PARTIAL, True)
    assert run("sync", backed_up, bare=True).code == 0
    assert (disk / "vault.json").read_bytes() == (backed_up / "vault.json").read_bytes()


def test_only_ciphertext_leaves(backed_up: Path, disk: Path, run: Run) -> None:
    write_file(backed_up, "/" + CANARY.decode(), CANARY * 10_000)
    assert run("sync", backed_up, "--snapshot").code == 0
    for key, data in objects(disk).items():
        assert CANARY not in data
        assert CANARY.decode() not in key
        assert PASSWORD.encode() not in data


# --- several remotes, and what goes wrong with them


def test_one_of_two_fails(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    second = second_remote(backed_up, tmp_path / "second", run)
    make_snapshot(backed_up)
    disk.rename(tmp_path / "unplugged")
    said = run("sync", backed_up, "--json", bare=True)
    assert said.code == ExitCode.PARTIAL
    assert outcome(said)["exit_code"] == ExitCode.REMOTE_UNREACHABLE
    assert outcome(said, "second")["is_up_to_date"]
    assert len(heads(second)) == 1

    said = run("sync", backed_up, "disk", "--quiet", bare=True)
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    assert said.err.splitlines()[1].startswith("vaultfs: disk: there is no directory ")
    assert said.out == b""
    said = run("status", backed_up, "--json", bare=True)
    assert said.code == ExitCode.PARTIAL
    states = {each["name"]: each for each in json.loads(said.out)["backup"]["remotes"]}
    assert states["second"]["is_complete"]
    assert not states["disk"]["is_complete"]

    (tmp_path / "unplugged").rename(disk)
    assert run("sync", backed_up, "disk", bare=True).code == 0
    assert objects(disk) == objects(second)
    assert run("status", backed_up, bare=True).code == 0


def test_all_fail_alike(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    second = second_remote(backed_up, tmp_path / "second", run)
    make_snapshot(backed_up)
    disk.rename(tmp_path / "unplugged")
    second.rename(tmp_path / "unplugged too")
    said = run("sync", backed_up, bare=True)
    assert (said.code, "done" in said.err) == (ExitCode.REMOTE_UNREACHABLE, False)


def test_a_remote_that_refuses(backed_up: Path, disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    make_snapshot(backed_up)
    real = os.open

    def refusing(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and str(path).startswith(".vaultfs-"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)
    said = run("sync", backed_up, "--quiet", bare=True)
    assert said.code == ExitCode.REMOTE_REFUSED
    assert "check owner, permissions" in said.err


def test_the_remote_of_another_vault(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """Also if the list of remotes was copied from one vault to another."""
    assert run("sync", backed_up, "--snapshot").code == 0
    other = tmp_path / "other"
    vaultfs.create_vault(other, vaultfs.Secret.password(PASSWORD), kdf=vaultfs.KdfParameters.weakest())
    shutil.copy(backed_up / "remotes.json", other)
    before = objects(disk)
    said = run("sync", other, "--snapshot", "--quiet")
    assert (said.code, "another vault" in said.error_line) == (ExitCode.USAGE, True)
    assert objects(disk) == before


def test_two_copies_of_a_vault(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """A copy of the directory that went its own way must not write over what the first has sent."""
    assert run("sync", backed_up, "--snapshot").code == 0
    twin = tmp_path / "twin"
    shutil.copytree(backed_up, twin)
    write_file(backed_up, "/here", b"here")
    assert run("sync", backed_up, "--snapshot").code == 0
    before = objects(disk)
    shutil.rmtree(tmp_path / "state")  # the other machine's
    write_file(twin, "/there", b"there")
    said = run("sync", twin, "--snapshot", "--quiet")
    assert said.code == ExitCode.ERROR
    assert "which this vault does not come from" in said.error_line
    assert objects(disk) == before


def test_a_remote_of_a_newer_version(backed_up: Path, disk: Path, run: Run) -> None:
    make_snapshot(backed_up)
    header = json.loads((backed_up / "vault.json").read_text()) | {"format": 2}
    (disk / "vault.json").write_text(json.dumps(header))
    assert run("sync", backed_up, bare=True).code == ExitCode.FORMAT_TOO_NEW
    assert list(objects(disk)) == ["vault.json"]


def test_a_damaged_segment_is_not_copied(backed_up: Path, disk: Path, run: Run) -> None:
    make_snapshot(backed_up)
    damage(backed_up, "/random", 1 << 20)
    said = run("sync", backed_up, "--quiet", bare=True)
    assert said.code == ExitCode.INTEGRITY
    assert "is damaged" in said.err
    assert heads(disk) == set()
    assert run("status", backed_up, bare=True).code == ExitCode.PARTIAL


def test_a_snapshot_from_before_the_first_remote(vault: Path, disk: Path, run: Run) -> None:
    """It names a segment with holes and cannot be copied; what comes after it can."""
    with opened(vault) as found:
        for name in ("/gone", "/kept"):
            with found.open(name, "wb") as file:
                file.write(os.urandom(1 << 20))
    with opened(vault) as found:
        found.remove("/gone")
    make_snapshot(vault)
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    said = run("sync", vault, "--quiet", bare=True)
    assert (said.code, "has holes" in said.err) == (ExitCode.INTEGRITY, True)
    assert heads(disk) == set()
    assert run("status", vault, bare=True).code == ExitCode.PARTIAL

    said = run("sync", vault, "--snapshot", "--quiet")
    assert (said.code, "snapshot 1 was not sent" in said.err) == (ExitCode.PARTIAL, True)
    assert [head.split("/")[-1][:10] for head in heads(disk)] == ["0000000002"]

    with opened(vault) as found:
        found.delete_snapshot("1")
    assert run("sync", vault, "--quiet", bare=True).code == 0
    assert run("status", vault, bare=True).code == 0


def test_another_sync_is_running(backed_up: Path, disk: Path, run: Run) -> None:
    make_snapshot(backed_up)
    vault_id = VaultId(bytes.fromhex(json.loads((backed_up / "vault.json").read_text())["vault_id"]))
    with Ledger.of(vault_id, "disk").locked(disk.as_uri()):
        said = run("sync", backed_up, "--quiet", bare=True)
    assert said.code == ExitCode.LOCKED
    assert "another sync" in said.err
    assert objects(disk) == {}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["cloud"], "there is no remote 'cloud'"),
        (["--bwlimit", "0"], "--bwlimit"),
        (["--bwlimit", "fast"], "--bwlimit"),
        (["--connections", "0"], "--connections"),
        (["--connections", "65"], "--connections"),
        (["--connections", "many"], "connections"),
    ],
)
def test_words_that_make_no_sense(backed_up: Path, run: Run, words: list[str], what: str) -> None:
    said = run("sync", backed_up, *words, bare=True)
    assert (said.code, what in said.error_line) == (ExitCode.USAGE, True)


def test_no_remote(vault: Path, run: Run) -> None:
    said = run("sync", vault, bare=True)
    assert (said.code, "vaultfs remote add" in said.error_line) == (ExitCode.USAGE, True)
    assert run("sync", vault / "nothing", bare=True).code == ExitCode.NOT_A_VAULT


# --- interrupting


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, ExitCode.SIGINT), (signal.SIGTERM, ExitCode.SIGTERM)])
def test_interrupted_and_gone_on_with(
    backed_up: Path, disk: Path, run: Run, number: signal.Signals, code: ExitCode
) -> None:
    for each in range(6):
        write_file(backed_up, f"/{each}", os.urandom(1 << 20))  # each in a segment of its own
    make_snapshot(backed_up)
    words = command("sync", backed_up, "--json", "--bwlimit", "2M", "--connections", "1")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as sync:
        deadline = time.monotonic() + PATIENCE_S
        while len(segments(disk)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        sync.send_signal(number)
        begun = time.monotonic()
        out, err = sync.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - begun < 10
    assert sync.returncode == code
    assert out == b""
    lines = err.decode().splitlines()
    assert lines[-1] == f"vaultfs: {'interrupted' if number == signal.SIGINT else 'terminated'}"
    assert [json.loads(line) for line in lines if line.startswith("{") and json.loads(line)["finished"]] == []
    assert heads(disk) == set(), "a snapshot is there only when all its segments are"
    done = segments(disk)
    assert len(done) >= 2

    said = run("sync", backed_up, "--json", bare=True)
    assert said.code == 0
    assert outcome(said)["segments"] == len(segments(disk)) - len(done)
    assert done < segments(disk)


def test_progress_as_json_lines(backed_up: Path, run: Run) -> None:
    said = run("sync", backed_up, "--snapshot", "--json")
    last = json.loads(said.err.splitlines()[-1])
    assert (last["title"], last["resumable"], last["finished"]) == (f"sync {backed_up}", True, True)
    assert last["done_bytes"] == last["total_bytes"] == outcome(said)["bytes"]
    document = json.loads(said.out)
    assert document["vault"] == str(backed_up)
    assert document["snapshot"]["seq"] == 1
    assert document["snapshot"]["is_new"] is True
    assert document["dry_run"] is False


# --- a mounted vault, and whether it is safe to close


def test_mounted(backed_up: Path, folder: Path, passfile: Path, disk: Path, run: Run) -> None:
    assert process("mount", backed_up, folder, "--passfile", passfile).code == 0
    said = run("status", folder, bare=True)
    assert (said.code, b"safe to close: " in said.out) == (ExitCode.PARTIAL, True)
    assert b"no; 'vaultfs sync'" in said.out

    (folder / "written").write_bytes(os.urandom(2 << 20))
    said = process("sync", folder, "--json")  # no terminal, no password
    assert (said.code, json.loads(said.out)["snapshot"]["is_new"]) == (0, True)
    assert outcome(said)["bytes"] > 5 << 20
    assert run("status", folder, bare=True).code == 0
    assert run("status", backed_up, bare=True).code == 0

    said = process("sync", backed_up, "--json")
    assert (said.code, json.loads(said.out)["snapshot"]["is_new"]) == (0, False)
    assert outcome(said)["bytes"] == 0

    (folder / "written").write_bytes(os.urandom(2 << 20))
    assert process("status").code == ExitCode.PARTIAL
    said = run("status", folder, "--json", bare=True)
    backup = json.loads(said.out)["backup"]
    assert (said.code, backup["is_complete"], backup["unsaved"]["is_any"]) == (ExitCode.PARTIAL, False, True)
    assert process("sync", folder).code == 0
    assert len(heads(disk)) == 2
    assert process("umount", folder).code == 0
    said = run("status", backed_up, "--json", bare=True)
    assert (said.code, json.loads(said.out)["backup"]["is_complete"]) == (0, True)


def test_mounted_read_only(backed_up: Path, folder: Path, passfile: Path, disk: Path, run: Run) -> None:
    make_snapshot(backed_up)
    assert process("mount", backed_up, folder, "--read-only", "--passfile", passfile).code == 0
    said = run("sync", folder, "--quiet", bare=True)
    assert said.code == 0
    assert "mounted read-only, so nothing newer than snapshot 1 is copied" in said.error_line
    assert len(heads(disk)) == 1


def test_a_mounted_snapshot(backed_up: Path, folder: Path, passfile: Path, run: Run) -> None:
    make_snapshot(backed_up)
    assert process("mount", backed_up, folder, "--snapshot", "1", "--passfile", passfile).code == 0
    said = run("sync", folder, "--quiet", bare=True)
    assert said.code == 0, "the vault is not mounted, and what is there can be copied"
    assert run("status", folder, bare=True).code == 0


def test_a_mounted_vault_that_was_written_since(backed_up: Path, folder: Path, passfile: Path, run: Run) -> None:
    """Without a mount, segments younger than the newest snapshot tell it."""
    assert run("sync", backed_up, "--snapshot").code == 0
    assert run("status", backed_up, bare=True).code == 0
    write_file(backed_up, "/later", os.urandom(1 << 20))
    said = run("status", backed_up, bare=True)
    assert said.code == ExitCode.PARTIAL
    assert "what was written since snapshot 1, less than a minute ago, 1.00 MiB" in said.out.decode()


def test_status_without_remotes_is_as_it_was(vault: Path, run: Run) -> None:
    said = run("status", vault, "--json", bare=True)
    assert (said.code, json.loads(said.out)["backup"]) == (0, None)
    assert b"safe to close" not in run("status", vault, bare=True).out


def test_status_asks_no_remote(backed_up: Path, disk: Path, run: Run) -> None:
    assert run("sync", backed_up, "--snapshot").code == 0
    disk.rename(disk.with_name("unplugged"))
    assert run("status", backed_up, bare=True).code == 0


# --- what is loaded


@pytest.mark.parametrize("words", ["--help", "mount --help", "status", "remote list VAULT", "sync VAULT"])
def test_clients_of_clouds_are_loaded_by_those_who_need_them(backed_up: Path, run: Run, words: str) -> None:
    make_snapshot(backed_up)
    program = (
        "import sys\nfrom vaultfs.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print([each for each in ('boto3', 'botocore', 'opendal', 'rich') if each in sys.modules], file=sys.stderr)"
    )
    arguments = [word.replace("VAULT", str(backed_up)) for word in words.split()]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_sync_loads_neither_key_code_nor_an_event_loop(backed_up: Path, run: Run) -> None:
    """It has nothing to do most of the time, and then loading takes longer than all else."""
    make_snapshot(backed_up)
    program = (
        "import sys\nfrom vaultfs.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "unwanted = 'trio', 'cryptography', 'pyfuse3', 'vaultfs.crypto', 'vaultfs.vault', 'vaultfs.metadata', "
        "'vaultfs.mesh'\n"
        "print([each for each in sys.modules if each.startswith(unwanted)], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "sync", str(backed_up)], capture_output=True, check=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_vault_stays_usable(backed_up: Path, run: Run) -> None:
    assert run("sync", backed_up, "--snapshot").code == 0
    with opened(backed_up) as found:
        assert sorted(found.listdir("/")) == [b"random", b"small"]
    assert run("fsck", backed_up).code == 0
