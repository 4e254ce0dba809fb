"""Who is granted what: at once, strictly, and nobody anything when the file is not what it should be."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import pytest

from mesh_replicas.peer_objects import ALICE, BOB, OTHER_VAULT, VAULT, Clock
from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.grants import MOST_GRANTS, Grant, Grants
from vaultfs.mesh.identity import format_peer_id


def grant(
    peer: PeerId = ALICE, vault: VaultId | None = VAULT, quota_bytes: int | None = None, label: str = "a"
) -> Grant:
    return Grant(peer, vault, "write", quota_bytes, label, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "grants.json"


def test_no_file_no_grant(path: Path) -> None:
    grants = Grants(path)
    assert grants.lookup(ALICE, VAULT) is None
    assert grants.all() == []
    assert not grants.is_known(ALICE)
    assert grants.remove(ALICE, VAULT) == 0
    assert not path.exists()


def test_the_most_specific_counts(path: Path) -> None:
    grants = Grants(path)
    anything = Grant(ALICE, None, "read", 5, "any", 1)
    grants.add(anything)
    assert grants.lookup(ALICE, VAULT) == anything
    grants.add(grant())
    assert grants.lookup(ALICE, VAULT) == grant()
    assert grants.lookup(ALICE, OTHER_VAULT) == anything
    assert grants.lookup(BOB, VAULT) is None
    assert (grants.is_known(ALICE), grants.is_known(BOB)) == (True, False)
    assert not anything.may_write
    assert grant().may_write
    assert grants.all() == [anything, grant()]
    assert path.stat().st_mode & 0o777 == 0o600


def test_adding_replaces_and_removing_removes(path: Path) -> None:
    grants = Grants(path)
    grants.add(grant(quota_bytes=1))
    grants.add(grant(quota_bytes=2))
    grants.add(grant(BOB))
    grants.add(grant(BOB, None))
    assert len(grants.all()) == 3
    assert grants.lookup(ALICE, VAULT) == grant(quota_bytes=2)
    assert grants.remove(BOB) == 1
    assert grants.all() == [grant(quota_bytes=2), grant(BOB)]
    grants.add(grant(BOB, None))
    assert grants.remove(BOB, every=True) == 2
    assert grants.remove(ALICE, OTHER_VAULT) == 0
    assert grants.remove(ALICE, VAULT) == 1
    assert grants.all() == []


def test_changes_are_noticed(path: Path) -> None:
    """Also within one step of the file system's times, of the same length, and in the same file."""
    server, command = Grants(path), Grants(path)
    for turn in range(20):
        command.add(grant(label=str(turn % 10)))
        found = server.lookup(ALICE, VAULT)
        assert found is not None
        assert found.label == str(turn % 10)
        assert command.remove(ALICE, VAULT) == 1
        assert server.lookup(ALICE, VAULT) is None
    command.add(grant(label="x"))
    assert server.lookup(ALICE, VAULT) == grant(label="x")
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    assert server.lookup(ALICE, VAULT) == grant(label="y")
    path.unlink()
    assert server.lookup(ALICE, VAULT) is None


def test_a_file_that_does_not_change_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Grants(path).add(grant())
    changed_ns = path.stat().st_ctime_ns
    clock = Clock(changed_ns + 10**9)
    server = Grants(path, clock)
    reads = 0
    real = server._file.load

    def load() -> Any:
        nonlocal reads
        reads += 1
        return real()

    monkeypatch.setattr(server._file, "load", load)
    for expected in (1, 2, 3):  # it may be changed within the same step of time
        server.lookup(ALICE, VAULT)
        assert reads == expected
    clock.now_ns += 1
    for _ in range(3):
        assert server.lookup(ALICE, VAULT) == grant()
    assert reads == 4
    clock.now_ns -= 10**18  # what was read stays right
    server.lookup(ALICE, VAULT)
    assert reads == 4
    os.utime(path, ns=(0, 0))
    server.lookup(ALICE, VAULT)
    assert reads == 5


def test_a_file_that_was_away_and_is_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every file system notes in a file's times that it got another name."""
    server = Grants(path, lambda: 1 << 62)
    server.add(grant())
    mark = server._look()
    monkeypatch.setattr(server, "_look", lambda: mark if path.exists() else None)
    assert server.lookup(ALICE, VAULT) == grant()
    away = path.rename(path.with_name("away"))
    assert server.lookup(ALICE, VAULT) is None
    away.rename(path)
    assert server.lookup(ALICE, VAULT) == grant()


def content() -> dict[str, Any]:
    entry = {
        "peer": format_peer_id(ALICE),
        "vault": VAULT.hex(),
        "access": "write",
        "quota_bytes": None,
        "label": "a",
        "added_ns": 1,
    }
    return {"format": 1, "grants": [entry]}


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


def test_a_file_of_a_person(path: Path) -> None:
    write(path, json.dumps(content()).encode())
    assert Grants(path).all() == [grant()]


