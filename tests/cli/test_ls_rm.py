"""ls and rm, and cat of several files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vaultfs.errors import ExitCode, NoSpaceError
from vaultfs.vault.filesystem import FileSystem

from .conftest import Run, listing, opened, write_file


@pytest.fixture
def filled(vault: Path) -> Path:
    with opened(vault) as found:
        found.mkdir("/dir", 0o750)
        found.symlink("dir/inner", "/link")
        for name, data in ((b"/dir/inner", b"inner"), (b"/.hidden", b""), (b"/odd \xff\x1b[31m", b"odd")):
            with found.open(name, "wb") as file:
                file.write(data)
        found.utime("/dir/inner", 0, 1_000_000_000_123_456_789)
    return vault


def test_names_are_sorted_and_whole(run: Run, filled: Path) -> None:
    said = run("ls", filled)
    assert (said.code, said.err) == (0, "")
    assert said.out == b".hidden\ndir\nlink\nodd \xff\x1b[31m\n"
    assert run("ls", filled, "dir").out == b"inner\n"
    assert run("ls", filled, "/dir/inner").out == b"inner\n"
    assert run("ls", filled, "/link").out == b"link\n"


def test_long(run: Run, filled: Path) -> None:
    lines = run("ls", filled, "-l").out.splitlines()
    assert lines[0].split() == [b"mode", b"links", b"owner", b"group", b"size", b"changed", b"name"]
    assert lines[2].startswith(b"drwxr-x---")
    assert lines[3].endswith(b" link -> dir/inner")
    (inner,) = run("ls", filled, "/dir", "--long").out.splitlines()[1:]
    assert inner.split()[4:] == [b"5", b"2001-09-09T01:46:40Z", b"inner"]


def test_json_keeps_every_byte(run: Run, filled: Path) -> None:
    entries = json.loads(run("ls", filled, "--json").out)
    assert [os.fsencode(entry["name"]) for entry in entries] == [b".hidden", b"dir", b"link", b"odd \xff\x1b[31m"]
    assert [entry["type"] for entry in entries] == ["file", "directory", "symlink", "file"]
    assert entries[1]["mode"] == "0750"
    assert entries[2]["target"] == "dir/inner"
    (inner,) = json.loads(run("ls", filled, "/dir", "--json").out)
    assert (inner["mtime_ns"], inner["size_bytes"]) == (1_000_000_000_123_456_789, 5)


def test_cat_follows_symlinks_and_joins(run: Run, filled: Path) -> None:
    said = run("cat", filled, "/link", "dir/inner", "/.hidden")
    assert (said.code, said.out, said.err) == (0, b"innerinner", "")


def test_rm(run: Run, filled: Path) -> None:
    said = run("rm", filled, "/link", ".hidden")
    assert (said.code, said.out, said.err) == (0, b"", "")
    assert listing(filled) == [b"dir", b"odd \xff\x1b[31m"]
    assert json.loads(run("rm", filled, "-r", "/dir", "/dir", "--json").out) == {"files": 2}
    assert listing(filled) == [b"odd \xff\x1b[31m"]


def test_rm_of_a_tree_gives_the_space_back(run: Run, vault: Path) -> None:
    with opened(vault) as found:
        found.mkdir("/dir")
        for number in range(10):
            found.mkdir(f"/dir/{number}")
            found.mkdir(f"/dir/{number}/deeper")
            for name in range(30):
                with found.open(f"/dir/{number}/deeper/{name}", "wb") as file:
                    file.write(os.urandom(20_000))
    said = run("rm", vault, "-r", "/dir", "--json")
    assert json.loads(said.out) == {"files": 1 + 10 * (1 + 1 + 30)}
    with opened(vault) as found:
        status = found.status()
    assert (status["files"], status["live_bytes"]) == (1, 0)
    assert sum(path.stat().st_blocks * 512 for path in vault.glob("segments/??/*")) < 1 << 20


@pytest.mark.parametrize("words", [("/dir", "/link"), ("-r", "/link", "/nowhere"), ("-r", "/dir", "/"), ("/dir/..",)])
def test_rm_of_something_impossible_removes_nothing(run: Run, filled: Path, words: tuple[str, ...]) -> None:
    before = listing(filled)
    said = run("rm", filled, *words)
    assert said.code in {ExitCode.USAGE, ExitCode.ERROR}
    assert said.error_line
    assert listing(filled) == before


def test_rm_on_a_full_disk(run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FileSystem, size: int) -> None:
        raise NoSpaceError("the disk is full")

    monkeypatch.setattr(FileSystem, "check_room", full)
    assert run("rm", filled, "-r", "/dir", "/link").code == 0
    assert listing(filled) == [b".hidden", b"odd \xff\x1b[31m"]


def test_rm_that_is_interrupted_has_removed_all_the_same(
    run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes when the tree has moved to the hidden directory already."""
    from vaultfs.cli.interrupts import Interrupts

    checks = 0

    def check(self: Any) -> None:
        nonlocal checks
        checks += 1
        if checks == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Interrupts, "check", check)
    assert run("rm", filled, "-r", "/dir").code == ExitCode.SIGINT
    assert run("ls", filled).out == b".hidden\nlink\nodd \xff\x1b[31m\n"
    write_file(filled, "/dir", b"the name is free")
