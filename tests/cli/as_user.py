"""Runs a scenario of commands as an ordinary user; started by root in a mount namespace of its own.

Usage: python -m tests.cli.as_user VAULT FOLDER PASSFILE.  Everything is imported first: the user may not be able to
read the Python that runs the tests.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import sys
from pathlib import Path

import vaultfs
from vaultfs.cli.main import main

from .conftest import NOBODY

PR_SET_DUMPABLE = 4


def become_ordinary() -> None:
    for module in pkgutil.walk_packages(vaultfs.__path__, "vaultfs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    # As after a login: a change of user by the process itself hides its /proc/self/fd from itself.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def scenario(vault: Path, folder: Path, passfile: Path) -> dict[str, object]:
    secret = ["--passfile", str(passfile)]
    found: dict[str, object] = {"init": main(["init", str(vault), *secret, "--kdf-memory", "64M"])}
    found["mount"] = main(["mount", str(vault), str(folder), *secret])
    try:
        (folder / "file").write_text("by an ordinary user")
        status = (folder / "file").stat()
        found["owner"] = [status.st_uid, status.st_gid]
        found["source"] = [
            line.split(" ")[0]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if line.split(" ")[1] == str(folder)
        ]
    finally:
        found["umount"] = main(["umount", str(folder)])
    found["is_mount"] = os.path.ismount(folder)
    found["cat"] = main(["cat", str(vault), "/file", *secret])
    found["allow_other"] = main(["mount", str(vault), str(folder), *secret, "--allow-other"])
    if os.path.ismount(folder):
        found["umount again"] = main(["umount", str(folder)])
    return found


if __name__ == "__main__":
    become_ordinary()
    results = scenario(*map(Path, sys.argv[1:4]))
    print("\n" + json.dumps(results), flush=True)
