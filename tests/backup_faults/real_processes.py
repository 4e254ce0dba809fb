"""Real ``vaultfs`` processes that start quickly: forked from one that has everything imported already.

The command runs in a process of its own, with its own signals, environment and end; only the half second that Python
takes to import its libraries is not spent each time.  The process that forks has one thread and never runs a command.
It stretches passwords if it is asked to, so that no command has to for the vaults whose passwords it knows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

PATIENCE_S: Final = 120.0

_FORKER: Final = """
import importlib, json, os, sys, traceback
import boto3, botocore.config, blake3, msgspec
boto3.session.Session(region_name="us-east-1").client("s3", aws_access_key_id="x", aws_secret_access_key="x").close()
from vaultfs.cli.main import main
from vaultfs.cli.verbs import VERBS
for verb in VERBS:
    importlib.import_module(f"vaultfs.cli.{verb}")
import vaultfs.cli.parsing, vaultfs.vault.shipping, vaultfs.remotes.s3, vaultfs.remotes.directory
import vaultfs.fuse.daemon, vaultfs.fuse.mounted, vaultfs.fuse.operations
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
known, real = {}, KdfParameters.derive
def derive(self, secret, salt):
    key = (self, bytes(secret), bytes(salt))
    if key not in known:
        known[key] = real(self, secret, salt)
    return known[key]
KdfParameters.derive = derive
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "password" in order:
        with open(order["header"], "rb") as file:
            VaultHeader.decode(file.read()).unlock(Secret.password(order["password"].encode()))
        print("stretched", flush=True)
        continue
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setsid()
            for number, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(order["environment"])
            code = main(order["words"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        printed: on standard output.
        complained: on standard error.
    """

    code: int
    printed: bytes
    complained: bytes

    @property
    def out(self) -> str:
        """What it printed, for people."""
        return self.printed.decode(errors="replace")

    @property
    def err(self) -> str:
        """What it complained of, for people."""
        return self.complained.decode(errors="replace")

    @property
    def last_line(self) -> str:
        """The last line on standard error."""
        return (self.err.splitlines() or [""])[-1]


class Running:
    """A command that runs."""

    def __init__(self, forker: subprocess.Popen[str], place: Path, pid: int) -> None:
        assert pid > 1, "a signal to such a process would go to many"
        self._forker = forker
        self._place = place
        self.pid = pid
        self.has_ended = False

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end."""
        assert self._forker.stdout is not None
        code = int(self._forker.stdout.readline())
        self.has_ended = True
        out, err = (self._place.with_suffix(suffix).read_bytes() for suffix in (".out", ".err"))
        return Ended(code, out, err)


class Forker:
    """Starts commands, one at a time.

    Args:
        place: a directory for what they print.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._count = 0
        self._last: Running | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._output.readline() == "ready\n"

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def start(self, *words: str | Path, environment: Mapping[str, str] = os.environ) -> Running:
        """Run a command in the background; what a test that failed has left running is killed."""
        self._end_last()
        self._count += 1
        place = self._place / f"{self._count}.x"
        order: dict[str, Any] = {
            "words": [str(word) for word in words],
            "environment": dict(environment),
            "out": str(place.with_suffix(".out")),
            "err": str(place.with_suffix(".err")),
        }
        self._send(order)
        self._last = Running(self._process, place, int(self._output.readline()))
        return self._last

    def run(self, *words: str | Path, environment: Mapping[str, str] = os.environ) -> Ended:
        """Run a command to its end."""
        return self.start(*words, environment=environment).wait()

    def stretch(self, vault: Path, password: str) -> None:
        """Derive the key of a vault from its password, for all commands from now on."""
        self._end_last()
        self._send({"header": str(vault / "vault.json"), "password": password})
        assert self._output.readline() == "stretched\n"

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _end_last(self) -> None:
        if self._last is not None and not self._last.has_ended:
            self._last.send(signal.SIGKILL)
            self._last.wait()

    def close(self) -> None:
        """End."""
        self._end_last()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._output.close()


@contextmanager
def forking(place: Path) -> Iterator[Forker]:
    """Have a forker."""
    forker = Forker(place)
    try:
        yield forker
    finally:
        forker.close()
