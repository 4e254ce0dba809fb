"""Argon2id (RFC 9106): what a guess at a password costs.

Parameters are checked against bounds when they are made, so none that is too weak or absurd ever reaches the
allocation.  The floor, 64 MiB and 3 passes, is RFC 9106's second recommendation.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from vaultfs.crypto.keys import KEY_BYTES
from vaultfs.errors import IntegrityError, UsageError, VaultError

SMALLEST_MEMORY_KIB: Final = 64 << 10
LARGEST_MEMORY_KIB: Final = 4 << 20
FEWEST_ITERATIONS: Final = 3
MOST_ITERATIONS: Final = 64
MOST_LANES: Final = 64
_USUAL_LANES: Final = 4
_LARGEST_CALIBRATED_MEMORY_KIB: Final = 1 << 20
"""1 GiB: RFC 9106 asks for 2 GiB at best, but a vault should also open on a small machine."""
_MEMORY_STEP_KIB: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """What one guess costs.  Every instance is within the bounds.

    Args:
        memory_kib: from 64 MiB to 4 GiB, in KiB.
        iterations: passes over it, from 3 to 64.
        lanes: from 1 to 64.

    Raises:
        UsageError: one is out of bounds.
    """

    memory_kib: int
    iterations: int
    lanes: int

    def __post_init__(self) -> None:
        if not SMALLEST_MEMORY_KIB <= self.memory_kib <= LARGEST_MEMORY_KIB:
            raise UsageError(f"Argon2id with {self.memory_kib} KiB of memory: it must be from 64 MiB to 4 GiB")
        if not FEWEST_ITERATIONS <= self.iterations <= MOST_ITERATIONS:
            raise UsageError(
                f"Argon2id with {self.iterations} passes: it must be from {FEWEST_ITERATIONS} to {MOST_ITERATIONS}"
            )
        if not 1 <= self.lanes <= MOST_LANES:
            raise UsageError(f"Argon2id with {self.lanes} lanes: it must be from 1 to {MOST_LANES}")

    @classmethod
    def weakest(cls) -> KdfParameters:
        """The floor: 64 MiB, 3 passes, 4 lanes; about a quarter of a second."""
        return cls(SMALLEST_MEMORY_KIB, FEWEST_ITERATIONS, _USUAL_LANES)

    @classmethod
    def from_header(cls, memory_kib: int, iterations: int, lanes: int) -> KdfParameters:
        """Parameters that a file names, so that anyone may have written them.

        Args:
            memory_kib: as above.
            iterations: as above.
            lanes: as above.

        Raises:
            IntegrityError: one is out of bounds; nothing was allocated.
        """
        try:
            return cls(memory_kib, iterations, lanes)
        except UsageError as error:
            raise IntegrityError(f"vault.json is damaged or forged: {error}") from None

    @classmethod
    def calibrate(cls, memory_kib: int | None = None, target_s: float = 1.0) -> KdfParameters:
        """Parameters that take about the given time on this machine; measures for about a quarter of a second.

        Memory is raised before passes, because it is what a guesser's hardware lacks: up to 1 GiB and a quarter of
        the machine's.

        Args:
            memory_kib: use just so much, and find the passes only.
            target_s: seconds that one derivation shall take.

        Raises:
            UsageError: the memory is out of bounds.
        """
        weakest = cls.weakest()
        chosen_kib = memory_kib
        if memory_kib is not None:
            cls(memory_kib, FEWEST_ITERATIONS, _USUAL_LANES)
        weakest_s = max(_measure_s(weakest), 1e-3)
        if chosen_kib is None:
            affordable_kib = min(_LARGEST_CALIBRATED_MEMORY_KIB, _physical_memory_kib() // 4)
            wanted_kib = min(int(SMALLEST_MEMORY_KIB * target_s / weakest_s), affordable_kib)
            chosen_kib = max(SMALLEST_MEMORY_KIB, wanted_kib // _MEMORY_STEP_KIB * _MEMORY_STEP_KIB)
        # The time is proportional to memory times passes.
        pass_s = weakest_s / FEWEST_ITERATIONS * chosen_kib / SMALLEST_MEMORY_KIB
        iterations = min(max(FEWEST_ITERATIONS, round(target_s / pass_s)), MOST_ITERATIONS)
        return cls(chosen_kib, iterations, _USUAL_LANES)

    def derive(self, secret: bytes, salt: bytes) -> bytes:
        """Argon2id version 1.3, without secret or associated data of its own.

        Args:
            secret: the password.
            salt: public, random, at least 16 bytes.

        Returns:
            32 bytes.

        Raises:
            VaultError: the machine has not so much memory.
        """
        argon2 = Argon2id(
            salt=salt, length=KEY_BYTES, iterations=self.iterations, lanes=self.lanes, memory_cost=self.memory_kib
        )
        try:
            return argon2.derive(secret)
        except MemoryError:
            raise VaultError(
                f"checking the password takes {self.memory_kib >> 10} MiB of memory; free as much and try again"
            ) from None


def _measure_s(parameters: KdfParameters) -> float:
    """Seconds that one derivation takes."""
    start_s = time.perf_counter()
    parameters.derive(b"calibration", bytes(16))
    return time.perf_counter() - start_s


def _physical_memory_kib() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
