"""Runs a program under strace and reads back every system call that changes files below one directory.

strace shows what reached the kernel, whoever asked for it: Python, SQLite or C.  All strings are recorded in full and
in hexadecimal, so lines are easy to take apart.  A call that another thread interrupted is one call with a start and
an end; what may be assumed durable follows from these.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
SYNCS = ("fsync", "fdatasync", "sync_file_range", "syncfs", "sync")
NAMES = ("link", "linkat", "unlink", "unlinkat", "rename", "renameat", "renameat2")
DIRECTORIES = ("mkdir", "mkdirat", "rmdir", "symlink", "symlinkat")
SIZES = ("truncate", "ftruncate", "fallocate")
MUTATIONS = (*WRITES, *SYNCS, *NAMES, *DIRECTORIES, *SIZES)
"""Every system call after which a crash can find something new on the disk; some are missing on some processors."""

TRACED = (*MUTATIONS, "openat", "open", "creat", "lseek", "mmap", "copy_file_range", "sendfile")
LONGEST_STRING_BYTES = 1 << 26

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_RESULT = re.compile(r"\)\s+= (-?\d+|\?)([^\n]*)$")
_UNFINISHED = " <unfinished ...>"


@dataclass(frozen=True, slots=True)
class Call:
    """One successful system call.

    Attributes:
        name: of the system call.
        thread: who called.
        start: position of its beginning in the trace; all positions differ.
        end: position of its completion.
        arguments: text of the arguments, strings and vectors replaced by ``_``.
        strings: all strings in the arguments, in order: paths, or what was written.
        descriptors: number and path of all descriptors in the arguments, in order.
        result: what it returned.
        result_path: the path of the descriptor that it returned.
    """

    name: str
    thread: int
    start: int
    end: int
    arguments: tuple[str, ...]
    strings: tuple[bytes, ...]
    descriptors: tuple[tuple[int, bytes], ...]
    result: int
    result_path: bytes


class TraceError(Exception):
    """The trace holds what this module cannot follow, or the program failed."""


def run_traced(
    command: Sequence[str | Path], log: Path, *, directory: Path, environment: Mapping[str, str] | None = None
) -> list[Call]:
    """Run a command to its end and return its calls in the order of completion.

    Args:
        command: program and arguments.
        log: where strace writes; overwritten.
        directory: where it runs.
        environment: None means this process's own.

    Raises:
        TraceError: the command failed.
    """
    words: list[str | Path] = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", str(LONGEST_STRING_BYTES)]
    words += ["-e", "trace=" + ",".join(f"?{name}" for name in TRACED), "-e", "signal=none", "-o", log, "--", *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    if done.returncode != 0:
        raise TraceError(f"{command[0]} ended with {done.returncode} under strace: {done.stdout}{done.stderr}")
    return read_trace(log)


def read_trace(log: Path) -> list[Call]:
    """The successful calls of a trace that ``run_traced`` made, in the order of completion."""
    with log.open(encoding="ascii") as lines:
        return list(_calls(lines))


def _calls(lines: Iterator[str] | Sequence[str]) -> Iterator[Call]:
    begun: dict[int, tuple[int, str, str]] = {}
    for position, line in enumerate(lines):
        match = _LINE.fullmatch(line.rstrip("\n"))
        if match is None:
            if "+++" in line:  # "exited with 0" and the like
                continue
            raise TraceError(f"cannot read the line {line[:300]}")
        thread = int(match[1])
        text = match[5] if match[2] is None else match[3]
        name, start = match[4] or match[2], position
        if match[2] is not None:
            start, name, beginning = begun.pop(thread)
            text = beginning + text
        if text.endswith(_UNFINISHED):
            begun[thread] = (start, name, text.removesuffix(_UNFINISHED))
            continue
        call = _call(name, thread, start, position, text)
        if call is not None:
            yield call


def _call(name: str, thread: int, start: int, end: int, text: str) -> Call | None:
    found = _RESULT.search(text)
    if found is None:
        raise TraceError(f"cannot read {name}({text[:300]}")
    if found[1] == "?" or found[1].startswith("-"):
        return None
    body = text[: found.start()]
    returned = _DESCRIPTOR.match(found[1] + found[2])
    strings = tuple(_unescape(string[1]) for string in _STRING.finditer(body))
    descriptors = tuple((_number(fd[1]), _unescape(fd[2])) for fd in _DESCRIPTOR.finditer(body))
    flat = re.sub(r"\[[^\]]*\]|\{[^}]*\}", "_", _STRING.sub("_", _DESCRIPTOR.sub("_", body)))
    return Call(
        name=name,
        thread=thread,
        start=start,
        end=end,
        arguments=tuple(part.strip() for part in flat.split(",")),
        strings=strings,
        descriptors=descriptors,
        result=int(found[1]),
        result_path=b"" if returned is None else _unescape(returned[2]),
    )


def _number(text: str) -> int:
    return -100 if text == "AT_FDCWD" else int(text)


def _unescape(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def absolute_paths(call: Call) -> list[bytes]:
    """The paths that a call names, made absolute by the descriptors beside them."""
    if call.name == "symlink":
        return [call.strings[0], os.path.normpath(call.strings[1])]
    if not call.name.endswith(("at", "at2")):
        return [os.path.normpath(path) for path in call.strings]
    directories = [path for _, path in call.descriptors]
    paths = call.strings
    if call.name == "symlinkat":
        return [paths[0], os.path.normpath(os.path.join(directories[0], paths[1]))]
    return [os.path.normpath(os.path.join(*pair)) for pair in zip(directories, paths, strict=True)]
