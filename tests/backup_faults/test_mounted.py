"""A mounted vault that is unmounted, killed or written to while it is synced, and several syncs at once.

The daemon is stopped with SIGSTOP where a test needs a moment to last: then it neither answers nor ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import PASSWORD, Run, command, process, read_file

import vaultfs
from vaultfs.errors import ExitCode

from .conftest import CONTENTS, require_complete_heads, require_next_is_clean
from .real_processes import Ended, Forker
from .s3_double import Asked, S3Double, Stop, each

PATIENCE_S = 60
FILE = os.urandom(150_000)
MAY_SAY = {0, ExitCode.ERROR, ExitCode.NOT_A_VAULT}
"""What a sync says of a folder that is just being unmounted: done; its daemon ended; nothing is mounted there."""


def is_segment(asked: Asked) -> bool:
    return asked.method == "PUT" and "/segments/" in asked.key


def is_put(asked: Asked) -> bool:
    return asked.method == "PUT"


@pytest.fixture
def mounted(source: Path, double: S3Double, folder: Path, passfile: Path, impatient: None) -> Path:
    """The vault, mounted, with a new file in it that is in no snapshot."""
    assert process("mount", source, folder, "--passfile", passfile).code == 0
    (folder / "new").write_bytes(FILE)
    return source


def daemon_of(folder: Path, run: Run) -> int:
    return int(json.loads(run("status", folder, "--json", bare=True).out)["pid"])


@pytest.fixture
def stopped(mounted: Path, folder: Path, run: Run) -> Iterator[Callable[[], None]]:
    """The daemon does not answer; a call lets it go on."""
    pid = daemon_of(folder, run)
    os.kill(pid, signal.SIGSTOP)
    yield lambda: os.kill(pid, signal.SIGCONT)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def started(*words: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def ended(running: subprocess.Popen[bytes]) -> Ended:
    out, err = running.communicate(timeout=PATIENCE_S)
    return Ended(running.returncode, out, err)


def require_new_is_saved(vault: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    """What was written before the mount ended reaches the remote with the next sync, and comes back."""
    double.heal()
    assert run("fsck", vault, "--quiet").code == 0
    said = run("sync", vault, "--snapshot", "--quiet")
    assert said.code == 0, said.err
    require_next_is_clean(vault, double, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
        assert run("restore", double.url, tmp_path / "back", *double.options, "--quiet").code == 0
        assert read_file(tmp_path / "back", "/new") == FILE
        for name, data in CONTENTS.items():
            assert read_file(tmp_path / "back", name) == data


def test_unmounted_while_it_is_synced(
    mounted: Path, folder: Path, double: S3Double, forker: Forker, run: Run, tmp_path: Path
) -> None:
    """Neither waits for the other: what is sent never changes, and the daemon is not needed for it."""
    double.plan = each(is_segment, Stop("before"), times=1)
    running = forker.start("sync", folder, "--quiet")
    double.stopped()
    said = run("umount", folder, bare=True)
    assert (said.code, said.err) == (0, "")
    assert not os.path.ismount(folder)
    double.release()
    assert running.wait().code == 0
    assert run("status", mounted, bare=True).code == 0, "what was written before the sync is all there"
    require_new_is_saved(mounted, double, run, tmp_path)


def test_mounted_anew_and_written_to_while_it_is_synced(
    mounted: Path, folder: Path, double: S3Double, forker: Forker, run: Run, passfile: Path, tmp_path: Path
) -> None:
    double.plan = each(is_segment, Stop("before"), times=1)
    running = forker.start("sync", folder, "--quiet")
    double.stopped()
    assert run("umount", folder, bare=True).code == 0
    assert process("mount", mounted, folder, "--passfile", passfile).code == 0
    (folder / "new").unlink()
    (folder / "large").write_bytes(b"changed")
    for number in range(5):
        (folder / f"more {number}").write_bytes(os.urandom(50_000))
    double.release()
    assert running.wait().code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
        assert run("restore", double.url, tmp_path / "then", *double.options, "--quiet").code == 0
        assert read_file(tmp_path / "then", "/new") == FILE, "it is as it was when the sync began"
        assert read_file(tmp_path / "then", "/large") == CONTENTS["/large"]
    said = run("sync", folder, "--quiet", bare=True)
    assert said.code == 0
    assert run("umount", folder, bare=True).code == 0
    require_next_is_clean(mounted, double, run)


@pytest.mark.parametrize("first", ["umount", "sync"])
def test_begun_while_it_is_unmounted(
    mounted: Path, folder: Path, double: S3Double, run: Run, tmp_path: Path, stopped: Callable[[], None], first: str
) -> None:
    """Both ask the daemon at once.  The sync copies what there is, or says why not; the unmounting succeeds."""
    second = {"umount": "sync", "sync": "umount"}[first]
    words: dict[str, list[str | Path]] = {"umount": ["umount", folder], "sync": ["sync", mounted, "--quiet"]}
    running = {first: started(*words[first])}
    running[second] = started(*words[second])
    stopped()
    said = {name: ended(each_one) for name, each_one in running.items()}
    assert said["umount"].code == 0, said["umount"].err
    assert said["sync"].code in MAY_SAY, said["sync"].err
    assert "internal error" not in said["sync"].err
    assert "Traceback" not in said["sync"].err
    assert (said["sync"].code == 0) == (said["sync"].err == "" or "not mounted, so" in said["sync"].err)
    require_new_is_saved(mounted, double, run, tmp_path)


@pytest.mark.long
def test_synced_and_unmounted_at_once(
    mounted: Path, folder: Path, double: S3Double, run: Run, passfile: Path, tmp_path: Path
) -> None:
    """With nothing stopped: whatever comes first."""
    for number in range(30):
        if not os.path.ismount(folder):
            assert process("mount", mounted, folder, "--passfile", passfile).code == 0
        (folder / "another").write_bytes(b"%d" % number)
        running = [started("sync", folder, "--quiet"), started("umount", folder)]
        sync, umount = map(ended, running)
        assert umount.code == 0, umount.err
        assert sync.code in MAY_SAY, sync.err
        assert "internal error" not in sync.err
        assert double.troubles == []
    require_new_is_saved(mounted, double, run, tmp_path)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_sync_that_ends_while_the_daemon_makes_the_snapshot(
    mounted: Path, folder: Path, double: S3Double, forker: Forker, run: Run, tmp_path: Path,
    stopped: Callable[[], None], number: signal.Signals,
) -> None:  # fmt: skip
    """It waits for the daemon, which does not answer; the daemon does not mind that nobody wants its answer."""
    running = forker.start("sync", folder, "--quiet")
    wait_until_it_waits(running.pid)
    running.send(number)
    said = running.wait()
    assert said.code == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    stopped()
    assert (folder / "new").read_bytes() == FILE
    assert run("sync", folder, "--quiet", bare=True).code == 0
    assert run("umount", folder, bare=True).code == 0
    require_new_is_saved(mounted, double, run, tmp_path)


def wait_until_it_waits(pid: int) -> None:
    """Until a process is connected to a daemon's socket and sleeps."""
    while True:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        links = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # it was closed meanwhile
                links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        if state == "S" and any(link.startswith("socket:") for link in links):
            return
        time.sleep(0.01)


