"""Runs one workload on one store: ``python -m tests.crash.worker STORE ROOT MARKS WORKLOAD SEED STEPS``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from .stores import SqliteStore, Store
from .vault_store import SMALL_LIMITS, VaultStore
from .workload import generate, run

STORES: Mapping[str, Callable[[Path], Store]] = {
    "sqlite": SqliteStore,
    "sqlite-unsafe": partial(SqliteStore, synchronous="OFF"),
    "vault": VaultStore,
}


def main(kind: str, root: str, marks: str, workload: str, seed: str, steps: str) -> None:
    """Run it."""
    for module, limit, size in SMALL_LIMITS:
        setattr(module, limit, size)
    run(generate(workload, int(seed), int(steps)), lambda: STORES[kind](Path(root)), Path(marks))


if __name__ == "__main__":
    main(*sys.argv[1:])
