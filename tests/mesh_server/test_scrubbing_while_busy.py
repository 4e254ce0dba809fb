"""Somebody who fetches something all the time does not keep a peer from looking after what it stores."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from mesh_server.test_scrubbing import STEP, Store, resources_of, tend
from vaultfs.mesh.scrubbing import MOST_PATIENCE_S


async def test_a_step_is_taken_now_and_then(mock_clock: MockClock) -> None:
    store = Store([STEP, STEP, STEP])
    resources = resources_of(store)
    async with resources.bodies, trio.open_nursery() as nursery:
        nursery.start_soon(tend, store, resources, mock_clock)
        await store.done.wait()
    assert store.scrubbed_at_s == [MOST_PATIENCE_S, 2 * MOST_PATIENCE_S, 3 * MOST_PATIENCE_S]
