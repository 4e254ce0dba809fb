"""Argon2id's bounds, calibration and result."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto import kdf
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.errors import IntegrityError, UsageError

MIB = 1 << 10
OUT_OF_BOUNDS = [
    (64 * MIB - 1, 3, 4),
    (4096 * MIB + 1, 3, 4),
    (1 << 30, 3, 4),  # 1 TiB
    (2**200, 3, 4),
    (64 * MIB, 2, 4),
    (64 * MIB, 65, 4),
    (64 * MIB, 2**32, 4),
    (64 * MIB, 3, 0),
    (64 * MIB, 3, 65),
    (0, 0, 0),
    (-1, -1, -1),
]


@pytest.mark.parametrize(("memory_kib", "iterations", "lanes"), OUT_OF_BOUNDS)
def test_weak_and_absurd_parameters_are_refused(memory_kib: int, iterations: int, lanes: int) -> None:
    with pytest.raises(UsageError):
        KdfParameters(memory_kib, iterations, lanes)
    with pytest.raises(IntegrityError, match=r"vault\.json"):
        KdfParameters.from_header(memory_kib, iterations, lanes)


@pytest.mark.parametrize("parameters", [(64 * MIB, 3, 1), (4096 * MIB, 64, 64)])
def test_the_bounds_themselves_are_taken(parameters: tuple[int, int, int]) -> None:
    assert KdfParameters.from_header(*parameters) == KdfParameters(*parameters)


def test_the_floor_is_the_second_choice_of_rfc_9106() -> None:
    assert KdfParameters.weakest() == KdfParameters(64 * MIB, 3, 4)


def test_the_result_is_argon2id() -> None:
    expected = Argon2id(salt=b"s" * 32, length=32, iterations=4, lanes=2, memory_cost=70 * MIB).derive(b"secret")
    assert KdfParameters(70 * MIB, 4, 2).derive(b"secret", b"s" * 32) == expected


@given(st.floats(0, 100), st.integers(1 << 16, 1 << 32), st.floats(0.001, 100))
def test_calibration_stays_within_bounds(weakest_s: float, physical_kib: int, target_s: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdf, "_measure_s", lambda parameters: weakest_s)
        patch.setattr(kdf, "_physical_memory_kib", lambda: physical_kib)
        found = KdfParameters.calibrate(target_s=target_s)
    assert found.memory_kib <= 1024 * MIB
    assert found.memory_kib <= max(physical_kib // 4, 64 * MIB)
    assert found.lanes == 4


@pytest.mark.parametrize(
    ("weakest_s", "memory_kib", "expected"),
    [
        (0.25, None, (256 * MIB, 3, 4)),
        (0.1, None, (640 * MIB, 3, 4)),
        (2.0, None, (64 * MIB, 3, 4)),
        (0.03, None, (1024 * MIB, 6, 4)),
        (0.25, 64 * MIB, (64 * MIB, 12, 4)),
        (0.25, 2048 * MIB, (2048 * MIB, 3, 4)),
        (0.0, 64 * MIB, (64 * MIB, 64, 4)),
    ],
)
def test_calibration_raises_memory_first_then_passes(
    weakest_s: float, memory_kib: int | None, expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kdf, "_measure_s", lambda parameters: weakest_s)
    monkeypatch.setattr(kdf, "_physical_memory_kib", lambda: 16 << 20)
    assert KdfParameters.calibrate(memory_kib) == KdfParameters(*expected)


@pytest.mark.parametrize("memory_kib", [0, 64 * MIB - 1, 4096 * MIB + 1])
def test_calibration_refuses_memory_out_of_bounds_before_it_measures(
    memory_kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(parameters: KdfParameters) -> float:
        raise AssertionError

    monkeypatch.setattr(kdf, "_measure_s", measure)
    with pytest.raises(UsageError):
        KdfParameters.calibrate(memory_kib)


def test_calibration_measures_this_machine() -> None:
    found = KdfParameters.calibrate(target_s=0.01)
    assert found == KdfParameters.weakest()


MEMORY_IS_SHORT = """
import resource
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.errors import VaultError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    KdfParameters(2 << 20, 3, 4).derive(b"secret", bytes(32))
except VaultError as error:
    print(error)
"""


def test_too_little_memory_is_an_error_that_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY_IS_SHORT], capture_output=True, text=True, check=True)
    assert "2048 MiB of memory" in done.stdout
