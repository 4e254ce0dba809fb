"""What a daemon logs: faults with where they happened, and nothing that keeps it from going on."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from vaultfs.cli.core_warnings import show_warnings


class Full(io.StringIO):
    """Standard error on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The core's, as at the start of a process."""
    found = logging.getLogger("vaultfs")
    before = (found.handlers[:], found.level, found.propagate)
    found.handlers.clear()
    found.propagate = True  # else pytest puts handlers of its own there
    yield found
    found.handlers[:], found.propagate = before[0], before[2]
    found.setLevel(before[1])


def test_a_fault_is_told_with_its_place(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings()
    try:
        raise ValueError("two\nlines \x1b[0m")
    except* ValueError as errors:
        logging.getLogger("vaultfs.mesh.server").error("a fault", exc_info=errors)  # noqa: TRY400  # as the server does
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "vaultfs: warning: a fault"
    assert any("test_daemon_log.py" in line for line in lines)
    assert any(line.endswith("ValueError: two") for line in lines)
    assert all(line.startswith("vaultfs: ") and line.isprintable() for line in lines)


def test_a_daemon_tells_what_it_did_and_a_command_does_not(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    show_warnings()
    logging.getLogger("vaultfs.mesh").info("not told")
    logger.handlers.clear()
    show_warnings(logging.INFO)
    logging.getLogger("vaultfs.mesh").info("told")
    assert capsys.readouterr().err == "vaultfs: told\n"


def test_a_log_that_cannot_be_written_ends_nothing(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    show_warnings()
    monkeypatch.setattr(sys, "stderr", Full())
    logger.warning("lost")