def test_the_daemon_is_killed_while_it_is_synced(
    mounted: Path, folder: Path, double: S3Double, forker: Forker, run: Run, tmp_path: Path
) -> None:
    pid = daemon_of(folder, run)
    double.plan = each(is_segment, Stop("sending"), times=1)
    running = forker.start("sync", folder, "--quiet")
    double.stopped()
    os.kill(pid, signal.SIGKILL)
    double.release()
    assert running.wait().code == 0, "all that it needs is on the disk"
    run("umount", folder, bare=True)
    require_new_is_saved(mounted, double, run, tmp_path)


def test_the_daemon_is_killed_before_it_answers(
    mounted: Path, folder: Path, double: S3Double, forker: Forker, run: Run, tmp_path: Path
) -> None:
    (folder / "new").write_bytes(FILE)
    os.sync()
    with (folder / "new").open("rb") as file:
        os.fsync(file.fileno())
    pid = daemon_of(folder, run)
    os.kill(pid, signal.SIGSTOP)
    running = forker.start("sync", folder, "--quiet")
    wait_until_it_waits(running.pid)
    os.kill(pid, signal.SIGKILL)
    said = running.wait()
    assert said.code == ExitCode.ERROR
    assert "the daemon of" in said.last_line
    run("umount", folder, bare=True)
    require_new_is_saved(mounted, double, run, tmp_path)


