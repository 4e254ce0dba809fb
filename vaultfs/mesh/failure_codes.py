"""Why a request failed, as a number that peers send each other, and the errors of vaultfs that they stand for: pure."""

from __future__ import annotations

import enum
from typing import Final

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    VaultError,
)
from vaultfs.mesh.frames import FrameError


class Code(enum.IntEnum):
    """Why something failed."""

    REFUSED = 1
    MISSING = 2
    EXISTS = 3
    FULL = 4
    WRONG_BYTES = 5
    BUSY = 6
    NOT_UNDERSTOOD = 7
    FAILED = 8


def failure_of(error: VaultError) -> Code:
    """Which code tells of an error."""
    for code, kind in _KINDS.items():
        if isinstance(error, kind):
            return code
    return Code.FAILED


def error_of(code: Code, text: str) -> VaultError:
    """The error that a code tells of.

    Args:
        code: as it came.
        text: the message, with the name of who sent it.
    """
    return _KINDS[code](text)


_KINDS: Final[dict[Code, type[VaultError]]] = {
    Code.REFUSED: RemoteRefusedError,
    Code.MISSING: ObjectMissingError,
    Code.EXISTS: ObjectExistsError,
    Code.FULL: NoSpaceError,
    Code.WRONG_BYTES: IntegrityError,
    Code.BUSY: RemoteUnreachableError,
    Code.NOT_UNDERSTOOD: FrameError,
    Code.FAILED: RemoteError,
}
