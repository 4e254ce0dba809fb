"""Ctrl-C, SIGTERM and SIGKILL at every request of a prune that does both phases; then a sync, and the prune again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cli.conftest import Run, make_snapshot, write_file

from .conftest import require_complete_heads, verified
from .real_processes import Forker
from .s3_double import S3Double
from .test_interrupted import interrupted, moments, require_told


def is_note(key: str) -> bool:
    return key.startswith("heads/") and len(key.split("/")[1]) != 64


def test_prune(source: Path, double: S3Double, forker: Forker, run: Run, impatient: None, long_run: bool) -> None:
    assert run("sync", source, "--quiet", bare=True).code == 0
    for number in range(2):
        write_file(source, "/later", os.urandom(100_000))
        make_snapshot(source, str(number))
        assert run("sync", source, "--quiet", bare=True).code == 0
    state = Path(os.environ["XDG_STATE_HOME"])
    shutil.copytree(state, state.with_name("before"))
    first = double.stored()
    words: list[str | Path] = ["prune", source, "s3", "--keep-last", "1", "--grace", "0s", "--quiet"]
    words += ["--connections", "1"]
    double.heal()
    assert forker.run(*words).code == 0
    requests = len(double.asked)
    assert requests > 15
    wanted = {key for key in double.stored() if not is_note(key)}
    assert len(wanted) < len(first)
    for moment in list(moments(requests, is_long=long_run))[:: 1 if long_run else 2]:
        double.objects = {f"backup/{key}": data for key, data in first.items()}
        shutil.rmtree(state)
        shutil.copytree(state.with_name("before"), state)
        require_told(interrupted(forker, double, moment, words), moment, requests)
        double.heal()
        require_complete_heads({key: data for key, data in double.stored().items() if not is_note(key)})
        said = run("sync", source, "--quiet", bare=True)
        assert said.code == 0, f"{moment}: {said.err}"
        said = run(*words, bare=True)
        assert said.code == 0, f"{moment}: {said.err}"
        left = double.stored()
        assert {key for key in left if not is_note(key)} == wanted, moment
        assert all(key.startswith("heads/swept/") for key in left if is_note(key)), moment
        assert run("sync", source, "--quiet", bare=True).out == b"s3: up to date\n"
    said = verified(double, run)
    assert (said.code, said.out.endswith(b"nothing is wrong\n")) == (0, True), said.out
