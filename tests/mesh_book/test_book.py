"""The address book keeps what it was told, loses nothing to a second writer, and believes no damaged file."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import book as book_module
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import DEFAULT_REPLICAS, MOST_PEERS, MOST_REPLICAS, Book, KnownPeer, VaultPeers, require_zone
from vaultfs.mesh.identity import Identity, format_peer_id
from vaultfs.mesh.peer_words import meant_peer
from vaultfs.mesh.share_format import Coding

VAULT = VaultId(bytes(range(16)))
OTHER = VaultId(bytes(range(1, 17)))


def peer(number: int) -> PeerId:
    return Identity.of_seed(number.to_bytes(32, "big")).peer_id


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "mesh" / "peers.json"


@pytest.fixture
def book(path: Path) -> Book:
    moments = iter(range(1000, 2000))
    return Book(path, clock_ns=lambda: next(moments))


def test_nothing_yet(book: Book, path: Path) -> None:
    assert book.load() == []
    assert book.peers_of(VAULT) == VaultPeers(VAULT, DEFAULT_REPLICAS, None, ())
    assert not path.parent.exists()


def test_what_is_added_is_there(book: Book, path: Path) -> None:
    first = book.add(VAULT, peer(1), Address("nas", 7741), "home")
    second = book.add(VAULT, peer(2), Address("fe80::1%eth0", 1))
    assert (first, second) == (
        KnownPeer(peer(1), Address("nas", 7741), "home", 1000),
        KnownPeer(peer(2), Address("fe80::1%eth0", 1), "", 1001),
    )
    assert Book(path).load() == [VaultPeers(VAULT, 2, None, (first, second))]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_file_is_as_documented(book: Book, path: Path) -> None:
    book.add(VAULT, peer(1), Address("nas", 7741), "home")
    book.set_replicas(VAULT, 3, Coding(4, 7))
    assert json.loads(path.read_text()) == {
        "format": 1,
        "vaults": [
            {
                "vault_id": VAULT.hex(),
                "replicas": 3,
                "coding": "4/7",
                "peers": [
                    {"id": format_peer_id(peer(1)), "host": "nas", "port": 7741, "zone": "home", "added_ns": 1000}
                ],
            }
        ],
    }


def test_added_again_with_another_address(book: Book) -> None:
    book.add(VAULT, peer(1), Address("nas"), "home")
    book.add(VAULT, peer(2), Address("other"))
    again = book.add(VAULT, peer(1), Address("nas2", 9))
    assert again == KnownPeer(peer(1), Address("nas2", 9), "home", 1000), "the zone stays, and the moment"
    assert [each.id for each in book.peers_of(VAULT).peers] == [peer(1), peer(2)]
    assert book.add(VAULT, peer(1), Address("nas2", 9), "work").zone == "work"
    assert book.add(VAULT, peer(1), Address("nas2", 9), "").zone == ""


def test_vaults_are_apart(book: Book) -> None:
    book.add(VAULT, peer(1), Address("nas"))
    book.add(OTHER, peer(1), Address("elsewhere"))
    book.set_replicas(OTHER, 5)
    book.remove(OTHER, peer(1))
    assert [each.address for each in book.peers_of(VAULT).peers] == [Address("nas")]
    assert book.peers_of(OTHER) == VaultPeers(OTHER, 5, is_told=True)
    book.remove(VAULT, peer(2))
    assert len(book.peers_of(VAULT).peers) == 1


def test_a_page_that_says_nothing_goes(book: Book, path: Path) -> None:
    book.add(VAULT, peer(1), Address("nas"))
    book.remove(VAULT, peer(1))
    assert json.loads(path.read_text())["vaults"] == []


def test_replicas(book: Book) -> None:
    book.set_replicas(VAULT, MOST_REPLICAS, Coding(4, 7))
    assert book.peers_of(VAULT).coding == Coding(4, 7)
    book.set_replicas(VAULT, 1)
    assert book.peers_of(VAULT) == VaultPeers(VAULT, 1, None, is_told=True)
    for wrong in (0, -1, MOST_REPLICAS + 1):
        with pytest.raises(UsageError, match=f"{wrong} is not from 1 to"):
            book.set_replicas(VAULT, wrong)
    assert book.peers_of(VAULT).replicas == 1


def test_that_it_was_said_is_remembered_also_of_what_holds_anyway(book: Book, path: Path) -> None:
    book.add(VAULT, peer(1), Address("nas"))
    assert not book.peers_of(VAULT).is_told
    assert "is_told" not in path.read_text()
    book.set_replicas(VAULT, DEFAULT_REPLICAS)
    assert book.peers_of(VAULT).is_told
    book.set_replicas(VAULT, 3)
    assert book.peers_of(VAULT).is_told
    assert "is_told" not in path.read_text(), "it follows, and an older vaultfs can read it"
    book.set_replicas(VAULT, 2, Coding(1, 2))
    assert book.peers_of(VAULT).is_told


@pytest.mark.parametrize("zone", ["Home", "-x", "a b", "x" * 65, "ä", "x\n", "."])
def test_zones_that_cannot_be(book: Book, path: Path, zone: str) -> None:
    with pytest.raises(UsageError, match="cannot be a zone"):
        book.add(VAULT, peer(1), Address("nas"), zone)
    assert not path.exists()


@pytest.mark.parametrize("zone", ["", "home", "0", "a.b_c-d", "x" * 64])
def test_zones_that_can_be(zone: str) -> None:
    require_zone(zone)


def test_bounds(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_PEERS == 200
    monkeypatch.setattr(book_module, "MOST_PEERS", 2)
    monkeypatch.setattr(book_module, "MOST_VAULTS", 1)
    for number in (1, 2):
        book.add(VAULT, peer(number), Address("nas"))
    with pytest.raises(UsageError, match="the most there may be"):
        book.add(VAULT, peer(3), Address("nas"))
    book.add(VAULT, peer(2), Address("elsewhere"))
    with pytest.raises(UsageError, match="peers of 1 vaults"):
        book.add(OTHER, peer(1), Address("nas"))
    assert len(book.load()) == 1


def test_two_writers_lose_nothing(path: Path) -> None:
    """Each reads and writes the whole file, so without the lock most would be lost."""
    identities = [peer(number) for number in range(12)]
    ready = threading.Barrier(len(identities))

    def write(which: PeerId) -> None:
        ready.wait()
        Book(path).add(VAULT, which, Address("nas"))

    threads = [threading.Thread(target=write, args=(which,)) for which in identities]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.id for each in Book(path).peers_of(VAULT).peers} == set(identities)


# --- files that nobody wrote so

Change = Callable[[dict[str, Any]], object]

DAMAGES: list[Change] = [
    lambda file: file.update(more=1),
    lambda file: file.update(format=0),
    lambda file: file.pop("vaults"),
    lambda file: file["vaults"].append(file["vaults"][0]),
    lambda file: file["vaults"][0].update(more=1),
    lambda file: file["vaults"][0].update(vault_id="00"),
    lambda file: file["vaults"][0].update(vault_id=VAULT.hex().upper()),
    lambda file: file["vaults"][0].update(vault_id=VAULT.hex() + "\n"),
    lambda file: file["vaults"][0].update(replicas=0),
    lambda file: file["vaults"][0].update(replicas=MOST_REPLICAS + 1),
    lambda file: file["vaults"][0].update(coding="7/4"),
    lambda file: file["vaults"][0].update(coding=4),
    lambda file: file["vaults"][0]["peers"].append(file["vaults"][0]["peers"][0]),
    lambda file: file["vaults"][0]["peers"].extend(file["vaults"][0]["peers"] * 200),
    lambda file: file["vaults"][0]["peers"][0].update(more=1),
    lambda file: file["vaults"][0]["peers"][0].update(id=format_peer_id(peer(1)).upper()),
    lambda file: file["vaults"][0]["peers"][0].update(id="a" * 62),
    lambda file: file["vaults"][0]["peers"][0].update(host=""),
    lambda file: file["vaults"][0]["peers"][0].update(host="a b"),
    lambda file: file["vaults"][0]["peers"][0].update(host="x" * 254),
    lambda file: file["vaults"][0]["peers"][0].update(port=0),
    lambda file: file["vaults"][0]["peers"][0].update(port=65536),
    lambda file: file["vaults"][0]["peers"][0].update(zone="Home"),
    lambda file: file["vaults"][0]["peers"][0].update(added_ns=-1),
    lambda file: file["vaults"][0]["peers"][0].update(added_ns=1 << 63),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damaged_file(book: Book, path: Path, number: int) -> None:
    book.add(VAULT, peer(1), Address("nas"), "home")
    content = json.loads(path.read_text())
    DAMAGES[number](content)
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    for action in (book.load, lambda: book.add(VAULT, peer(2), Address("nas"))):
        with pytest.raises(IntegrityError, match=r"peers\.json is damaged: .*move it away"):
            action()
    assert path.read_bytes() == before, "a damaged file is not made worse"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}', b'{"format": "1"}'])
def test_no_such_file_at_all(book: Book, path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        book.load()


def test_too_large(book: Book, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book.add(VAULT, peer(1), Address("nas"))
    small = Book(path)
    monkeypatch.setattr(small._file, "_largest_bytes", 100)
    with pytest.raises(IntegrityError, match="more than 100 bytes"):
        small.load()
    path.unlink()
    with pytest.raises(IntegrityError, match="it may have 100"):
        small.add(VAULT, peer(1), Address("nas"))
    assert not path.exists()


def test_of_a_newer_version(book: Book, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 2, "something": "else"}')
    with pytest.raises(FormatTooNewError):
        book.load()


def test_something_else_in_its_place(book: Book, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text('{"format": 1, "vaults": []}')
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="not a regular file"):
        book.load()


# --- who is meant


def test_beginnings_of_ids() -> None:
    page = VaultPeers(VAULT, peers=tuple(KnownPeer(peer(number), Address("nas")) for number in range(3)))
    printed = format_peer_id(peer(1))
    for word in (printed, printed.upper(), printed[:8], printed[:9], printed.replace("-", " "), printed[:20]):
        assert page.peer(word).id == peer(1)
    with pytest.raises(UsageError, match="at least the first 8"):
        page.peer(printed[:7])
    with pytest.raises(UsageError, match="at least the first 8"):
        page.peer("-" * 20)
    with pytest.raises(UsageError, match=f"no peer .* in the list of peers of the vault {VAULT.hex()}"):
        page.peer(format_peer_id(peer(9)))


def test_a_beginning_that_two_have() -> None:
    known = [PeerId(bytes(5) + bytes([number] * 27)) for number in (1, 2)]
    assert len({format_peer_id(each)[:8] for each in known}) == 1
    with pytest.raises(UsageError, match="the beginning of 2 peers' ids"):
        meant_peer(format_peer_id(known[0])[:8], known, "a list")
    assert meant_peer(format_peer_id(known[1])[:17], known, "a list") == known[1]
