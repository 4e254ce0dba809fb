from __future__ import annotations

import io
import subprocess
import sys

import pytest

from vaultfs.errors import UsageError
from vaultfs.mesh.erasure import encode, find_wrong

from .shares import decoded, make_shares, rebuilt, streams
from .specified import coded_segment, some_segment

SEGMENT = some_segment(1000)
CODED = coded_segment(SEGMENT, "2/3")
SHARES = make_shares(SEGMENT, CODED)
MESSAGE = r"pip install 'vaultfs\[erasure\]'"


@pytest.fixture(autouse=True)
def _no_zfec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zfec", None)


def test_parity_cannot_be_made_nor_used() -> None:
    written = bytearray()
    with pytest.raises(UsageError, match=MESSAGE):
        encode(io.BytesIO(SEGMENT), CODED, {0: written.extend, 2: written.extend})
    assert not written
    with pytest.raises(UsageError, match=MESSAGE):
        decoded(CODED, SHARES[1:])
    with pytest.raises(UsageError, match=MESSAGE):
        rebuilt(CODED, SHARES[:2], [2])
    with pytest.raises(UsageError, match=MESSAGE):
        find_wrong(CODED, streams(SHARES))


def test_primaries_are_enough() -> None:
    assert decoded(CODED, [SHARES[1], SHARES[0]]) == SEGMENT
    assert rebuilt(CODED, SHARES[:2], [1]) == {1: SHARES[1]}
    made = bytearray()
    encode(io.BytesIO(SEGMENT), CODED, {1: made.extend})
    assert made == SHARES[1]


def test_it_is_not_imported_before_it_is_needed() -> None:
    script = "import sys, vaultfs.mesh.erasure; sys.exit('zfec' in sys.modules or 'trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
