"""Memory grows neither with the vault nor with the segments: a few pieces for each connection, to send and to fetch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sync.fabricated import Fabricated, target
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.upload import sync
from vaultfs.sync.verify import verify

SEGMENT = 8 << 20
SEGMENTS = 10
PIECES = 2 << 20
"""Of a MiB each, on their way in each connection."""
SENT_PIECES = 3 << 20
"""Likewise: what was read ahead, what is given out of it, and the next."""
SLACK = 1 << 20
CONNECTIONS = 4
LARGE_SEGMENT = 64 << 20
LARGE_SEGMENTS = CONNECTIONS + 1
LIMIT_KIB = 128 << 10
"""The program and its libraries take some 75 MiB; two segments would be too much."""


def peak(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_by_the_connections(scratch: Path) -> None:
    vault = Fabricated(scratch / "vault")
    vault.snapshot(*(vault.segment(SEGMENT) for _ in range(SEGMENTS)))
    vault.segments.clear()
    disks = [DirectoryStore(scratch / name) for name in ("one", "two")]
    targets = []
    for disk in disks:
        Path(disk.name.removeprefix("file://")).mkdir()
        targets.append(target(vault, disk, scratch / "state", disk.name[-3:]))
    for connections in (1, 3):
        for disk in disks:
            for info in list(disk.list("segments/")):
                disk.delete(info.key)
        used = peak(lambda: sync(vault.layout, targets, connections=connections, check=True))  # noqa: B023
        assert used < connections * SENT_PIECES + SLACK
    [head] = heads(disks[0])
    assert peak(lambda: fetch(disks[0], VaultLayout(scratch / "restored"), head, connections=3)) < 3 * PIECES + SLACK
    assert peak(lambda: verify(disks[1], read_share=1.0)) < 4 * PIECES + SLACK


PROGRAM = """
import sys
from pathlib import Path
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.remotes.s3 import S3Options, S3Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.public_header import read_header
from vaultfs.sync.upload import Target, sync

vault, state, endpoint, disk, back = sys.argv[1:]
layout = VaultLayout(Path(vault))
vault_id = read_header(layout).vault_id
s3 = S3Store("bucket", "", S3Options(endpoint, region="us-east-1", path_style=True))
stores = {"s3": s3, "disk": DirectoryStore(Path(disk))}
for name, store in stores.items():
    [outcome] = sync(layout, [Target(name, store, Ledger(Path(state) / name, vault_id))], connections=4)
    assert outcome.is_up_to_date, outcome
    print(outcome.segments)
[head] = heads(stores["disk"])
fetch(stores["disk"], VaultLayout(Path(back)), head, connections=4)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@contextmanager
def swallowing() -> Iterator[tuple[str, dict[str, int]]]:
    """An S3 server that keeps what is small, and forgets all else but its lengths; and these."""
    lengths: dict[str, int] = {}
    kept: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            left = length = int(self.headers["Content-Length"])
            if length <= SLACK:
                kept[self.path] = self.rfile.read(length)
                left = 0
            while left and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)
            if not left:
                lengths[self.path] = length
            self._answer(200, 0)

        def do_HEAD(self) -> None:
            self._answer(200 if self.path in lengths else 404, lengths.get(self.path, 0))

        def do_GET(self) -> None:
            body = kept.get(self.path, b"")
            if "?" in self.path:
                body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            self._answer(200 if body else 404, len(body))
            self.wfile.write(body)

        def _answer(self, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("ETag", '"x-1"')
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", lengths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment() -> dict[str, str]:
    """Nothing that the person who runs the tests has set up is used."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return own | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


def test_a_real_process_with_segments_of_64_mib(scratch: Path) -> None:
    """What the system counts, with boto3's share: a segment for each connection would be 256 MiB."""
    vault = Fabricated(scratch / "vault")
    block = vault.random.randbytes(1 << 20)
    names = [
        vault.segment(data=number.to_bytes(4, "little") + block[4:] + block * 63) for number in range(LARGE_SEGMENTS)
    ]
    vault.snapshot(*names)
    vault.segments.clear()
    (scratch / "disk").mkdir()
    paths = [str(scratch / name) for name in ("vault", "state", "disk", "back")]
    with swallowing() as (endpoint, lengths):
        command = [sys.executable, "-c", PROGRAM, *paths[:2], endpoint, *paths[2:]]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    segments_s3, segments_disk, peak_kib = map(int, done.stdout.split())
    assert segments_s3 == segments_disk == LARGE_SEGMENTS
    assert [length for path, length in lengths.items() if "/segments/" in path] == [LARGE_SEGMENT] * LARGE_SEGMENTS
    assert peak_kib < LIMIT_KIB, peak_kib
    for name in names:
        assert VaultLayout(scratch / "back").sealed_path(name).stat().st_size == LARGE_SEGMENT
