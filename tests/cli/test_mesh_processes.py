"""``vaultfs mesh`` with peers that are processes of their own, as people run them: killed, interrupted, limited."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode

from .conftest import Run, command, make_snapshot, process, write_file

PATIENCE_S = 60.0


class PeerProcess:
    """A peer with directories of its own."""

    def __init__(self, where: Path) -> None:
        where.mkdir()
        self.where = where
        self.environment = os.environ | {
            f"XDG_{name}_HOME": str(where / name.lower()) for name in ("CONFIG", "STATE", "DATA", "CACHE")
        }
        self.listen = "127.0.0.1:0"
        self.process: subprocess.Popen[bytes] | None = None
        self.id = str(self.run("peer", "init", "--json")["id"])

    def run(self, *words: str) -> dict[str, object]:
        done = subprocess.run(
            command(*words), env=self.environment, capture_output=True, check=True, timeout=PATIENCE_S
        )
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def start(self) -> None:
        words = ("peer", "serve", "--listen", self.listen, "--json")
        self.process = subprocess.Popen(
            command(*words), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read() if self.process.stderr else b""
        bound = json.loads(line)
        self.listen = f"{bound['host']}:{bound['port']}"

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


@pytest.fixture
def peers(scratch: Path, monkeypatch: pytest.MonkeyPatch, own_state: Path) -> Iterator[list[PeerProcess]]:
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(scratch / name.lower()))
    made: list[PeerProcess] = []
    try:
        for number in range(2):
            made.append(PeerProcess(scratch / f"peer-{number}"))
            made[-1].start()
        yield made
    finally:
        for peer in made:
            peer.kill()


@pytest.fixture
def added(vault: Path, peers: list[PeerProcess], run: Run) -> Path:
    """A vault with a snapshot of some MiB, whose peers have nothing yet."""
    write_file(vault, "/file", os.urandom(3 << 20))
    make_snapshot(vault)
    own_id = json.loads(run("peer", "init", "--json", bare=True).out)["id"]
    for peer in peers:
        peer.run("peer", "accept", own_id, "--json")
        assert run("peer", "add", vault, f"{peer.id}@{peer.listen}", bare=True).code == 0
    return vault


def test_killed_and_interrupted_it_goes_on(added: Path, peers: list[PeerProcess], run: Run) -> None:
    peers[1].kill()
    said = run("mesh", "replicate", added, "--quiet", bare=True)
    assert said.code == ExitCode.PARTIAL
    peers[1].start()

    words = command("mesh", "repair", added, "--bwlimit", "50K", "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as running:
        assert running.stderr is not None
        assert json.loads(running.stderr.readline())["total_bytes"] > 3 << 20
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == ExitCode.SIGINT
        assert error.splitlines()[-1] == b"vaultfs: interrupted"

    said = run("mesh", "status", added, "--json", bare=True)
    assert said.code == ExitCode.PARTIAL
    assert json.loads(said.out)["segments_by_copies"][1] > 0
    assert run("mesh", "repair", added, "--quiet", bare=True).code == 0
    assert run("mesh", "status", added, bare=True).code == 0
    peers[0].kill()
    assert run("verify", added, "mesh", "--read-data", "--quiet", bare=True).code == 0


def test_while_it_is_mounted(added: Path, folder: Path, passfile: Path, run: Run) -> None:
    """No password is asked for: the daemon makes the snapshot."""
    assert process("mount", added, folder, "--passfile", passfile).code == 0
    (folder / "written").write_bytes(os.urandom(2 << 20))
    said = process("mesh", "replicate", folder, "--json")
    assert said.code == 0, said.err
    done = json.loads(said.out)
    assert done["snapshot"]["is_new"]
    assert done["mesh"]["is_safe"]
    assert run("status", folder, bare=True).code == 0
    for verb in ("status", "repair", "fetch"):
        said = run("mesh", verb, folder, "--json", bare=True)
        assert said.code == 0, (verb, said.err)
    name = next(path for path in sorted((added / "segments").glob("??/*.seg")) if path.stat().st_size > 1 << 20)
    content = name.read_bytes()
    name.unlink()
    assert json.loads(run("mesh", "fetch", folder, "--json", bare=True).out)["segments"] == 1
    assert name.read_bytes() == content
    assert process("umount", folder).code == 0
