"""What a person confirms reaches the server once, and is not lost before."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import VaultId
from vaultfs.mesh import confirmations as module
from vaultfs.mesh.confirmations import Confirmations, Confirmed

FIRST, SECOND = (Confirmed(VaultId(bytes([number]) * 16), bytes([number]) * 32) for number in (1, 2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mesh" / "confirmed.json"


@pytest.fixture
def confirmations(path: Path) -> Confirmations:
    return Confirmations(path)


def test_written_down_and_taken(confirmations: Confirmations, path: Path) -> None:
    assert (confirmations.is_there(), confirmations.waiting()) == (False, [])
    for each in (FIRST, SECOND, FIRST):
        confirmations.add(each)
    assert Confirmations(path).waiting() == [FIRST, SECOND]
    assert confirmations.is_there()
    confirmations.remove(FIRST)
    confirmations.remove(FIRST)
    assert confirmations.waiting() == [SECOND]
    confirmations.remove(SECOND)
    assert (confirmations.is_there(), confirmations.waiting()) == (False, [])
    confirmations.remove(SECOND)


def test_a_device_of_two_vaults(confirmations: Confirmations) -> None:
    other = Confirmed(SECOND.vault, FIRST.device)
    for each in (FIRST, other):
        confirmations.add(each)
    confirmations.remove(other)
    assert confirmations.waiting() == [FIRST]


def test_too_many(confirmations: Confirmations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 1)
    confirmations.add(FIRST)
    confirmations.add(FIRST)
    with pytest.raises(UsageError, match="already"):
        confirmations.add(SECOND)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1}',
        b'{"format": 1, "devices": [{"vault_id": "00", "device": "00"}]}',
        b'{"format": 1, "devices": [], "more": 1}',
    ],
)
def test_a_damaged_file(confirmations: Confirmations, path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for action in (confirmations.waiting, lambda: confirmations.add(FIRST), lambda: confirmations.remove(FIRST)):
        with pytest.raises(IntegrityError, match=r"confirmed\.json is damaged"):
            action()
    assert path.read_bytes() == content
