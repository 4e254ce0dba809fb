"""Long work on an open vault in steps, so that a mounted vault goes on meanwhile.

It is a generator.  It yields what is to be done between two of its steps: a function that may block and runs in any
thread, or a `Step`.  Between two yields it runs in the core's thread, and quickly.  `run` does all of it at once, for
callers that may block.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem


class Step(enum.Enum):
    """What the one who carries out the steps does between two of them."""

    COMMIT = enum.auto()
    """A full commit, durable."""
    HOLD = enum.auto()
    """Let nobody change data or commit, until LET_GO or the end."""
    LET_GO = enum.auto()
    ROOM = enum.auto()
    """Wait until the sealing thread takes more, and data may be changed."""
    PAUSE = enum.auto()
    """Let others work."""


T = TypeVar("T")
Want = Step | Callable[[], object]
Steps = Generator[Want, None, T]


def run(fs: FileSystem, steps: Steps[T]) -> T:
    """Carry out all steps, waiting where they wait."""
    try:
        want = next(steps)
        while True:
            try:
                if want is Step.COMMIT:
                    fs.committer.commit()
                elif want is Step.ROOM:
                    fs.pipeline.wait_for_room()
                elif not isinstance(want, Step):
                    want()
            except BaseException as error:  # noqa: BLE001  # the steps decide what it means
                want = steps.throw(error)
            else:
                want = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
