"""``vaultfs snapshot`` and ``vaultfs mount --snapshot`` as a person uses them, with real mounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_faults.real_processes import Forker

from vault_snapshots.sample import PASSWORD, Sample

pytestmark = pytest.mark.fuse


class Person:
    """Somebody with a vault at ``vault`` and two folders.

    Args:
        base: an empty directory.
        vault: not mounted.
        forker: starts the commands.
    """

    def __init__(self, base: Path, vault: Path, forker: Forker) -> None:
        self._forker = forker
        self.vault = vault
        self.folder = base / "folder"
        self.then = base / "then"
        self.passfile = base / "password"
        self.passfile.write_bytes(PASSWORD)
        self.passfile.chmod(0o600)
        for folder in (self.folder, self.then):
            folder.mkdir()

    def run(self, *words: str | Path, code: int = 0) -> str:
        done = self._forker.run(*words)
        assert done.code == code, done.err
        return done.out if code == 0 else done.err

    def mount(self, folder: Path, *words: str, code: int = 0) -> str:
        return self.run("mount", self.vault, folder, "--passfile", self.passfile, *words, code=code)

    def made(self, *words: str | Path) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.run("snapshot", "create", *words, "--json"))
        return made


@pytest.fixture
def person(sample: Sample, tmp_path: Path, forker: Forker) -> Iterator[Person]:
    forker.stretch(sample.path, PASSWORD.decode())
    person = Person(tmp_path, sample.path, forker)
    yield person
    for folder in (person.then, person.folder):
        if os.path.ismount(folder):
            person.run("umount", folder)


def test_a_day_with_snapshots(person: Person) -> None:
    person.mount(person.folder)
    with (person.folder / "thesis").open("w") as thesis:
        thesis.write("chapter one")
        thesis.flush()  # into the kernel, which keeps it as long as the file is open
        first = person.made(person.folder, "--label", "in the morning")
    assert (first["seq"], first["label"]) == (1, "in the morning")
    (person.folder / "thesis").write_text("")
    (person.folder / "twin").unlink()
    second = person.made(person.vault)
    (person.folder / "thesis").unlink()

    listed = json.loads(person.run("snapshot", "list", person.folder, "--json"))["snapshots"]
    assert listed == [first, second]
    lines = person.run("snapshot", "list", person.vault).splitlines()
    assert len(lines) == 3
    assert first["id"][:12] in lines[1]
    assert lines[1].endswith("in the morning")

    person.mount(person.then, "--snapshot", first["id"][:8])
    assert (person.then / "thesis").read_text() == "chapter one"
    assert (person.then / "twin").read_bytes() == (person.then / "d" / "shared").read_bytes()
    assert not (person.folder / "thesis").exists()
    with pytest.raises(OSError, match="Read-only"):
        (person.then / "new").touch()
    assert "shows snapshot" in person.run("snapshot", "list", person.then, code=2)
    assert "shows snapshot" in person.run("snapshot", "create", person.then, code=2)

    # What is mounted stays; then it goes.
    assert "mounted" in person.run("snapshot", "delete", person.folder, "1", code=11)
    assert (person.then / "thesis").read_text() == "chapter one"
    person.run("umount", person.then)
    person.run("snapshot", "delete", person.folder, "1")
    assert "no snapshot" in person.run("snapshot", "delete", person.folder, "1", code=2)
    assert "no snapshot" in person.mount(person.then, "--snapshot", "1", code=2)

    person.run("umount", person.folder)
    found = json.loads(person.run("snapshot", "list", person.vault, "--passfile", person.passfile, "--json"))
    assert found["snapshots"] == [second]


def test_without_a_mount(person: Person) -> None:
    with_password = ("--passfile", person.passfile)
    assert person.run("snapshot", "list", person.vault, *with_password) == "There are no snapshots.\n"
    assert person.run("snapshot", "create", person.vault, "--label", "x", *with_password).startswith("Made snapshot 1 ")
    person.mount(person.then, "--snapshot", "1")
    assert (person.then / "small").read_bytes() == b"a few bytes"
    # A mounted snapshot does not keep the vault itself from being used.
    assert person.run("snapshot", "create", person.vault, *with_password).startswith("Made snapshot 2 ")
    person.run("snapshot", "delete", person.vault, "1", *with_password, code=11)
    person.run("umount", person.then)
    assert person.run("snapshot", "delete", person.vault, "1", *with_password).startswith("Deleted snapshot 1 ")
    wrong = person.passfile.with_name("wrong")
    wrong.write_bytes(b"wrong")
    wrong.chmod(0o600)
    person.run("snapshot", "list", person.vault, "--passfile", wrong, code=12)
    person.run("snapshot", "list", person.then, *with_password, code=10)
    person.run("snapshot", "list", person.then / "nothing", code=10)
    person.run("snapshot", "delete", person.vault, *with_password, code=2)
    person.run("snapshot", "create", person.vault, "--label", "two\nlines", *with_password, code=2)
    person.run("snapshot", "rename", person.vault, code=2)


def test_a_read_only_mount(person: Person) -> None:
    person.mount(person.folder, "--read-only")
    assert "read-only" in person.run("snapshot", "create", person.folder, code=1)
    assert person.run("snapshot", "list", person.folder) == "There are no snapshots.\n"


def test_while_a_program_writes(person: Person, sample: Sample) -> None:
    """Two files that are always written one after the other are one write apart at most in every snapshot."""
    person.mount(person.folder, "--commit-interval", "0.1")
    is_over = threading.Event()
    written = []

    def program() -> None:
        with (person.folder / "left").open("wb") as left, (person.folder / "right").open("wb") as right:
            for number in range(1 << 30):
                for file in (left, right):
                    os.pwrite(file.fileno(), b"%09d" % number + bytes(5_000) + os.urandom(100_000), 0)
                    os.fdatasync(file.fileno())
                written.append(number)
                if is_over.is_set():
                    return

    thread = threading.Thread(target=program)
    thread.start()
    try:
        made = []
        for _ in range(3):
            before = len(written)
            person.run("snapshot", "create", person.folder)
            made.append((before, len(written)))
    finally:
        is_over.set()
        thread.join()
    person.run("umount", person.folder)
    for seq, (before, after) in enumerate(made, 1):
        found = sample.snapshot_contents(seq)
        left, right = (int((found[name] or b"0")[:9] or 0) for name in (b"/left", b"/right"))
        assert left - right in {0, 1}
        assert before - 1 <= left <= after


def test_the_daemon_is_killed(person: Person, sample: Sample) -> None:
    """In the middle of making a snapshot, wherever that is; the next mount knows what to do."""
    for attempt in range(3):
        person.mount(person.folder)
        (person.folder / "new").write_bytes(os.urandom(500_000))
        status = json.loads(person.run("status", person.folder, "--json"))
        client = subprocess.Popen(
            [sys.executable, "-m", "vaultfs.cli", "snapshot", "create", str(person.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        heads = len(list(sample.layout.heads.iterdir()))
        while client.poll() is None and len(list(sample.layout.heads.iterdir())) == heads:
            pass  # until its first trace on the disk: HEAD's or the manifest's temporary file
        os.kill(status["pid"], 9)
        client.wait()
        person.run("umount", person.folder, code=1)
        with sample.open() as vault:
            from vault_snapshots.checking import problems

            assert problems(vault.filesystem) == [], attempt
            for info in vault.snapshots():
                assert len(sample.snapshot_contents(info.seq)) >= 6