CHANGES: list[tuple[str, Any]] = [
    ("peer", format_peer_id(ALICE)[:-1] + "x"),
    ("peer", "x" * 101),
    ("peer", ""),
    ("vault", "**"),
    ("vault", VAULT.hex().upper().replace("0", "A")),
    ("vault", VAULT.hex()[1:]),
    ("vault", None),
    ("access", "Write"),
    ("access", None),
    ("quota_bytes", -1),
    ("quota_bytes", 1 << 63),
    ("quota_bytes", "1"),
    ("label", "x" * 65),
    ("label", None),
    ("added_ns", -1),
    ("added_ns", 1.5),
    ("more", 1),
]


def test_strict(path: Path) -> None:
    for name, value in CHANGES:
        changed = content()
        changed["grants"][0][name] = value
        write(path, json.dumps(changed).encode())
        fails_closed(path)


def fails_closed(path: Path, error: type[VaultError] = IntegrityError) -> None:
    grants = Grants(path)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        for action in (
            lambda: grants.lookup(ALICE, VAULT),
            lambda: grants.is_known(ALICE),
            grants.all,
            lambda: grants.add(grant(BOB)),
            lambda: grants.remove(ALICE, every=True),
        ):
            with pytest.raises(error, match=r"grants\.json"):
                action()
    assert before is None or path.read_bytes() == before


def test_the_same_twice(path: Path) -> None:
    changed = content()
    changed["grants"] *= 2
    write(path, json.dumps(changed).encode())
    fails_closed(path)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b" " * ((1 << 20) + 1), b'{"format":0}'])
def test_damaged(path: Path, data: bytes) -> None:
    write(path, data)
    fails_closed(path)


def test_of_a_newer_format(path: Path) -> None:
    write(path, b'{"format": 2, "rules": []}')
    fails_closed(path, FormatTooNewError)


def test_what_others_may_write_or_is_something_else(path: Path, tmp_path: Path) -> None:
    Grants(path).add(grant())
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        fails_closed(path)
    path.chmod(0o644)
    assert Grants(path).lookup(ALICE, VAULT) == grant()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    fails_closed(path)
    path.unlink()
    os.mkfifo(path, 0o600)
    fails_closed(path)
    path.unlink()
    path.mkdir()
    fails_closed(path)


def test_damage_while_the_server_runs_revokes_everything(path: Path) -> None:
    server = Grants(path)
    server.add(grant())
    good = path.read_bytes()
    assert server.lookup(ALICE, VAULT) == grant()
    write(path, good[:-10])
    for _ in range(2):
        with pytest.raises(IntegrityError, match="granted"):
            server.lookup(ALICE, VAULT)
    write(path, good)
    assert server.lookup(ALICE, VAULT) == grant()


@pytest.mark.parametrize(
    "wrong",
    [
        grant(label="x" * 65),
        grant(label="\ud800"),
        grant(quota_bytes=-1),
        grant(quota_bytes=1 << 63),
        Grant(ALICE, VAULT, "write", None, "", -1),
        Grant(ALICE, VAULT, "all", None, "", 1),  # type: ignore[arg-type]
        Grant(ALICE, VaultId(b"x"), "read", None, "", 1),
        Grant(PeerId(b"x"), VAULT, "read", None, "", 1),
    ],
)
def test_what_cannot_be_granted(path: Path, wrong: Grant) -> None:
    grants = Grants(path)
    grants.add(grant(BOB))
    with pytest.raises(UsageError):
        grants.add(wrong)
    assert grants.all() == [grant(BOB)]


def test_too_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = content()
    changed["grants"] = [
        {**changed["grants"][0], "peer": format_peer_id(PeerId(number.to_bytes(32, "big")))}
        for number in range(MOST_GRANTS)
    ]
    write(path, json.dumps(changed).encode())
    grants = Grants(path)
    with pytest.raises(UsageError):
        grants.add(grant(BOB))
    assert len(grants.all()) == MOST_GRANTS


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.long)])
def test_fuzz(path: Path, count: int) -> None:
    draw = random.Random(11)
    good = json.dumps(content(), indent=1).encode()
    for _ in range(count):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(data))
            data[place : place + draw.choice([0, 1, 1, 20])] = draw.choice(
                [b"", b"*", bytes([draw.randrange(256)]), b'"', b"1e999", b"null", b"\xff\xfe", b"[" * 2000]
            )
        write(path, bytes(data))
        try:
            found = Grants(path).all()
        except (IntegrityError, FormatTooNewError):
            continue
        assert all(each.peer == ALICE for each in found)  # its checksum is right


def _add(path: Path, first: int) -> None:
    for number in range(first, first + 10):
        Grants(path).add(grant(PeerId(number.to_bytes(32, "big"))))


def test_many_processes_lose_no_entry(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add, args=(path, 10 * number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(Grants(path).all()) == 40
