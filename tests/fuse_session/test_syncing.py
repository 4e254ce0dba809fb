"""syncfs(2) of a mount: what the kernel reports of the past."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vaultfs.fuse import kernel_mount
from vaultfs.fuse.kernel_mount import sync_filesystem


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Error numbers that syncfs gives, in order; 0 is success.  All of them must have been asked for."""
    left: list[int] = []

    def call(name: str, *_: object) -> None:
        assert name == "syncfs"
        if number := left.pop(0):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kernel_mount, "_libc_call", call)
    return left


def test_a_killed_program_is_no_error(answers: list[int], tmp_path: Path) -> None:
    answers[:] = [errno.EINTR, 0]
    sync_filesystem(tmp_path)
    assert not answers


@pytest.mark.parametrize("numbers", [[errno.EIO], [errno.ENOSPC], [errno.EINTR, errno.EIO], [errno.EINTR, errno.EINTR]])
def test_everything_else_is(answers: list[int], numbers: list[int], tmp_path: Path) -> None:
    answers[:] = numbers
    with pytest.raises(OSError, match=os.strerror(numbers[-1])) as caught:
        sync_filesystem(tmp_path)
    assert caught.value.errno == numbers[-1]
    assert not answers


def test_a_real_one(tmp_path: Path) -> None:
    sync_filesystem(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_filesystem(tmp_path / "absent")
