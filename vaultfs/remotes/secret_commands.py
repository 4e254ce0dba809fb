"""Secrets that a command prints: the one way in which vaultfs itself learns of a token or password of a cloud."""

from __future__ import annotations

import shlex
import subprocess
from typing import Final

from vaultfs.errors import RemoteRefusedError

_TIMEOUT_S: Final = 60.0
_LARGEST_SECRET: Final = 1 << 16


def run_secret_command(option: str, command: str) -> str:
    """Run a command and return what it prints.  No shell is involved; what it says on standard error is shown.

    Args:
        option: which one it is, for messages.
        command: a program and its arguments, quoted as for a shell.

    Raises:
        RemoteRefusedError: it cannot be run, fails, takes too long, or prints nothing that could be a secret.
    """
    failure = f"the command in the option {option}"
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not words:
        raise RemoteRefusedError(f"{failure} is not a command; check its quotes")
    try:
        done = subprocess.run(  # noqa: S603  # given by the user on this machine, see trusted_commands
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        problem = f"took longer than {_TIMEOUT_S:g} s"
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name makes no sense"
        problem = f"cannot be run: {reason}"
    else:
        secret = done.stdout[: _LARGEST_SECRET + 1].strip()
        if done.returncode:
            problem = f"ended with exit code {done.returncode}"
        elif not secret:
            problem = "printed nothing"
        elif len(secret) > _LARGEST_SECRET or not all(0x20 <= byte <= 0x7E for byte in secret):
            problem = "printed something that is no token or password: it must be one line of ASCII"
        else:
            return secret.decode("ascii")
    raise RemoteRefusedError(f"{failure} {problem}; run it by hand to see why")
