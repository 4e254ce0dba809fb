"""How anything is written into a systemd unit so that it means itself.  Pure.

A unit has rules of its own about quotes, backslashes, percent signs and dollars (systemd.syntax(7), systemd.unit(5),
systemd.service(5)); whatever cannot be written so that it means itself is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from vaultfs.errors import UsageError

_UNWRITABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def command_line(program: Sequence[str], arguments: Sequence[str]) -> str:
    """The value of ``ExecStart=``.

    Args:
        program: the words that run it; the first is an absolute path.
        arguments: the words after them.

    Raises:
        UsageError: a word cannot be written into a unit, or systemd would not run the program.
    """
    first, *more = program
    if re.search(r"[\"'\\]", first):
        raise UsageError(f"{first}: systemd runs no program with quotes or backslashes in its path; use cron")
    # Variables are not put into the program's path, so there is nothing to be escaped for them.
    return " ".join([quoted(first), *map(_argument, [*more, *arguments])])


def environment_lines(variables: Mapping[str, str]) -> str:
    """Lines ``Environment=``, each with its end.

    Raises:
        UsageError: a value cannot be written into a unit.
    """
    return "".join(f"Environment={quoted(f'{key}={value}')}\n" for key, value in variables.items())


def plain(text: str) -> str:
    """Text that stands alone on a line, as a description.

    Raises:
        UsageError: it cannot be written into a unit.
    """
    return _specifiers(_checked(text))


def quoted(text: str) -> str:
    """One word, with nothing in it that systemd would replace but variables.

    Raises:
        UsageError: it cannot be written into a unit.
    """
    escaped = _checked(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_specifiers(escaped)}"'


def _checked(text: str) -> str:
    """The text, if a line of a unit can hold it.

    Raises:
        UsageError: it has control characters, or bytes that are no UTF-8.
    """
    if _UNWRITABLE.search(text):
        raise UsageError(
            f"{text!r} has control characters, or bytes that are no UTF-8, which a systemd unit cannot hold; give it "
            "another name, or use cron"
        )
    return text


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _argument(text: str) -> str:
    """A word of a command line after the program."""
    return quoted(text).replace("$", "$$")
