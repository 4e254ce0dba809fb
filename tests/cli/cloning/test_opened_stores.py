"""Which stores a command or a daemon opens, and that it closes them; clients of clouds are not loaded for nothing."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from cli.conftest import Run, command
from vaultfs.errors import ExitCode
from vaultfs.sync.remote_segments import RemoteSegments

from .clones import PATIENCE_S, umount


def test_whatever_was_opened_is_closed(clone: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[RemoteSegments] = []
    real = RemoteSegments.close

    def close(self: RemoteSegments) -> None:
        closed.append(self)
        real(self)

    monkeypatch.setattr(RemoteSegments, "close", close)
    for count, (words, code) in enumerate(
        [
            (["cat", clone, "/small"], ExitCode.OK),
            (["cat", clone, "/nothing"], ExitCode.ERROR),
            (["fsck", clone, "--quiet"], ExitCode.OK),
            (["rm", clone, "/small"], ExitCode.OK),
        ]
    ):
        assert run(*words).code == code
        assert len(closed) == count + 1


@pytest.mark.fuse
@pytest.mark.parametrize("more", [[], ["--fill"]])
def test_a_daemon_closes_what_it_has_opened(
    clone: Path, disk: Path, folder: Path, passfile: Path, tmp_path: Path, run: Run, more: list[str]
) -> None:
    """Each store once, whoever opened it."""
    words = command("mount", clone, folder, "--foreground", "--passfile", passfile, *more)
    program = f"""
import os, sys
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.cli.main import main
def say(what):
    os.write(1, what.encode() + b"\\n")  # at once, as several threads do
class Recording(DirectoryStore):
    def get(self, key, **where):
        say(f"asked {{id(self)}}")
        yield from super().get(key, **where)
    def close(self):
        say(f"closed {{id(self)}}")
        super().close()
import vaultfs.remotes.urls
vaultfs.remotes.urls.DirectoryStore = Recording
sys.exit(main({words[3:]!r}))
"""
    with (
        (tmp_path / "err").open("wb") as err,
        subprocess.Popen([words[0], "-c", program], stdout=subprocess.PIPE, stderr=err) as daemon,
    ):
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.ismount(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (folder / "small").read_bytes() == b"a few bytes"
        umount(folder, run)
        out, _ = daemon.communicate(timeout=PATIENCE_S)
    assert daemon.returncode == 0
    lines = out.splitlines()
    asked = {line.split()[1] for line in lines if line.startswith(b"asked")}
    assert sorted(line.split()[1] for line in lines if line.startswith(b"closed")) == sorted(asked)
    assert len(asked) in ({1, 2} if more else {1})


@pytest.mark.fuse
@pytest.mark.parametrize("has_remote", [False, True])
def test_what_mount_imports(
    vault: Path, disk: Path, folder: Path, passfile: Path, tmp_path: Path, run: Run, *, has_remote: bool
) -> None:
    """Clients of clouds take long to load, and much memory."""
    if has_remote:
        assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    python, *words = command("mount", vault, folder, "--foreground", "--passfile", passfile)
    with (
        (tmp_path / "err").open("wb") as err,
        subprocess.Popen([python, "-X", "importtime", *words], stderr=err) as daemon,
    ):
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.ismount(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        (folder / "file").write_bytes(b"contents")
        assert (folder / "file").read_bytes() == b"contents"
        umount(folder, run)
        assert daemon.wait(PATIENCE_S) == 0
    lines = (tmp_path / "err").read_text().splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "pyfuse3" in imported, "or this would test nothing"
    assert not imported & {"boto3", "botocore", "opendal", "vaultfs.remotes.s3", "vaultfs.remotes.opendal_services"}
    assert ("vaultfs.sync.remote_segments" in imported) == has_remote
