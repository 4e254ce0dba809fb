"""Reading units as systemd does, and asking systemd what it thinks of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ANALYZE = shutil.which("systemd-analyze")


def section(text: str, name: str) -> list[tuple[str, str]]:
    """The assignments of a section, in order."""
    body = re.split(r"^\[", text, flags=re.MULTILINE)
    (part,) = [each for each in body if each.startswith(f"{name}]")]
    lines = [line for line in part.splitlines()[1:] if line and not line.startswith("#")]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def words(line: str, *, replaces_variables: bool) -> list[str]:
    """Words of a unit's line: quotes and backslashes, then specifiers, then variables (which fail the test)."""
    found: list[str] = []
    rest = line
    while rest:
        match = re.match(r'"((?:[^"\\]|\\.)*)"(?: |$)', rest)
        assert match, f"not a quoted word: {rest}"
        rest = rest[match.end() :]
        word = re.sub(r"\\(.)", lambda each: {'"': '"', "\\": "\\"}[each[1]], match[1])
        assert not re.search(r"%(?!%)", word.replace("%%", "")), "a specifier"
        word = word.replace("%%", "%")
        if replaces_variables and found:
            assert "$" not in word.replace("$$", ""), "a variable"
            word = word.replace("$$", "$")
        found.append(word)
    return found


def command_of(service: str) -> list[str]:
    return words(dict(section(service, "Service"))["ExecStart"], replaces_variables=True)


def accepted(service: Path) -> None:
    """What systemd itself says to a unit, if it is installed: nothing.  It looks at the machine's other units too."""
    if ANALYZE is None:
        return
    units = [each for each in (service, service.with_suffix(".timer")) if each.exists()]
    with tempfile.TemporaryDirectory() as runtime:
        said = subprocess.run(
            [ANALYZE, "verify", "--man=no", "--user", *map(str, units)],
            env={"XDG_RUNTIME_DIR": runtime, "PATH": os.environ["PATH"]},
            capture_output=True,
            check=False,
        )
    assert (said.returncode, [line for line in said.stderr.decode().splitlines() if service.stem in line]) == (0, [])
