"""Rewriting one file for ever must not grow the vault for ever.

Scaled down: segments and the metadata's log are cut at 1 MiB instead of 64 and 48, and the file has 1 MiB.  So all
that may lie about is the open segment, the log, and what one commit has not given back yet.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import vaultfs
from vault_compaction.vaults import EAGER, KEY, compacted, disk_bytes, read, write

FILE_BYTES = 1 << 20
MULTIPLE = 8
"""Of the file: itself, the open segment, the log of 1 MiB and a commit's growth of it, the database."""


@pytest.mark.parametrize("has_fsync", [True, False])
def test_thousands_of_rewrites(path: Path, has_fsync: bool, long_run: bool) -> None:
    chance = random.Random(1)
    content = bytearray(os.urandom(FILE_BYTES))
    largest = 0
    with vaultfs.open_vault(path, KEY) as vault:
        write(vault, "/file", bytes(content))
        with vault.open("/file", "r+b") as file:
            for number in range(30_000 if long_run else 3_000):
                length = chance.choice((100, 4096, 20_000, 70_000))
                offset = chance.randrange(FILE_BYTES - length)
                piece = chance.randbytes(length)
                content[offset : offset + length] = piece
                file.pwrite(piece, offset)
                if has_fsync:
                    file.fsync()
                elif number % 20 == 0:
                    vault.commit()  # as the daemon does every few seconds
                if number % 50 == 0:
                    largest = max(largest, disk_bytes(path))
        assert read(vault, "/file") == bytes(content)
    assert largest < MULTIPLE * FILE_BYTES
    # The database keeps the room that its log of small writes once took; that is cut at 4 MiB.
    assert disk_bytes(path) < 4 * FILE_BYTES
    with vaultfs.open_vault(path, KEY) as vault:
        assert read(vault, "/file") == bytes(content)


def test_the_same_whole_file_over_and_over(path: Path) -> None:
    largest = 0
    with vaultfs.open_vault(path, KEY) as vault:
        for number in range(150):
            content = random.Random(number).randbytes(FILE_BYTES)
            write(vault, "/new", content)
            vault.rename("/new", "/file")
            while vault.filesystem.files.sweep():
                pass
            vault.commit()
            largest = max(largest, disk_bytes(path))
        assert read(vault, "/file") == content
    assert largest < MULTIPLE * FILE_BYTES


def test_where_no_hole_can_be_punched_compaction_bounds_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every segment gets a little that stays, so none is ever empty; without holes only rewriting gives room back."""
    monkeypatch.setattr("vaultfs.vault.reclaim.punch", lambda *arguments: False)
    stays: dict[str, bytes] = {}
    with vaultfs.open_vault(path, KEY) as vault:
        for number in range(60):
            write(vault, "/file", random.Random(number).randbytes(FILE_BYTES))
            stays[f"/{number}"] = random.Random(-1 - number).randbytes(5000)
            write(vault, f"/{number}", stays[f"/{number}"])
            vault.commit()
            if number == 30:
                without = disk_bytes(path)
            if number >= 30 and number % 5 == 0:
                compacted(vault.filesystem, EAGER)
        assert without > 20 * FILE_BYTES
        assert disk_bytes(path) < MULTIPLE * FILE_BYTES
        assert {name: read(vault, name) for name in stays} == stays
