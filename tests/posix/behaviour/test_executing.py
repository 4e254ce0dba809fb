"""Programs that lie in the folder."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

from .calls import fails, opened


def test_a_program_runs(mounted: Path) -> None:
    program = mounted / "program"
    program.write_bytes(Path("/bin/echo").read_bytes())
    program.chmod(0o755)
    assert subprocess.run([program, "hello"], capture_output=True, check=True).stdout == b"hello\n"


def test_a_script_runs(mounted: Path) -> None:
    script = mounted / "script"
    script.write_text('#!/bin/sh\necho "$0"\n', encoding="ascii")
    script.chmod(0o755)
    assert subprocess.run([script], capture_output=True, check=True).stdout == os.fsencode(script) + b"\n"


def test_a_running_program_cannot_be_written_but_replaced(mounted: Path) -> None:
    program = mounted / "program"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"running\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"running\n"
        with fails(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
        new = mounted / "new"
        with opened(new, os.O_CREAT | os.O_WRONLY, 0o755) as descriptor:
            os.write(descriptor, b"#!/bin/sh\n")
        new.rename(program)
        process.stdin.write(b"still running\n")
        process.stdin.close()
        assert process.stdout.read() == b"still running\n"
    assert process.returncode == 0
    assert program.read_bytes() == b"#!/bin/sh\n"
