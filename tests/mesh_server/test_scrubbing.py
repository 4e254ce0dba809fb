"""What a peer does while nobody wants anything."""

from __future__ import annotations

from typing import cast

import pytest
import trio
from trio.testing import MockClock

from vaultfs.errors import RemoteError
from vaultfs.mesh.answers import Answers
from vaultfs.mesh.conversation import Resources
from vaultfs.mesh.replica_scrub import Scrubbed
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.scrubbing import REST_S, tend_replicas

from .running import PEER

STEP = Scrubbed(4, 1, (), False)


class Store:
    """Says when it was asked."""

    def __init__(self, steps: list[Scrubbed | RemoteError]) -> None:
        self.steps = steps
        self.scrubbed_at_s: list[float] = []
        self.removed_at_s: list[float] = []
        self.budgets: list[int] = []
        self.done = trio.Event()

    def scrub_some(self, budget_bytes: int) -> Scrubbed:
        self.scrubbed_at_s.append(trio.from_thread.run_sync(trio.current_time))
        self.budgets.append(budget_bytes)
        step = self.steps.pop(0)
        if not self.steps:
            trio.from_thread.run_sync(self.done.set)
        if isinstance(step, RemoteError):
            raise step
        return step

    def remove_old_partials(self) -> int:
        self.removed_at_s.append(trio.from_thread.run_sync(trio.current_time))
        return 0


async def tend(store: Store, resources: Resources, clock: MockClock) -> None:
    clock.autojump_threshold = 0.02
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tend_replicas, cast("ReplicaStore", store), resources, 77, 10.0)
        await store.done.wait()
        nursery.cancel_scope.cancel()


def resources_of(store: Store) -> Resources:
    return Resources(Answers(PEER, cast("ReplicaStore", store), None, None))  # type: ignore[arg-type]


async def test_it_goes_on_in_steps_and_rests_after_a_round(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = Scrubbed(4, 1, ("aa/segments/bb/cc",), False)
    store = Store([STEP, damaged, Scrubbed(4, 1, (), True), STEP])
    await tend(store, resources_of(store), mock_clock)
    assert store.scrubbed_at_s == [10.0, 20.0, 30.0, 30.0 + REST_S]
    assert store.removed_at_s == [30.0 + REST_S]
    assert store.budgets == [77] * 4
    assert "aa/segments/bb/cc" in caplog.text


async def test_a_disk_that_fails_is_left_alone_for_an_hour(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store([RemoteError("cannot read"), STEP])
    await tend(store, resources_of(store), mock_clock)
    assert store.scrubbed_at_s == [10.0, 3610.0]
    assert "cannot read" in caplog.text


async def test_objects_on_their_way_come_first(mock_clock: MockClock) -> None:
    store = Store([STEP])
    resources = resources_of(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tend, store, resources, mock_clock)
        async with resources.bodies:
            await trio.sleep(35)
    assert store.scrubbed_at_s == [40.0]
