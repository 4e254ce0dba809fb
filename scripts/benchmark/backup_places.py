"""Running a program and measuring what it takes, and the places that backups go to: a directory, an S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmark import launch
from benchmark.systems import COMMAND_LIMIT_S, BenchError


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Args:
        wall_s: from its start to its end.
        processor_s: of the program, its children, and of vaultfs's daemon where one took part; not of a server.
        peak_mib: resident memory of the largest process.
    """

    wall_s: float
    processor_s: float
    peak_mib: float

    def __add__(self, other: Usage) -> Usage:
        """One after the other."""
        return Usage(
            self.wall_s + other.wall_s, self.processor_s + other.processor_s, max(self.peak_mib, other.peak_mib)
        )


def measured(
    command: list[str], *, env: dict[str, str], cwd: Path | None = None, limit_s: float = COMMAND_LIMIT_S
) -> Usage:
    """Run a program to its end.

    Args:
        command: program and arguments.
        env: variables on top of this process's own.
        cwd: its working directory.
        limit_s: how long it may take.

    Raises:
        BenchError: it returned anything but 0, or took longer.
    """
    environment = {**os.environ, **env}
    environment.pop("AWS_CA_BUNDLE", None)  # the AWS library of rclone 1.60 refuses to start with it
    with tempfile.TemporaryFile() as said, tempfile.NamedTemporaryFile("r") as report:
        launching = [sys.executable, "-S", "-E", launch.__file__, report.name, *command]
        with subprocess.Popen(
            launching,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as launcher:
            watchdog = threading.Timer(limit_s, os.killpg, (launcher.pid, signal.SIGKILL))
            watchdog.start()
            try:
                launcher.wait()
            finally:
                watchdog.cancel()
        found = report.read().split()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if len(found) != 4:
        raise BenchError(f"{Path(command[0]).name} {command[1]} could not be run, or took longer than {limit_s:.0f} s")
    wall_s, processor_s, peak_kib, code = (float(word) for word in found)
    if code:
        last = (lines or ["no message"])[-1]
        raise BenchError(f"{Path(command[0]).name} {command[1]} returned {code:.0f}: {last}")
    return Usage(wall_s, processor_s, peak_kib / 1024)


class Place:
    """Where backups go: a directory.

    Args:
        directory: a new one is made there.
    """

    kind: ClassVar[str] = "directory"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def sent(self) -> tuple[int, int | None]:
        """Return the bytes that have come, and the PUT requests, since the last call; None where there are none."""
        now = sum(path.lstat().st_size for path in self.directory.glob("**/*") if path.is_file())
        before, self._before = getattr(self, "_before", 0), now
        return now - before, None


class S3Place(Place):
    """Where backups go: a bucket of the server in `benchmark.s3_server`."""

    kind: ClassVar[str] = "S3"

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory)
        self.endpoint = f"http://127.0.0.1:{port}"
        self.bucket = directory.name
        self.sent()

    def sent(self) -> tuple[int, int | None]:
        with urllib.request.urlopen(f"{self.endpoint}/-/counts") as answer:
            counts = json.load(answer)
        return counts["received_bytes"], counts["requests"].get("PUT object", 0)


@contextmanager
def s3_place(directory: Path) -> Iterator[S3Place]:
    """Run a server with a bucket whose objects lie in a directory."""
    directory.mkdir()
    command = [sys.executable, "-m", "benchmark.s3_server", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        if server.stdin is None or server.stdout is None:
            raise BenchError("the S3 server has no pipes")
        try:
            yield S3Place(directory / "bucket", int(server.stdout.readline()))
        finally:
            server.stdin.close()
            server.wait()
