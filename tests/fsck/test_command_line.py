"""``vaultfs fsck`` and ``vaultfs scrub``: what they print, and their exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsck.vault_copies import PASSWORD, Copy, flip
from vaultfs.cli.main import main

FILE = b"/folder/file6"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_bytes(PASSWORD + b"\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], passfile: Path) -> Run:
    def call(verb: str, *words: str | Path, bare: bool = False) -> Said:
        capfd.readouterr()
        secret = [] if bare else ["--passfile", str(passfile)]
        code = main([verb, *secret, *map(str, words)])
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return call


def damage(copy: Copy) -> None:
    segment, place = copy.segment_of(FILE, 2)
    flip(segment, place.offset + 30)


def test_a_sound_vault(copy: Copy, run: Run) -> None:
    said = run("fsck", copy.path)
    assert said.code == 0
    assert "nothing is wrong" in said.out
    assert "fsck" in said.err
    assert "done" in said.err
    said = run("scrub", "--quiet", copy.path)
    assert (said.code, said.err) == (0, "")
    assert "all whole" in said.out


def test_damage(copy: Copy, run: Run) -> None:
    damage(copy)
    for verb in ("fsck", "scrub"):
        said = run(verb, "--quiet", copy.path)
        assert said.code == 15
        assert "/folder/file6" in said.out
        assert "8192 to 12287" in said.out
    assert "--repair" in run("fsck", copy.path).out


def test_repair(copy: Copy, run: Run) -> None:
    damage(copy)
    said = run("fsck", "--repair", copy.path)
    assert said.code == 3
    assert "[repaired]" in said.out
    assert "lost+found" in said.out
    assert run("fsck", copy.path).code == 0
    assert run("scrub", copy.path).code == 15
    copy.edit("UPDATE inode SET nlink=9 WHERE id=?", copy.inode(FILE))
    assert run("fsck", "--quiet", copy.path).code == 15
    said = run("fsck", "--repair", copy.path)
    assert said.code == 0
    assert "all put right" in said.out


def test_metadata_only_does_not_read_data(copy: Copy, run: Run) -> None:
    damage(copy)
    said = run("fsck", "--metadata-only", copy.path)
    assert said.code == 0
    assert "0 B read" in said.out
    copy.segments()[1].unlink()
    said = run("fsck", "--metadata-only", copy.path)
    assert said.code == 15
    assert "/folder/deep/er/late" in said.out


def test_json(copy: Copy, run: Run) -> None:
    damage(copy)
    said = run("fsck", "--json", copy.path)
    report = json.loads(said.out)
    assert report["exit_code"] == said.code == 15
    (found,) = [each for each in report["findings"] if each["code"] == "damaged-data"]
    assert "/folder/file6" in found["paths"]
    assert found["ranges"] == [{"offset": 8192, "length": 4096}]
    assert json.loads(said.err.splitlines()[-1])["finished"]
    scrubbed = json.loads(run("scrub", "--json", copy.path).out)
    assert scrubbed["damaged_chunks"] == 1
    assert scrubbed["damaged"][0]["offset"] == 8192
    assert scrubbed["exit_code"] == 15


def test_names_that_are_no_text_come_through(copy: Copy, run: Run) -> None:
    path = b"/\xff\xfe not text"
    segment, place = copy.segment_of(path, 1)
    flip(segment, place.offset + 30)
    report = json.loads(run("fsck", "--json", copy.path).out)
    paths = {os.fsencode(text) for each in report["findings"] for text in each["paths"]}
    assert path in paths
    assert run("fsck", "--quiet", copy.path).code == 15


def test_errors_are_one_line(copy: Copy, run: Run, tmp_path: Path) -> None:
    for verb in ("fsck", "scrub"):
        assert run(verb, tmp_path / "nothing").code == 10
        with copy.open():
            said = run(verb, copy.path)
        assert said.code == 11
        assert said.err.count("\n") == 1
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n", encoding="ascii")
    assert main(["fsck", "--passfile", str(wrong), str(copy.path)]) == 12
    assert run("fsck", "--no-such-option", copy.path).code == 2


# --- a mounted vault


def process(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "vaultfs.cli", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def folder(copy: Copy, passfile: Path, tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "folder"
    where.mkdir()
    yield where
    if os.path.ismount(where):
        process("umount", where)


@pytest.mark.fuse
def test_a_mounted_vault(copy: Copy, folder: Path, passfile: Path) -> None:
    damage(copy)
    process("mount", copy.path, folder, "--passfile", passfile)
    (folder / "new").write_bytes(b"new" * 10_000)
    said = process("scrub", folder, check=False)
    assert said.returncode == 15, said.stderr
    assert "/folder/file6" in said.stdout
    assert "done" in said.stderr
    report = json.loads(process("scrub", "--json", folder, check=False).stdout)
    assert report["damaged_chunks"] == 1
    # A program that reads it gets EIO, for this part only.
    with (folder / "folder" / "file6").open("rb") as file:
        assert file.read(8192) == copy.contents[FILE][:8192]
    with pytest.raises(OSError, match="Input/output error"):
        (folder / "folder" / "file6").read_bytes()
    refused = process("fsck", copy.path, "--passfile", passfile, check=False)
    assert refused.returncode == 11
    refused = process("fsck", folder, check=False)
    assert refused.returncode == 2
    process("umount", folder)
    assert process("fsck", copy.path, "--passfile", passfile, check=False).returncode == 15


@pytest.mark.fuse
def test_a_mounted_vault_that_is_sound(copy: Copy, folder: Path, passfile: Path) -> None:
    process("mount", copy.path, folder, "--passfile", passfile)
    said = process("scrub", "--quiet", folder)
    assert "all whole" in said.stdout
    assert said.stderr == ""
    process("umount", folder)


@pytest.mark.fuse
def test_names_that_no_file_may_have_in_a_mounted_vault(copy: Copy, folder: Path, passfile: Path) -> None:
    """The kernel refuses a listing with such a name; other directories are not hurt, and nothing leads astray."""
    copy.edit("UPDATE entry SET name=? WHERE name=?", b"a/b", b"file6")
    process("mount", copy.path, folder, "--passfile", passfile)
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder / "folder")
    assert "a/b" not in names
    assert sorted(os.listdir(folder / "folder" / "deep")) == ["er", "link"]
    assert (folder / "folder" / "file5").read_bytes() == copy.contents[b"/folder/file5"]
    process("umount", folder)
