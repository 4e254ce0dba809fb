"""A process that mounts `MemoryOperations` and reports on stdout; the session tests start it to signal and kill it.

Usage: python -m tests.fuse_session.host '{"mountpoint": …, …}'.  Prints one JSON object when ready and one at the end.
Each line on stdin is answered with the counts of requests so far.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

from vaultfs.errors import VaultError
from vaultfs.fuse.session import MountRequest, Tricks, serve

from .memory_fs import MemoryOperations


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> int:
    wanted = json.loads(sys.argv[1])
    if (user := wanted.pop("user", None)) is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    grace_s = wanted.pop("grace_s", 5.0)
    request = MountRequest(
        source=wanted.pop("source", "vault"),
        mountpoint=Path(wanted.pop("mountpoint")),
        options=tuple(wanted.pop("options", ())),
        tricks=Tricks(**wanted.pop("tricks", {})),
        **wanted,
    )
    operations = MemoryOperations()

    async def answer() -> None:
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            say(counts=operations.counts)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await serve(operations, request, on_ready=partial(say, ready=True), grace_s=grace_s)
            nursery.cancel_scope.cancel()

    code = 0
    try:
        trio.run(run)
    except* VaultError as group:
        error = group.exceptions[0]
        assert isinstance(error, VaultError)
        say(error=str(error), kind=type(error).__name__)
        code = int(error.exit_code)
    else:
        say(ended=True, counts=operations.counts)
    return code


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the thread in readline() would keep the interpreter alive
