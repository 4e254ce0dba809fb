"""A peer looks after what it stores, while nobody sends or fetches anything: it reads all objects from time to time."""

from __future__ import annotations

import logging
from typing import Final

import trio

from vaultfs.errors import VaultError
from vaultfs.mesh.conversation import Resources
from vaultfs.mesh.replicas import ReplicaStore

log = logging.getLogger(__name__)

REST_S: Final = 86_400.0
"""Between two rounds; a disk that goes bad is found within days, and a small one is not read all the time."""
_AFTER_FAILURE_S: Final = 3600.0
MOST_PATIENCE_S: Final = 60.0
"""A step is taken after so long, whatever is under way: somebody may fetch something all the time, and slowly."""


async def tend_replicas(store: ReplicaStore, resources: Resources, step_bytes: int, pause_s: float) -> None:
    """Read objects to find damage, and remove what was interrupted long ago, until cancelled.

    Args:
        store: the replicas.
        resources: its threads; while a body is under way little is read.
        step_bytes: to read at once.
        pause_s: between two steps.
    """
    remove_at_s = trio.current_time() + REST_S  # opening the store has just done it
    wait_s = pause_s
    due_s = trio.current_time() + MOST_PATIENCE_S
    while True:
        await trio.sleep(wait_s)
        wait_s = pause_s
        if resources.bodies.borrowed_tokens and trio.current_time() < due_s:
            continue
        due_s = trio.current_time() + MOST_PATIENCE_S
        try:
            if trio.current_time() >= remove_at_s:
                remove_at_s = trio.current_time() + REST_S
                await resources.disk(store.remove_old_partials)
            step = await resources.disk(store.scrub_some, step_bytes)
        except VaultError as error:
            log.error("looking for damaged replicas failed, and goes on in an hour: %s", error)  # noqa: TRY400
            wait_s = _AFTER_FAILURE_S
            continue
        for name in step.damaged:
            log.error("a replica is damaged and was moved aside; its owner will store it again: %s", name)
        if step.is_round_complete:
            wait_s = REST_S
