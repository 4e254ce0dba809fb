"""Acting as another user, in a child process."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence

ALICE = 54_321
BOB = 54_322
_BROKEN = 255
"""The users, whose groups have the same numbers, need not exist; 255 is no errno."""


def run_as(user: int, action: Callable[[], object], *, groups: Sequence[int] = ()) -> str:
    """Run an action as a user; return ``ok`` or the name of the errno with which it failed.

    Args:
        user: number of the user and of the first group.
        action: runs in a child, so it changes nothing in this process.
        groups: supplementary groups.
    """
    child = os.fork()
    if child == 0:
        code = _BROKEN
        try:
            os.setgroups(groups)
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            action()
            code = 0
        except OSError as error:
            code = error.errno or _BROKEN
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code not in {_BROKEN, -1}, "the child failed otherwise than by an errno; its traceback is on stderr"
    return errno.errorcode[code] if code else "ok"
