"""``vaultfs mesh``: have a vault held by its peers, and see that they hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vaultfs.cli.mesh_audit import audit
from vaultfs.cli.mesh_fetch import fetch
from vaultfs.cli.mesh_repair import repair
from vaultfs.cli.mesh_replicate import replicate
from vaultfs.cli.mesh_status import status

SUBVERBS: Mapping[str, Callable[..., int]] = {
    "replicate": replicate,
    "status": status,
    "repair": repair,
    "audit": audit,
    "fetch": fetch,
}
