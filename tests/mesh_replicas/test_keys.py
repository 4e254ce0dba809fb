"""Which keys a peer stores."""

from __future__ import annotations

import pytest

from vaultfs.errors import RemoteRefusedError
from vaultfs.mesh.replica_keys import Kind, parse_object_key, require_object_key, segment_object

H = "0123456789abcdef" * 4
D = "f" * 64


KEYS = [
    (f"segments/01/{H}", Kind.SEGMENT, 128 << 20),
    (f"shares/{D}/1-1-0-7-{H}", Kind.SHARE, 64 + 7),
    (f"shares/{D}/1-2-1-{128 << 20}-{H}", Kind.SHARE, 64 + (128 << 20)),
    (f"shares/{D}/2-3-2-7-{H}", Kind.SHARE, 64 + 4),
    (f"heads/{D}/0000000001-{H}", Kind.HEAD, 16 << 20),
    (f"heads/{D}/9223372036854775807-{H}", Kind.HEAD, 16 << 20),
    ("vault.json", Kind.HEADER, 1 << 20),
    (f"heads/condemned/{H}", Kind.NOTE, 16 << 20),
    (f"heads/swept/{H}", Kind.NOTE, 16 << 20),
    (f"heads/sweeping/{H}", Kind.NOTE, 16 << 20),
    (f"heads/spared/{H}", Kind.NOTE, 16 << 20),
    (f"heads/branches/{H}", Kind.NOTE, 16 << 20),
    ("probe/x", Kind.NOTE, 64 << 10),
    ("probe/a/b/c", Kind.NOTE, 64 << 10),
]


def test_keys() -> None:
    for key, kind, largest_bytes in KEYS:
        parsed = require_object_key(key)
        assert (parsed.key, parsed.kind, parsed.largest_bytes) == (key, kind, largest_bytes)
        assert parsed.digest == (bytes.fromhex(H) if kind in {Kind.SEGMENT, Kind.SHARE, Kind.HEAD} else None)
        if kind is Kind.HEAD:
            assert (parsed.device, parsed.seq) == (bytes.fromhex(D), int(key.split("/")[2].split("-")[0]))
        assert "/".join(parsed.parts) == key


NO_KEYS = [
    "",
    "x",
    "/",
    "vault.json/",
    "/vault.json",
    "vault.JSON",
    "Vault.json",
    f"segments/{H}",
    f"segments/02/{H}",
    f"segments/01/{H}\n",
    f"segments/01/{H.upper()}",
    f"segments/01/{H[1:]}",
    f"segments/01/./{H}",
    f"segments//01/{H}",
    f"shares/{D}/2-1-0-7-{H}",
    f"shares/{D}/1-1-1-7-{H}",
    f"shares/{D}/1-65-0-7-{H}",
    f"shares/{D}/1-1-0-{(128 << 20) + 1}-{H}",
    f"shares/{D}/1-1-0-7-{H[1:]}",
    f"shares/{D}/1-1-0-{H}",
    f"heads/{D}/1-{H}",
    f"heads/{D}/0000000000-{H}",
    f"heads/{D}/9223372036854775808-{H}",
    f"heads/{D[1:]}/0000000001-{H}",
    f"heads/other/{H}",
    f"heads/swept/{H[1:]}",
    f"heads/swept/{H}/x",
    "probe/",
    "probe",
    "probe/a/b/c/d",
    "probe/.x",
    "probe/../vault.json",
    "probe/\u00e4",
    "probe/a\0b",
    "probe/" + "x" * 512,
    ".mesh/record.json",
]


def test_what_is_no_key() -> None:
    for key in NO_KEYS:
        assert parse_object_key(key) is None, key
        with pytest.raises(RemoteRefusedError):
            require_object_key(key)


def test_segments_by_name() -> None:
    assert segment_object(bytes.fromhex(H)) == parse_object_key(f"segments/01/{H}")
