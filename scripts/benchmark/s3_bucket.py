"""What the S3 server of the backup rows holds: objects in files, listed in order, and counts of what came."""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

LISTED = 1000
"""How many keys are on a page of a listing."""


@dataclass
class Stored:
    """An object."""

    path: Path
    size: int
    time: float
    metadata: dict[str, str]

    @property
    def tag(self) -> str:
        """What S3 calls an ETag; one with a dash is no MD5, and nobody takes it for one."""
        return f"{self.path.name}-1"

    @property
    def iso_time(self) -> str:
        """When it was stored."""
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass
class Counts:
    """What came since it was last asked."""

    requests: dict[str, int] = field(default_factory=dict)
    received_bytes: int = 0
    sent_bytes: int = 0


class Bucket:
    """All objects of all buckets, by bucket and key.

    Args:
        directory: for their contents.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = threading.Lock()
        self.objects: dict[str, Stored] = {}
        self.keys: list[str] = []
        self.counts = Counts()
        self.numbers = count()

    def new_path(self) -> Path:
        """Return a place for the content of an object."""
        return self.directory / str(next(self.numbers))

    def put(self, key: str, stored: Stored, *, only_new: bool) -> bool:
        """Give an object its name; return whether it was free, or could be replaced."""
        with self.lock:
            before = self.objects.get(key)
            if before is not None and only_new:
                return False
            if before is None:
                bisect.insort(self.keys, key)
            self.objects[key] = stored
        if before is not None:
            before.path.unlink()
        return True

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self.lock:
            stored = self.objects.pop(key, None)
            if stored is not None:
                del self.keys[bisect.bisect_left(self.keys, key)]
        if stored is not None:
            stored.path.unlink()

    def listed(self, bucket: str, prefix: str, after: str, delimiter: str) -> tuple[list[str], list[str], str | None]:
        """Return keys, common prefixes, and what the next page comes after, if there is one."""
        keys: list[str] = []
        prefixes: list[str] = []
        with self.lock:
            at = bisect.bisect_right(self.keys, f"{bucket}/{after}") if after else 0
            at = max(at, bisect.bisect_left(self.keys, f"{bucket}/{prefix}"))
            while at < len(self.keys):
                key = self.keys[at].removeprefix(f"{bucket}/")
                if not self.keys[at].startswith(f"{bucket}/{prefix}"):
                    break
                if len(keys) + len(prefixes) == LISTED:
                    return keys, prefixes, (keys + prefixes)[-1] if not prefixes else max([*keys, *prefixes])
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut < 0:
                    keys.append(key)
                    at += 1
                else:
                    common = key[: cut + len(delimiter)]
                    if common > after:
                        prefixes.append(common)
                    at = bisect.bisect_left(self.keys, f"{bucket}/{common}\U0010ffff")
        return keys, prefixes, None