# --- several syncs


def test_two_syncs_at_once(source: Path, double: S3Double, forker: Forker, run: Run, impatient: None) -> None:
    """One gets the lock; the other says so and changes nothing."""
    double.plan = each(is_segment, Stop("before"), times=1)
    first = forker.start("sync", source, "--quiet", "--connections", "1")
    double.stopped()
    before = len(double.asked)
    said = run("sync", source, "--quiet", bare=True)
    assert (said.code, "another sync" in said.err) == (ExitCode.LOCKED, True)
    assert len(double.asked) == before
    double.release()
    assert first.wait().code == 0
    require_next_is_clean(source, double, run)


def test_a_sync_that_was_killed_locks_nobody_out(
    source: Path, double: S3Double, forker: Forker, run: Run, impatient: None
) -> None:
    double.plan = each(is_segment, Stop("before"), times=1)
    first = forker.start("sync", source, "--quiet")
    double.stopped()
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    require_next_is_clean(source, double, run)


@pytest.mark.parametrize("where", range(6))
def test_two_machines_send_the_same_vault_at_once(
    source: Path, double: S3Double, forker: Forker, run: Run, impatient: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, where: int,
) -> None:  # fmt: skip
    """Or two users of one machine.  The first is stopped at one of its uploads, and the second overtakes it."""
    count = iter(range(100))
    double.plan = lambda asked: Stop("before") if is_put(asked) and next(count) == where else None
    first = forker.start("sync", source, "--quiet", "--connections", "1")
    stopped_at = double.stopped()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
        assert run("sync", source, "--quiet", bare=True).code == 0
        double.release()
        said = first.wait()
        assert said.code == 0, (stopped_at.key, said.err)
        require_next_is_clean(source, double, run)
    require_next_is_clean(source, double, run)


# --- a vault that is written to


def test_programs_that_write_meanwhile(mounted: Path, folder: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    """Each snapshot is a state that was there: pairs of files that are written one after the other tell it."""
    code = (
        "import sys, os\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    for name in ('first', 'second'):\n"
        "        with open(f'{sys.argv[1]}/{name}.new', 'w') as file: file.write(str(n) * 1000)\n"
        "        os.rename(f'{sys.argv[1]}/{name}.new', f'{sys.argv[1]}/{name}')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)]) as writer:
        try:
            while not (folder / "second").exists():
                time.sleep(0.01)
            for _ in range(2):
                assert run("sync", folder, "--quiet", bare=True).code == 0
        finally:
            writer.kill()
    assert run("umount", folder, bare=True).code == 0
    heads = sorted(key.rpartition("/")[2] for key in double.stored() if key.startswith("heads/"))
    for name in heads:
        chosen = name.partition("-")[2][:12]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(tmp_path / chosen))
            words = ["restore", double.url, tmp_path / f"back {chosen}", *double.options, "--snapshot", chosen]
            assert run(*words, "--quiet").code == 0
            first, second = (_number(tmp_path / f"back {chosen}", file) for file in ("/first", "/second"))
            assert second in {first, first - 1}
    require_complete_heads(double.stored())
    require_new_is_saved(mounted, double, run, tmp_path)


def _number(vault: Path, name: str) -> int:
    with vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD), read_only=True) as found:
        data: Any = b"0"
        if found.exists(name):
            with found.open(name) as file:
                data = file.read()
    text = bytes(data).decode()
    return int(text[: max(1, len(text) // 1000)])
