"""Parse the words of one verb with cyclopts; errors are one line and exit code 2, help is plain text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import cyclopts

from vaultfs.cli.verbs import Command
from vaultfs.errors import UsageError


@dataclass(frozen=True)
class ValueIfAlone:
    """In the annotation of an option whose value may be left out, as in ``--read-data[=10%]``; a value needs the ``=``.

    Args:
        value: what the option alone means.
    """

    value: str


def command_app(name: str, command: Command) -> cyclopts.App:
    """A cyclopts application for one command: options have no ``--no-`` twin, errors are raised, nothing is printed.

    Args:
        name: the words that call it, as in ``vaultfs key add``.
        command: the function; its docstring is the help.
    """
    app = cyclopts.App(
        name=name,
        help_flags=[],
        version_flags=[],
        default_parameter=cyclopts.Parameter(negative=""),
        result_action="return_value",
    )
    app.default(command)
    return app


def wants_help(words: Sequence[str]) -> bool:
    """Whether ``-h`` or ``--help`` stands among the words, before any ``--``."""
    before = words[: words.index("--")] if "--" in words else words
    return "-h" in before or "--help" in before


def bind(name: str, command: Command, words: Sequence[str]) -> inspect.BoundArguments:
    """Turn words into the command's arguments.

    Raises:
        UsageError: a word is unknown, missing, doubled, or not of its type.
    """
    app = command_app(name, command)
    try:
        _, bound, _ = app.parse_args(
            [_DASH if word == "-" else word for word in _with_values(command, words)],
            exit_on_error=False,
            print_error=False,
        )
    except cyclopts.UnusedCliTokensError as error:
        unused = " ".join(repr(word.replace(_DASH, "-")) for word in error.unused_tokens or ())
        raise UsageError(f"{unused}: more than '{name}' takes; see '{name} --help'") from None
    except cyclopts.CycloptsError as error:
        message = " ".join(str(error).replace(_DASH, "-").split())
        raise UsageError(f"{message.rstrip('.')}; see '{name} --help'") from None
    for parameter, value in bound.arguments.items():
        if isinstance(value, tuple):
            bound.arguments[parameter] = tuple(map(_dash_again, value))
        else:
            bound.arguments[parameter] = _dash_again(value)
    return bound


def _with_values(command: Command, words: Sequence[str]) -> list[str]:
    """The words, with the value of each option that stands without one and may (`ValueIfAlone`)."""
    alone = {}
    for parameter, hint in get_type_hints(command, include_extras=True).items():
        for each in getattr(hint, "__metadata__", ()):
            if isinstance(each, ValueIfAlone):
                name = f"--{parameter.replace('_', '-')}"
                alone[name] = f"{name}={each.value}"
    end = words.index("--") if "--" in words else len(words)
    return [*(alone.get(word, word) for word in words[:end]), *words[end:]]


_DASH: Final = "\0-"
"""Stands for a lone ``-``, which cyclopts takes for an option; no real argument holds NUL."""


def _dash_again(value: Any) -> Any:
    if value == _DASH:
        return "-"
    return Path("-") if value == Path(_DASH) else value


def _metavar(argument: Any) -> str:
    """What stands for an option's value in the help: its choices, or a word that tells its kind."""
    choices = argument.get_choices()
    if choices:
        return "|".join(choices)
    hint = str(argument.hint)
    if "bool" in hint:
        return ""
    if "Path" in hint and (argument.parameter.help or "").startswith("The directory"):
        return "DIR"
    for word, shown in (("Path", "FILE"), ("int", "N"), ("float", "SECONDS")):
        if word in hint:
            return shown
    return "VALUE"


def help_text(name: str, command: Command, usage: str) -> str:
    """The help of one command: usage, purpose, arguments, options with defaults.

    Args:
        name: the words that call it.
        command: the function whose docstring and parameters are shown.
        usage: its arguments in one line; empty: their names.
    """
    positional: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    shown: list[str] = []
    for argument in command_app(name, command).assemble_argument_collection(parse_docstring=True):
        if not argument.show:
            continue
        text = argument.parameter.help or ""
        if not argument.name.startswith("-"):
            positional.append((argument.name, text))
            shown.append(argument.name if argument.required else f"[{argument.name}]")
            continue
        default = argument.field_info.default
        if isinstance(default, (str, int, float)) and not isinstance(default, bool):
            text = f"{text} (default: {default})"
        names = ", ".join(sorted(argument.names, key=len))
        options.append((f"{names} {_metavar(argument)}".strip(), text))
    options.append(("-h, --help", "Show this help."))
    paragraphs = (inspect.getdoc(command) or "").split("\nArgs:")[0].strip()
    usage = usage or " ".join(shown)
    lines = [f"Usage: {name} [options] {usage}".rstrip(), "", paragraphs, ""]
    width = max(len(left) for left, _ in positional + options) + 2
    for heading, rows in (("Arguments:", positional), ("Options:", options)):
        if rows:
            lines += [heading, *(_entry(left, text, width) for left, text in rows), ""]
    return "\n".join(lines)


def _entry(left: str, text: str, width: int) -> str:
    """One row of the help; long left columns get a line of their own."""
    import textwrap  # noqa: PLC0415  # only help needs it

    column = min(width, 28)
    body = textwrap.wrap(text, 100 - column) or [""]
    indent = "\n" + " " * (column + 2)
    head = f"  {left:<{column}}" if len(left) < column else f"  {left}{indent}"
    return (head + indent.join(body)).rstrip()
