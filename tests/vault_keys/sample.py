"""What the vault of these tests holds, and what opens it."""

from __future__ import annotations

import os
from pathlib import Path

import vaultfs
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret

PASSWORD = "correct horse battery"
OTHER_PASSWORD = "staple tray lamp"

FILES = {
    "/small": b"a few bytes",
    "/large": os.urandom(700_000),
    "/twin": b"",
    "/dir/deep": os.urandom(150_000),
}
FILES["/twin"] = FILES["/large"]


KEY, KEY_TEXT = Secret.generate_recovery()
"""Recovery keys need no slow derivation; where the kind of secret does not matter, they save seconds."""
OTHER, OTHER_TEXT = Secret.generate_recovery()
THIRD, _ = Secret.generate_recovery()
WEAK = KdfParameters.weakest()


def secret() -> Secret:
    return Secret.password(PASSWORD)


def other() -> Secret:
    return Secret.password(OTHER_PASSWORD)


def require_files(path: Path, key: Secret) -> None:
    """The vault opens with this secret and holds every file to the byte."""
    with vaultfs.open_vault(path, key) as vault:
        for name, content in FILES.items():
            with vault.open(name) as file:
                assert file.read() == content, name
