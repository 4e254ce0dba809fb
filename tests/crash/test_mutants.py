"""The crash tests are tested: with a fault built in, they must fail.  Three faults by default, all with ``--long``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .mutants import MUTANTS, Mutant
from .power_cut import REPOSITORY

FAILED = 1
"""pytest's exit code where tests ran and failed; anything else says that the mutant did not even start."""

SHORT = {"fdatasync of the WAL", "fdatasync of a segment", "an end to the intent log after it was applied"}


def build(mutant: Mutant, scratch: Path) -> Path:
    """A copy of the repository with the fault in it."""
    copy = scratch / "mutant"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("vaultfs", "tests/crash"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(REPOSITORY / name, copy / name)
    mutant.build_into(copy / "vaultfs")
    return copy


def test_every_mutant_fits(scratch: Path) -> None:
    for mutant in MUTANTS:
        copy = build(mutant, scratch)
        source = (copy / "vaultfs" / mutant.file).read_text()
        compile(source, mutant.file, "exec")
        shutil.rmtree(copy)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "mutant",
    [pytest.param(each, marks=[] if each.name in SHORT else [pytest.mark.long]) for each in MUTANTS],
    ids=lambda each: each.name.replace(" ", "-"),
)
def test_mutant_is_caught(scratch: Path, mutant: Mutant) -> None:
    copy = build(mutant, scratch)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={scratch}/tmp", mutant.test],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == FAILED, f"not caught: a build without {mutant.name}\n{done.stdout[-2000:]}{done.stderr}"
    assert " problems" in done.stdout or "ended with" in done.stdout, done.stdout[-3000:]
