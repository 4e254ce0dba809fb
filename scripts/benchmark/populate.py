"""Makes a vault of many small files through the Python API; a program of its own, so that its memory ends with it.

Prints the seconds one key derivation of that vault takes: what a mount cannot do without.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import vaultfs
from benchmark.inputs import FILES_PER_DIRECTORY, directory_name
from benchmark.systems import PASSWORD
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret


def populate(path: Path, count: int) -> float:
    """Create a vault with ``count`` files in directories of ``FILES_PER_DIRECTORY``; return the key derivation's time.

    Args:
        path: where the vault will be.
        count: how many files; each has a line of content of its own.
    """
    secret = Secret.password(PASSWORD)
    kdf = KdfParameters.weakest()
    start = time.perf_counter()
    kdf.derive(PASSWORD.encode(), bytes(16))
    derivation_s = time.perf_counter() - start
    vaultfs.create_vault(path, secret, kdf=kdf)
    with vaultfs.open_vault(path, secret) as vault:
        for number in range(count):
            directory = directory_name(number // FILES_PER_DIRECTORY)
            if number % FILES_PER_DIRECTORY == 0:
                vault.makedirs(directory)
            with vault.open(f"{directory}/f{number % FILES_PER_DIRECTORY:04}", "xb") as file:
                file.write(b"content of file %d\n" % number)
    return derivation_s


if __name__ == "__main__":
    print(populate(Path(sys.argv[1]), int(sys.argv[2])))
