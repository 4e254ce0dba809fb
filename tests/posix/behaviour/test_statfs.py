"""statfs follows the disk below."""

from __future__ import annotations

import os
from pathlib import Path

from .conftest import Volume


def test_names_and_sizes(mounted: Path) -> None:
    status = os.statvfs(mounted)
    assert status.f_namemax == 255
    assert status.f_frsize > 0
    assert 0 <= status.f_bavail <= status.f_bfree <= status.f_blocks
    assert 0 <= status.f_favail <= status.f_ffree <= status.f_files


def test_the_space_is_that_of_the_disk_below(volume: Volume, mounted: Path) -> None:
    """Others use the disk at the same time; so the free space is compared with what it was before and after."""
    before = os.statvfs(volume.backing)
    here = os.statvfs(mounted)
    after = os.statvfs(volume.backing)
    assert here.f_blocks * here.f_frsize == after.f_blocks * after.f_frsize
    free_bytes = [each.f_bavail * each.f_frsize for each in (before, after)]
    slack_bytes = 256 << 20
    assert min(free_bytes) - slack_bytes <= here.f_bavail * here.f_frsize <= max(free_bytes) + slack_bytes


def test_every_folder_and_file_says_the_same(mounted: Path) -> None:
    file = mounted / "file"
    file.touch()
    with file.open("rb") as stream:
        assert os.fstatvfs(stream.fileno()).f_blocks == os.statvfs(mounted).f_blocks


def test_preferred_block_size_is_sensible(mounted: Path) -> None:
    block_bytes = mounted.stat().st_blksize
    assert 4096 <= block_bytes <= 1 << 20
    assert block_bytes & (block_bytes - 1) == 0
