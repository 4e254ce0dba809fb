"""Small things that the tests of the header share."""

from __future__ import annotations

import json
from typing import Any

from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret

WEAKEST = KdfParameters.weakest()


def new_secret() -> Secret:
    return Secret.generate_recovery()[0]


def keys_of(ring: Keyring) -> list[tuple[int, bytes]]:
    return [(master.epoch, master.key) for master in ring.masters]


def edited(header: VaultHeader, **changes: Any) -> bytes:
    """vault.json with fields changed by hand."""
    fields = json.loads(header.encode())
    fields.update(changes)
    return json.dumps(fields).encode()
