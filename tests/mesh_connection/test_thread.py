"""Calls from other threads: many at once, an end meanwhile, faults, and a fork."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import trio

from vaultfs.errors import RemoteError, RemoteUnreachableError
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.thread import MeshThread

IDENTITY = Identity.of_seed(b"t" * 32)
PATIENCE_S = 30


@pytest.fixture
def thread() -> Iterator[MeshThread]:
    made = MeshThread(lambda: IDENTITY, [])
    yield made
    made.close()


async def one(client: MeshClient) -> int:
    return 1


async def never(client: MeshClient) -> int:
    await trio.sleep_forever()
    raise AssertionError


async def failing(client: MeshClient) -> int:
    raise RemoteError("it fails")


async def wrong(client: MeshClient) -> int:
    raise ZeroDivisionError


async def broken() -> None:
    raise ZeroDivisionError


async def breaking(client: MeshClient) -> int:
    client.pool._nursery.start_soon(broken)  # as a fault in a connection would
    return await never(client)


def test_a_failure_of_one_call_is_that_of_one(thread: MeshThread) -> None:
    for _ in range(2):
        with pytest.raises(RemoteError, match="it fails"):
            thread.call(failing)
        with pytest.raises(ZeroDivisionError):
            thread.call(wrong)
        assert thread.call(one) == 1


def test_who_waits_hears_of_the_end(thread: MeshThread) -> None:
    heard: list[str] = []
    begun = threading.Barrier(6)

    async def beginning(client: MeshClient) -> int:
        await trio.to_thread.run_sync(begun.wait)
        return await never(client)

    def call() -> None:
        try:
            thread.call(beginning)
        except RemoteUnreachableError as error:
            heard.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(5)]
    for caller in callers:
        caller.start()
    begun.wait(PATIENCE_S)
    thread.close()
    for caller in callers:
        caller.join(PATIENCE_S)
    assert heard == ["the connections to peers were closed"] * 5
    with pytest.raises(RemoteUnreachableError):
        thread.call(one)


def test_an_identity_that_cannot_be_had_is_asked_for_again() -> None:
    tries: list[int] = []

    def identity() -> Identity:
        tries.append(1)
        if len(tries) == 1:
            raise RemoteError("no identity yet")
        return IDENTITY

    thread = MeshThread(identity, [])
    with pytest.raises(RemoteError):
        thread.call(one)
    assert thread.call(one) == 1
    thread.close()


def test_after_a_fault_it_begins_anew(thread: MeshThread, caplog: pytest.LogCaptureFixture) -> None:
    """A vault may be mounted for weeks: one fault must not keep it from its peers until it is mounted again."""
    with caplog.at_level(logging.ERROR, "vaultfs.mesh.thread"), pytest.raises(RemoteUnreachableError):
        thread.call(breaking)
    for other in threading.enumerate():  # it may take a moment to be over
        if other.name == "vaultfs-mesh":
            other.join(PATIENCE_S)
    assert thread.call(one) == 1
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_in_a_child_of_the_process(thread: MeshThread) -> None:
    assert thread.call(one) == 1
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)  # rather an end than a wait for a loop that is not there
        code = 1
        try:
            code = 0 if thread.call(one) == 1 else 2
            thread.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert thread.call(one) == 1


def test_a_signal_in_the_thread_that_waits(thread: MeshThread) -> None:
    """Ctrl-C ends the wait, and the end that follows is quick."""
    begun = threading.Event()

    async def beginning(client: MeshClient) -> int:
        begun.set()
        return await never(client)

    def interrupt() -> None:
        begun.wait(PATIENCE_S)
        time.sleep(0.05)  # until it waits; if it does not yet, that is as well
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        thread.call(beginning)
    other.join(PATIENCE_S)
    thread.close()
