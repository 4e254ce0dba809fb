"""What cannot be cloned or filled is refused, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli.conftest import Run, digest
from vaultfs.errors import ExitCode

from .clones import got


def test_a_remote_that_lacks_something(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    where = tmp_path / "clone"
    largest = max(disk.glob("segments/??/*"), key=lambda path: path.stat().st_size)
    largest.unlink()
    said = run("clone", disk.as_uri(), where)
    assert said.code == 0
    assert f"{disk.as_uri()} lacks 1 segment, 2.0" in said.err
    assert run("status", where, bare=True).code == ExitCode.PARTIAL
    said = run("fsck", where, "--quiet")
    assert (said.code, largest.name in said.out.decode()) == (ExitCode.INTEGRITY, True)


def test_what_a_fill_cannot_be(copied: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "folder").mkdir()
    for words, said in (
        (["--fill", "--read-only"], "a read-only mount adds nothing"),
        (["--fill", "--snapshot", "1"], "a read-only mount adds nothing"),
        (["--bwlimit", "1M"], "limits --fill, which is missing"),
        (["--fill", "--bwlimit", "0"], "must be more than 0"),
        (["-o", "fill,bwlimit=much"], "no size"),
    ):
        found = run("mount", copied, tmp_path / "folder", *words)
        assert (found.code, said in found.error_line) == (ExitCode.USAGE, True)


def test_nowhere_to_fill_from(vault: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "folder").mkdir()
    found = run("mount", vault, tmp_path / "folder", "--fill")
    assert (found.code, "has no remote" in found.error_line) == (ExitCode.USAGE, True)


def test_a_wrong_password(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    said = run("clone", disk.as_uri(), tmp_path / "clone", "--passfile", wrong, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD
    assert said.error_line
    assert not (tmp_path / "clone").exists()


def test_nothing_there(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    said = run("clone", (tmp_path / "nothing").as_uri(), tmp_path / "clone")
    assert (said.code, "is its disk plugged in" in said.error_line) == (ExitCode.REMOTE_UNREACHABLE, True)
    (tmp_path / "empty").mkdir()
    said = run("clone", (tmp_path / "empty").as_uri(), tmp_path / "clone")
    assert (said.code, "no snapshot on the remote" in said.error_line) == (ExitCode.USAGE, True)
    said = run("clone", "s3://user:secret-8f1@bucket", tmp_path / "clone")
    assert (said.code, "secret-8f1" in said.err) == (ExitCode.USAGE, False)
    assert not (tmp_path / "clone").exists()


@pytest.mark.parametrize("fill", [[], ["--fill"]])
def test_a_place_that_is_taken(
    copied: Path, template: Path, disk: Path, tmp_path: Path, run: Run, fill: list[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"")
    shutil.copytree(template, tmp_path / "other")
    for place in (full, tmp_path / "other", tmp_path / "file", tmp_path / "no" / "parent"):
        before = digest(place) if place.exists() else None
        said = run("clone", disk.as_uri(), place, "--quiet", *fill)
        assert said.code == ExitCode.USAGE
        assert (digest(place) if place.exists() else None) == before


def test_the_image_is_missing(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """What is left is no vault; the same command goes on."""
    where = tmp_path / "clone"
    (disk / "segments").rename(tmp_path / "segments")
    said = run("clone", disk.as_uri(), where, "--quiet")
    assert said.code == ExitCode.ERROR
    assert not (where / "heads" / "HEAD").exists()
    assert run("ls", where).code != 0
    (tmp_path / "segments").rename(disk / "segments")
    assert run("clone", disk.as_uri(), where, "--quiet").code == 0
    assert got(where, "small", run) == b"a few bytes"
