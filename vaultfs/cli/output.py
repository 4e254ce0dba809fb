"""Everything the commands print: plain lines and tables for people, JSON for machines, one line for an error.

Results go to standard output, all else to standard error.  File names are arbitrary bytes: a terminal gets their
control characters escaped, a pipe gets the bytes as they are, JSON gets undecodable bytes as lone surrogates, so that
``os.fsencode(json.loads(...))`` brings the bytes back.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, TextIO


def emit_json(value: Any) -> None:
    """Print one JSON document, indented, to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def say(line: str = "") -> None:
    """Print one line of the result to standard output."""
    _write(sys.stdout, line + "\n")


def note(line: str) -> None:
    """Tell the person something that is not the result, on standard error."""
    _write(sys.stderr, f"vaultfs: {line}\n")


def error_line(message: str) -> None:
    """Print an error as one line, ``vaultfs: ...``, on standard error; control characters are escaped."""
    note(printable(" ".join(message.split())))


def _write(stream: TextIO, text: str) -> None:
    """Write text that may hold undecodable bytes of file names."""
    binary = getattr(stream, "buffer", None)
    if binary is None:
        stream.write(text)
        return
    stream.flush()
    write_all(binary, text.encode(errors="surrogateescape"))
    stream.flush()


def write_all(binary: BinaryIO, data: bytes | bytearray) -> None:
    """Write bytes to a standard stream, which is unbuffered under PYTHONUNBUFFERED and then may take only a part.

    Args:
        binary: as ``sys.stdout.buffer``.
        data: all of it is written.
    """
    view = memoryview(data)
    while view:
        view = view[binary.write(view) :]


def printable(text: str) -> str:
    r"""Text with control characters and undecodable bytes as ``\xNN``: a file name cannot drive the terminal."""
    return "".join(
        character
        if character.isprintable()
        else f"\\x{ord(character) - 0xDC00:02x}"
        if 0xDC80 <= ord(character) <= 0xDCFF
        else character.encode("unicode_escape").decode()
        for character in text
    )


def counted(number: int, what: str) -> str:
    """``1 segment``, ``2 segments``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def name_text(name: bytes) -> str:
    """A file name for standard output: escaped on a terminal, as it is in a pipe."""
    text = os.fsdecode(name)
    return printable(text) if sys.stdout.isatty() else text


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print aligned columns under headings.

    Args:
        headings: one word per column.
        rows: the cells.
        right: columns that hold numbers and are aligned to the right.
    """
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def fields(rows: Sequence[tuple[str, str]]) -> None:
    """Print ``name: value`` lines with the values aligned."""
    width = max(len(name) for name, _ in rows) + 1
    for name, value in rows:
        say(f"{name + ':':<{width}} {value}")
