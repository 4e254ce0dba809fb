"""What tests of clones ask of a vault, a mount and a daemon."""

from __future__ import annotations

import json
import time
from pathlib import Path

import blake3

from cli.conftest import Run, process

PATIENCE_S = 60


def segments(vault: Path) -> set[str]:
    return {path.stem for path in vault.glob("segments/??/*.seg")}


def cached_bytes(vault: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (vault / "cache").glob("*.part"))


def mount(vault: Path, folder: Path, passfile: Path) -> None:
    said = process("mount", vault, folder, "--passfile", passfile)
    assert (said.code, said.err) == (0, "")


def umount(folder: Path, run: Run) -> None:
    assert run("umount", folder, bare=True).code == 0


def once_it_is_back(file: Path) -> bytes:
    """A remote that has failed is not asked again for a second or two."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return file.read_bytes()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def log_of(folder: Path, run: Run) -> str:
    return Path(json.loads(run("status", folder, "--json", bare=True).out)["log"]).read_text()


def got(vault: Path, name: str, run: Run) -> bytes:
    said = run("cat", vault, f"/{name}")
    assert said.code == 0
    return said.out


def blake3_of(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


def damaged(vault: Path) -> list[Path]:
    """The segments that are not what their names say."""
    return [path for path in vault.glob("segments/??/*.seg") if blake3_of(path) != path.stem]


def fill_state(folder: Path, run: Run) -> dict[str, object]:
    state: dict[str, object] = json.loads(run("status", folder, "--json", bare=True).out)["fill"]
    return state


def filled(folder: Path, run: Run) -> dict[str, object]:
    """The state once it is done."""
    deadline = time.monotonic() + PATIENCE_S
    while (state := fill_state(folder, run))["state"] != "done" and time.monotonic() < deadline:
        time.sleep(0.05)
    return state
