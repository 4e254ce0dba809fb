"""Where a pairing code comes from: a file descriptor, a file, or the terminal.  Never from the command line."""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.secret_sources import obtain_text, obtain_text_of_descriptor
from vaultfs.errors import UsageError
from vaultfs.mesh.pairing import code_key, parse_code


def obtain_code_key(descriptor: int | None, file: Path | None, where: str) -> bytes:
    """What proves the code that the other machine shows.

    Args:
        descriptor: of ``--code-fd``.
        file: of ``--code-file``.
        where: the other machine is, for the prompt.

    Raises:
        UsageError: there is no code, or it cannot be one.
    """
    if descriptor is not None and file is not None:
        raise UsageError("--code-fd and --code-file exclude each other")
    if descriptor is not None:
        text = obtain_text_of_descriptor(descriptor, "--code-fd")
    elif file is not None:
        text = obtain_text(file, "--code-file")
    else:
        text = _ask(where)
    return code_key(parse_code(text))


def _ask(where: str) -> str:
    """Ask on the terminal, never on standard input.  What is typed is seen: it counts once, and is long."""
    try:
        with open("/dev/tty", "r+b", buffering=0) as terminal:  # noqa: PTH123  # no regular file
            terminal.write(f"The code that 'vaultfs peer pair' shows on {where}: ".encode())
            line = b""
            while not line.endswith(b"\n") and (read := terminal.read(256)):
                line += read
    except OSError:
        raise UsageError(
            "no pairing code, and no terminal to ask on: use --code-fd or --code-file; or write ID@HOST instead of HOST"
        ) from None
    return line.decode("ascii", "replace")
