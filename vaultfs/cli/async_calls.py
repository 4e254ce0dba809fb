"""Running a coroutine to its end from a command, or until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.main import Terminated
from vaultfs.cli.output import note, printable
from vaultfs.errors import VaultError
from vaultfs.mesh.waiting import TELL_AFTER_S

_T = TypeVar("_T")


def completed(function: Callable[[], Awaitable[_T]], slow: Callable[[], str] | None = None) -> _T:
    """Run a coroutine in an event loop of its own, in the main thread.

    A signal cancels it; it is raised when the coroutine has cleaned up.

    Args:
        function: makes the coroutine.
        slow: what to tell if it has not ended after three seconds; empty: nothing.

    Raises:
        KeyboardInterrupt, Terminated: a signal came.
        VaultError: what the coroutine raised.
    """
    show_warnings()
    came: list[int] = []
    done: list[_T] = []
    failures: list[VaultError] = []
    obeyed = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if obeyed:
                await nursery.start(watch, nursery.cancel_scope)
            if slow is not None:
                nursery.start_soon(tell, slow)
            try:
                done.append(await function())
            except VaultError as error:  # out of the nursery, which would wrap it
                failures.append(error)
            nursery.cancel_scope.cancel()

    async def tell(text: Callable[[], str]) -> None:
        await trio.sleep(TELL_AFTER_S)
        if line := text():
            note(printable(line))

    async def watch(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*obeyed) as signals:
            task_status.started()
            async for number in signals:
                came.append(number)
                scope.cancel()

    trio.run(main)
    if done:
        return done[0]
    if failures:
        raise failures[0]
    raise Terminated if came[0] == signal.SIGTERM else KeyboardInterrupt
