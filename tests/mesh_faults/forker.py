"""Has everything imported, and forks a process for each command; run by `machines.Forker`, and never a test's import.

One thread, and it never runs a command itself.  What is changed in the children is what a test cannot wait for: how
long something takes to be given up.  And each child tells what the counters of its pools were at their end.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
MODULES = (
    "boto3",
    "vaultfs.cli.parsing",
    "vaultfs.cli.peer_daemon",
    "vaultfs.mesh.client",
    "vaultfs.mesh.first_contact",
    "vaultfs.mesh.store",
    "vaultfs.mesh.witnessing",
    "vaultfs.vault.shipping",
    "vaultfs.fuse.operations",
)

libc = ctypes.CDLL(None, use_errno=True)


def stretch_once(vault: str, password: str) -> None:
    """Children find the key of a password where it was derived already."""
    from vaultfs.crypto.header import VaultHeader
    from vaultfs.crypto.kdf import KdfParameters
    from vaultfs.crypto.slots import Secret

    known: dict[tuple[object, bytes, bytes], bytes] = {}
    real = KdfParameters.derive

    def derive(self: KdfParameters, secret: bytes, salt: bytes) -> bytes:
        key = (self, bytes(secret), bytes(salt))
        if key not in known:
            known[key] = real(self, secret, salt)
        return known[key]

    KdfParameters.derive = derive  # type: ignore[method-assign]
    VaultHeader.decode(Path(vault, "vault.json").read_bytes()).unlock(Secret.password(password))


def change(settings: dict[str, Any]) -> None:
    """Change constants, and defaults of dataclasses."""
    for place, value in settings.items():
        module_name, _, name = place.partition(":")
        module = importlib.import_module(module_name)
        kind_name, dot, field = name.partition(".")
        if not dot:
            assert hasattr(module, name), place
            setattr(module, name, value)
            continue
        kind = getattr(module, kind_name)
        assert dataclasses.is_dataclass(kind)
        init: Any = kind.__init__  # type: ignore[misc]
        optional = [each.name for each in inspect.signature(init).parameters.values() if each.default is not each.empty]
        defaults = list(init.__defaults__)
        defaults[optional.index(field)] = value
        init.__defaults__ = tuple(defaults)


def watch_pools(where: str) -> None:
    """Write down how pools end."""
    client: Any = importlib.import_module("vaultfs.mesh.client")
    real = client.open_pool

    def tell(what: dict[str, Any]) -> None:
        with Path(where).open("a", encoding="ascii") as file:
            file.write(json.dumps(what) + "\n")

    @asynccontextmanager
    async def open_pool(*words: Any, **options: Any) -> AsyncIterator[Any]:
        tell({"began": True})
        pool: Any = None
        try:
            async with real(*words, **options) as pool:
                yield pool
        finally:
            tell({"counters": dataclasses.asdict(pool.snapshot().counters), "wrong": pool.audit()})

    client.open_pool = open_pool


def enter(namespace: str) -> None:
    """Be in another network."""
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(descriptor)


def become(order: dict[str, Any]) -> int:
    """Be the process that was asked for."""
    from vaultfs.cli.main import main

    os.setsid()
    for number, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    if order["namespace"] is not None:
        enter(order["namespace"])
    if order["executable"] is not None:
        words = [order["executable"], "-m", "vaultfs.cli", *order["words"]]
        os.execve(words[0], words, order["environment"])
    change(order["settings"])
    watch_pools(order["pools"])
    return main(order["words"])


def fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = become(order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(vault: str, password: str) -> None:
    from vaultfs.cli.verbs import VERBS

    for verb in VERBS:
        importlib.import_module(f"vaultfs.cli.{verb}")
    for module in MODULES:
        importlib.import_module(module)
    stretch_once(vault, password)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        else:
            print(fork(order), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
