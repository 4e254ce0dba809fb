"""``vaultfs version``: print the version."""

from __future__ import annotations

import importlib.metadata
import platform

from vaultfs.cli.output import emit_json, say
from vaultfs.errors import ExitCode

_COMPONENTS = ("apsw-sqlite3mc", "blake3", "cryptography", "pyfuse3", "trio")


def run(*, json: bool = False) -> int:
    """Print the version of vaultfs.

    Args:
        json: Print the versions of Python and of the main components too, as JSON.
    """
    version = importlib.metadata.version("vaultfs")
    if json:
        components = {name: importlib.metadata.version(name) for name in _COMPONENTS}
        emit_json({"vaultfs": version, "python": platform.python_version(), "components": components})
    else:
        say(f"vaultfs {version}")
    return ExitCode.OK
