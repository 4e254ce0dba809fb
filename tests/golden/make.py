"""Made ``format-1`` and ``format-1.json``, once.  A golden vault is never made again: it has to open for ever.

A later format gets a vault of its own beside it: ``python -m tests.golden.make tests/golden/format-2``.  The vault
must not exist.  ``python -m tests.golden.longhand tests/golden/format-1`` prints the values for docs/format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.storage.durable import atomic_replace
from vaultfs.vault.api import Vault, open_vault
from vaultfs.vault.opening import create_vault

PASSWORD = "golden vault"
CHUNK_BYTES = 4096
HELLO = b"Hello from inside the vault.\n"
MOMENT_NS = 1_700_000_000_123_456_789


def numbers(count: int) -> bytes:
    """Text that compresses well: one number a line."""
    return b"".join(b"%d\n" % number for number in range(count))


def noise(size: int) -> bytes:
    """Bytes that do not compress, the same every time."""
    return hashlib.shake_256(b"vaultfs golden vault").digest(size)


def write(vault: Vault, path: str, data: bytes) -> None:
    with vault.open(path, "wb") as file:
        file.write(data)


def fill(vault: Vault) -> None:
    vault.makedirs("/documents/empty folder")
    write(vault, "/documents/hello.txt", HELLO)
    write(vault, "/documents/numbers.txt", numbers(2000))
    write(vault, "/documents/noise.bin", noise(2 * CHUNK_BYTES + 100))
    write(vault, "/documents/copy of noise.bin", noise(2 * CHUNK_BYTES + 100))
    write(vault, "/documents/to be changed.txt", b"as it was at the snapshot\n")
    write(vault, "/empty", b"")
    with vault.open("/documents/hole", "wb") as file:
        file.pwrite(b"before", 0)
        file.pwrite(b"after", 10 * CHUNK_BYTES)
        file.truncate(100 * CHUNK_BYTES + 1)
    vault.symlink("documents/hello.txt", "/link")
    vault.link("/documents/hello.txt", "/hard link")
    vault.mknod("/fifo", stat.S_IFIFO | 0o644)
    write(vault, os.fsdecode(b"/not UTF-8 \xff\xfe"), b"names are bytes\n")
    vault.setxattr("/documents/hello.txt", b"user.comment", b"an extended attribute\0with a zero")
    vault.chmod("/documents/noise.bin", 0o4711)


def change(vault: Vault) -> None:
    write(vault, "/documents/to be changed.txt", b"as it is now\n")
    vault.remove("/documents/copy of noise.bin")


def set_times(vault: Vault) -> None:
    """Fixed times; those of directories last, as nothing changes them any more."""
    for path in sorted(walk(vault), key=len, reverse=True):
        if not stat.S_ISLNK(vault.stat(path, follow=False).st_mode):
            vault.utime(path, MOMENT_NS, MOMENT_NS + len(path))


def walk(vault: Vault, top: bytes = b"/") -> list[bytes]:
    """All paths, without the root."""
    found = []
    for name in sorted(vault.listdir(top)):
        path = os.path.join(top, name)
        found.append(path)
        if stat.S_ISDIR(vault.stat(path, follow=False).st_mode):
            found += walk(vault, path)
    return found


def describe(vault: Vault) -> dict[str, dict[str, Any]]:
    """What can be seen of each file, but for owners, which depend on who made the vault."""
    described: dict[str, dict[str, Any]] = {}
    for path in walk(vault):
        found = vault.stat(path, follow=False)
        entry: dict[str, Any] = {"mode": oct(found.st_mode), "size": found.st_size, "links": found.st_nlink}
        if stat.S_ISLNK(found.st_mode):
            entry["target"] = os.fsdecode(vault.readlink(path))
        else:
            entry["mtime_ns"] = found.st_mtime_ns
        if stat.S_ISREG(found.st_mode):
            with vault.open(path) as file:
                entry["sha256"] = hashlib.sha256(file.read()).hexdigest()
        names = [] if stat.S_ISLNK(found.st_mode) else vault.listxattr(path)
        if names:
            entry["xattrs"] = {name.decode(): vault.getxattr(path, name).hex() for name in sorted(names)}
        described[path.decode("latin-1")] = entry
    return described


def make(target: Path) -> None:
    password = Secret.password(PASSWORD)
    recovery, recovery_text = Secret.generate_recovery()
    create_vault(
        target,
        password,
        chunk_size_bytes=CHUNK_BYTES,
        compression="zstd",
        kdf=KdfParameters.weakest(),
        label="password",
    )
    with open_vault(target, password) as vault:
        fill(vault)
        set_times(vault)
        then = describe(vault)
        vault.create_snapshot("golden")
        change(vault)
        set_times(vault)
        now = describe(vault)
    path = target / "vault.json"
    header = VaultHeader.decode(path.read_bytes())
    keyring = header.unlock(password)
    header = header.add_slot(keyring, recovery, label="paper", kdf=KdfParameters.weakest())
    atomic_replace(path, header.encode())
    (target / "lock").unlink()
    facts = {"password": PASSWORD, "recovery_key": recovery_text, "now": now, "snapshot 1": then}
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    Path(f"{target}.json").write_text(text, encoding="utf-8")


def main() -> None:
    target = Path(sys.argv[1]).absolute()
    if target.exists():
        sys.exit(f"{target} exists, and a golden vault is never made again")
    with tempfile.TemporaryDirectory() as state:
        os.environ["XDG_STATE_HOME"] = state  # no witness of it is wanted
        try:
            make(target)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise


if __name__ == "__main__":
    main()
