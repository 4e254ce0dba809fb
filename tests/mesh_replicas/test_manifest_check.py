"""A peer accepts exactly what `Manifest.decode` accepts, in less memory."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mesh_replicas.peer_objects import DEVICE, OTHER_VAULT, STRANGER, VAULT, data_of, digest_of, manifest
from vaultfs.errors import FormatTooNewError, IntegrityError
from vaultfs.mesh.manifest_check import check_manifest
from vaultfs.storage.manifest_format import Manifest

PREFIX = b"VFSMAN\0\x01"


def signed(body: bytes) -> bytes:
    return PREFIX + DEVICE.sign(PREFIX + body) + body


def body_of(*fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def is_accepted(data: bytes) -> bool:
    try:
        check_manifest(data, VAULT, DEVICE.public_key, 1, digest_of(data))
    except (IntegrityError, FormatTooNewError):
        return False
    return True


def is_decoded(data: bytes) -> bool:
    try:
        found, _ = Manifest.decode(data)
    except (IntegrityError, FormatTooNewError):
        return False
    return (found.vault_id, found.device, found.seq) == (VAULT, DEVICE.public_key, 1)


NAMES = sorted(data_of(number, 32) for number in range(4))
JOINED = b"".join(NAMES)
KEY = DEVICE.public_key
LARGEST = (1 << 63) - 1


def odd_bodies() -> Iterator[bytes]:
    previous = data_of(9, 32)
    yield body_of(VAULT, KEY, 1, 0, None, b"", [], b"")
    yield body_of(VAULT, KEY, 1, -5, previous, JOINED, [1, 2, 3, LARGEST], b"p" * 300)
    yield body_of(VAULT, KEY, 1, -(1 << 63), previous, JOINED, [127, 128, 255, 65536], b"p" * 70_000)
    yield body_of(VAULT, KEY, 1, LARGEST, previous, JOINED[:32], [1 << 32], b"p" * 255)
    yield body_of(VAULT, KEY, 1, 1 << 63, previous, JOINED[:32], [1], b"")
    yield body_of(VAULT, KEY, 2, 0, None, b"", [], b"")
    yield body_of(VAULT, KEY, 0, 0, None, b"", [], b"")
    yield body_of(VAULT, KEY, 1 << 63, 0, None, b"", [], b"")
    yield body_of(OTHER_VAULT, KEY, 1, 0, None, b"", [], b"")
    yield body_of(VAULT, STRANGER.public_key, 1, 0, None, b"", [], b"")
    yield body_of(VAULT[:15], KEY, 1, 0, None, b"", [], b"")
    yield body_of(VAULT, KEY + b"x", 1, 0, None, b"", [], b"")
    yield body_of(VAULT, KEY, 1, 0, previous[:31], b"", [], b"")
    for size in (0, -1, 1 << 63, 1.0, True, None, "1"):
        yield body_of(VAULT, KEY, 1, 0, None, JOINED, [1, 2, 3, size], b"")
    for names in (JOINED[:-1], JOINED + b"x", JOINED[32:], b"", JOINED[32:] + JOINED[:32], NAMES[0] * 4):
        yield body_of(VAULT, KEY, 1, 0, None, names, [1, 2, 3, 4], b"")
    yield body_of(VAULT, KEY, 1, 0, None, b"", [], b"", b"more")
    yield body_of(VAULT, KEY, 1, 0, None, b"", [])
    yield body_of(VAULT, KEY, 1, 0, None, "", [], b"")
    yield body_of(VAULT, KEY, 1, 0, None, b"", [], "private")
    good = body_of(VAULT, KEY, 1, 0, None, JOINED, [1, 2, 3, 4], b"private")
    yield good
    yield good + b"x"
    yield b"\xdc\0\x08" + good[1:]
    for short, long in [
        (b"\xc4\x10", b"\xc5\0\x10"),
        (b"\xc4\x80" + NAMES[0], b"\xc5\0\x80" + NAMES[0]),
        (b"\xc4\x80" + NAMES[0], b"\xc6\0\0\0\x80" + NAMES[0]),
        (b"\x94\x01\x02", b"\xdc\0\x04\x01\x02"),
        (b"\x94\x01\x02", b"\x94\xcc\x01\x02"),
        (b"\x94\x01\x02", b"\x94\xd0\x01\x02"),
        (b"\xc4\x07private", b"\xc5\0\x07private"),
        (b"\x01\0\xc0", b"\x01\xcc\0\xc0"),
        (b"\x01\0\xc0", b"\xcc\x01\0\xc0"),
        (b"\x01\0\xc0", b"\x01\0\xc4\0"),
    ]:
        assert short in good
        yield good.replace(short, long, 1)


def test_odd_bodies() -> None:
    bodies = list(odd_bodies())
    accepted = 0
    for body in bodies:
        data = signed(body)
        assert is_accepted(data) == is_decoded(data), body
        accepted += is_accepted(data)
    assert accepted == 5


def mutants(count: int) -> Iterator[bytes]:
    draw = random.Random(4)
    good = body_of(VAULT, KEY, 1, 300, data_of(9, 32), JOINED, [1, 200, 70_000, 1 << 40], b"private" * 40)
    for _ in range(count):
        body = bytearray(good)
        for _ in range(draw.randint(1, 2)):
            place = draw.randrange(len(body))
            action = draw.randrange(4)
            if action == 0:
                body[place] ^= 1 << draw.randrange(8)
            elif action == 1:
                del body[place : place + draw.randint(1, 40)]
            elif action == 2:
                body[place:place] = body[place : place + draw.randint(1, 40)]
            else:
                body[place] = draw.choice([0, 1, 0x90, 0x98, 0xC0, 0xC4, 0xC5, 0xC6, 0xCC, 0xCF, 0xD3, 0xDC, 0xFF])
            if not body:
                break
        yield bytes(body)


@pytest.mark.parametrize("count", [1500, pytest.param(100_000, marks=pytest.mark.long)])
def test_mutants(count: int) -> None:
    verdicts = set()
    for body in mutants(count):
        data = signed(body)
        assert is_accepted(data) == is_decoded(data), body
        verdicts.add(is_accepted(data))
    assert verdicts == {False, True}  # in the private part, anything goes


def test_the_frame() -> None:
    data = manifest()
    assert is_accepted(data)
    for wrong in (b"", data[:71], b"VFSMAN\0\0" + data[8:], b"x" + data[1:]):
        with pytest.raises(IntegrityError):
            check_manifest(wrong, VAULT, DEVICE.public_key, 1, digest_of(wrong))
    with pytest.raises(IntegrityError):
        check_manifest(data, VAULT, DEVICE.public_key, 1, digest_of(b"x"))
    flipped = data[:20] + bytes([data[20] ^ 1]) + data[21:]
    with pytest.raises(IntegrityError, match="signed"):
        check_manifest(flipped, VAULT, DEVICE.public_key, 1, digest_of(flipped))
    with pytest.raises(IntegrityError, match="signed"):
        check_manifest(data, VAULT, STRANGER.public_key, 1, digest_of(data))
    newer = b"VFSMAN\0\x02" + data[8:]
    with pytest.raises(FormatTooNewError):
        check_manifest(newer, VAULT, DEVICE.public_key, 1, digest_of(newer))


MEASURE = """
import resource, sys
from pathlib import Path
import blake3
from vaultfs.mesh.manifest_check import check_manifest
Path("/proc/self/clear_refs").write_text("5")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Path(sys.argv[1]).read_bytes()
check_manifest(data, bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3]), 1, blake3.blake3(data).digest())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_largest_manifest_takes_less_than_60_mib(tmp_path: Path) -> None:
    count = 420_000
    names = b"".join((number << 64).to_bytes(32, "big") for number in range(count))
    data = signed(body_of(VAULT, KEY, 1, 0, None, names, [(1 << 40) + number for number in range(count)], b""))
    assert 15 << 20 < len(data) <= 17 << 20
    path = tmp_path / "manifest"
    path.write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), VAULT.hex(), KEY.hex()], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) < 60 << 10
