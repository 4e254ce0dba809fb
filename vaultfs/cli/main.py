"""The entry point of ``vaultfs``: find the verb, import only its module, run it, map every error to an exit code.

``vaultfs --help`` imports neither the parser nor the core; ``vaultfs VERB`` imports what VERB needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import NoReturn

from vaultfs.cli.output import error_line, say
from vaultfs.cli.verbs import VERBS, Command
from vaultfs.errors import ExitCode, FileSystemError, UsageError, VaultError
from vaultfs.remotes.locations import Location
from vaultfs.remotes.store import Store
from vaultfs.remotes.tokens_seal import Seal, bring_seal
from vaultfs.remotes.urls import bring_scheme


class Terminated(BaseException):
    """SIGTERM arrived: unwind, clean up, exit with 143."""


def overview() -> str:
    """The text of ``vaultfs --help``."""
    lines = ["Usage: vaultfs VERB [options] ...", "", "An encrypted vault that mounts as a normal folder.", ""]
    group = ""
    for verb in VERBS.values():
        if verb.group != group:
            group = verb.group
            lines += [f"{group}:"]
        left = f"{verb.name} {verb.usage}".rstrip()
        lines += [f"  {left:<38}{verb.summary}"]
    lines += ["", "'vaultfs VERB --help' explains a verb.  Exit codes: docs/cli/README.md."]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: the command line without the program's name; None takes that of the process.

    Returns:
        the exit code, one of :class:`vaultfs.errors.ExitCode`; that of a process that used OpenDAL ends at once.
    """
    code = guarded(lambda: _run(list(sys.argv[1:] if words is None else words)))
    if words is None and "opendal" in sys.modules:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """End the process, and do not take the interpreter down before.

    A thread of OpenDAL may still be on its way out of the interpreter, after what it brought has been used.  If it
    finds the interpreter going down, it aborts the process, whatever its exit code was to be.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a broken pipe was reported
            stream.flush()
    os._exit(code)


def guarded(command: Callable[[], int]) -> int:
    """Run a command so that every way out of it is an exit code, and an error is one line on standard error.

    Args:
        command: returns the exit code.
    """
    bring_seal(_seal)
    bring_scheme("mesh", _mesh)
    with _terminable():
        try:
            code = command()
            sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001  # see above
            return _report(error)
        return code


def _seal() -> Seal:
    """What encrypts the tokens of drives, for those who have any."""
    from vaultfs.cli.user_seal import user_seal  # noqa: PLC0415  # imports ciphers

    return user_seal()


def _mesh(location: Location, options: Mapping[str, str]) -> Store:
    """The peers of a vault as a store, for those who have any."""
    from vaultfs.cli.core_warnings import show_warnings  # noqa: PLC0415  # for who is told for whom it waits
    from vaultfs.mesh.store import MeshStore  # noqa: PLC0415  # imports an event loop and TLS

    show_warnings()
    return MeshStore.of_url(location, options)


def _run(words: list[str]) -> int:
    """Dispatch to the verb."""
    if not words:
        raise UsageError("no verb given; see 'vaultfs --help'")
    first, rest = words[0], words[1:]
    if first in {"-h", "--help", "help"} and not rest:
        say(overview())
        return ExitCode.OK
    if first in {"-V", "--version"}:
        first = "version"
    if first == "help":
        first, rest = rest[0], [*rest[1:], "--help"]
    if first not in VERBS:
        raise UsageError(f"there is no verb {first!r}{_nearest(first, VERBS)}; see 'vaultfs --help'")
    return _run_verb(first, rest)


def _run_verb(name: str, words: list[str]) -> int:
    """Import the verb's module, parse the words, and call it."""
    from vaultfs.cli.parsing import bind, help_text, wants_help  # noqa: PLC0415  # imports cyclopts, the overview need not

    verb = VERBS[name]
    loaded = verb.load()
    full_name, usage = f"vaultfs {name}", verb.usage
    if isinstance(loaded, Mapping):
        if not words or (words[0] not in loaded and wants_help(words)):
            if not words:
                raise UsageError(f"{full_name}: one of {', '.join(loaded)} must follow; see '{full_name} --help'")
            say(_subverb_overview(full_name, loaded))
            return ExitCode.OK
        if words[0] not in loaded:
            raise UsageError(
                f"{full_name}: there is no {words[0]!r}{_nearest(words[0], loaded)}; see '{full_name} --help'"
            )
        full_name, usage = f"{full_name} {words[0]}", ""
        command: Command = loaded[words[0]]
        words = words[1:]
    else:
        command = loaded
    if wants_help(words):
        say(help_text(full_name, command, usage))
        return ExitCode.OK
    bound = bind(full_name, command, words)
    return command(*bound.args, **bound.kwargs)


def _subverb_overview(name: str, subverbs: Mapping[str, Command]) -> str:
    """The text of ``vaultfs key --help``."""
    width = max(10, *(len(word) + 2 for word in subverbs))
    rows = [f"  {word:<{width}}{(command.__doc__ or '').splitlines()[0]}" for word, command in subverbs.items()]
    return "\n".join([f"Usage: {name} {'|'.join(subverbs)} [options] ...", "", *rows])


def _nearest(word: str, known: Mapping[str, object]) -> str:
    """A hint at the verb that was meant."""
    import difflib  # noqa: PLC0415  # only a typo needs it

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _report(error: BaseException) -> int:
    """Print one line for an exception and choose the exit code."""
    if isinstance(error, BrokenPipeError):
        # The reader of the pipe went away (``vaultfs cat ... | head``).  Nothing more can be flushed to it at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.ERROR
    if isinstance(error, KeyboardInterrupt):
        error_line("interrupted")
        return ExitCode.SIGINT
    if isinstance(error, Terminated):
        error_line("terminated")
        return ExitCode.SIGTERM
    if os.environ.get("VAULTFS_DEBUG"):
        import traceback  # noqa: PLC0415  # only on request

        traceback.print_exception(error)
    if isinstance(error, VaultError):
        error_line(_vault_message(error))
        return error.exit_code
    if isinstance(error, OSError):
        error_line(_os_message(error))
        return ExitCode.ERROR
    if isinstance(error, SystemExit):
        raise error
    # A fault of the program.  The exception's text is not shown: nobody vouches that it holds no secret.
    where = _place(error)
    error_line(f"internal error: {type(error).__name__}{where}; set VAULTFS_DEBUG=1 to see more, and please report it")
    return ExitCode.ERROR


def _vault_message(error: VaultError) -> str:
    """The message of an error of the core, with errno names spelled out."""
    text = str(error) or type(error).__name__
    if isinstance(error, FileSystemError) and text == errno.errorcode.get(error.errno, str(error.errno)):
        return os.strerror(error.errno)
    return text


def _os_message(error: OSError) -> str:
    """``FILE: reason``, without Python's brackets."""
    reason = error.strerror or str(error) or type(error).__name__
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    return f"{name}: {reason}" if name else reason


def _place(error: BaseException) -> str:
    """Module and line where an unexpected exception was raised."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" in {trace.tb_frame.f_globals.get('__name__', '?')}, line {trace.tb_lineno}"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as SIGINT does, unless it is ignored or handled already."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: the caller's signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
