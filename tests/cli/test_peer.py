"""``vaultfs peer`` without a peer that answers: identities, the list of peers, who is accepted, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.cli import peer_list
from vaultfs.errors import ExitCode
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.discovery import Sighting
from vaultfs.mesh.grants import Grants
from vaultfs.mesh.identity import Identity, format_peer_id
from vaultfs.mesh.pairing import Meeting, Pairings, code_key, new_nonce, parse_code

from .conftest import Run, digest, process

OTHER = Identity.of_seed(bytes(32)).peer_id
THIRD = Identity.of_seed(bytes([1]) * 32).peer_id
OTHER_ID = format_peer_id(OTHER)
THIRD_ID = format_peer_id(THIRD)
VAULT_ID = "000102030405060708090a0b0c0d0e0f"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a user who never had anything to do with peers."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "vaultfs" / "mesh"


@pytest.fixture
def own_id(run: Run, config: Path) -> str:
    said = run("peer", "init", bare=True)
    assert (said.code, said.err) == (0, "")
    return said.out.decode().split()[-1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port of this machine where nobody listens, for as long as the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def vault_id_of(vault: Path) -> str:
    return str(json.loads((vault / "vault.json").read_text())["vault_id"])


# --- init, id


def test_init_and_id(run: Run, config: Path) -> None:
    said = run("peer", "init", "--json", bare=True)
    made = json.loads(said.out)
    identity = Identity.load(config / "identity.pem")
    assert identity is not None
    assert made == {"id": format_peer_id(identity.peer_id), "path": str(config / "identity.pem")}
    assert stat.S_IMODE((config / "identity.pem").stat().st_mode) == 0o600
    assert run("peer", "id", bare=True).out.decode() == f"{made['id']}\n"
    assert json.loads(run("peer", "id", "--json", bare=True).out) == {"id": made["id"]}


def test_init_again(run: Run, config: Path, own_id: str) -> None:
    before = digest(config)
    said = run("peer", "init", bare=True)
    assert (said.code, own_id in said.error_line) == (ExitCode.USAGE, True)
    assert digest(config) == before


def test_without_an_identity(run: Run, vault: Path, config: Path) -> None:
    for words in (["id"], ["serve"], ["pair"], ["add", vault, f"{OTHER_ID}@nas"], ["ping", vault]):
        said = run("peer", *words, bare=True)
        assert (said.code, "'vaultfs peer init'" in said.error_line) == (ExitCode.USAGE, True)
    assert not config.exists()


def test_an_identity_that_others_may_read(run: Run, config: Path, own_id: str) -> None:
    (config / "identity.pem").chmod(0o644)
    for words in (["id"], ["init"], ["pair"]):
        said = run("peer", *words, bare=True)
        assert (said.code, "chmod 600" in said.error_line) == (ExitCode.INTEGRITY, True)


# --- accept, revoke, accepted


def test_accepted_and_revoked(run: Run, config: Path) -> None:
    assert run("peer", "accepted", bare=True).out == b"No peer is accepted.\n"
    said = run("peer", "accept", OTHER_ID.upper(), "--quota", "5G", "--label", "laptop", bare=True)
    assert (said.code, said.err) == (0, "")
    assert said.out.decode() == f"The peer {OTHER_ID[:8]} (laptop) may store any vault here, up to 5.00 GiB in all.\n"
    assert run("peer", "accept", OTHER_ID, "--vault", VAULT_ID.upper(), "--read", bare=True).code == 0
    assert run("peer", "accept", THIRD_ID, "--vault", VAULT_ID, bare=True).code == 0
    grants = Grants(config / "grants.json")
    vault_id = VaultId(bytes.fromhex(VAULT_ID))
    found = [grants.lookup(OTHER, VaultId(bytes(16))), grants.lookup(OTHER, vault_id), grants.lookup(THIRD, vault_id)]
    assert [grant and (grant.access, grant.quota_bytes, grant.label) for grant in found] == [
        ("write", 5 << 30, "laptop"),
        ("read", None, ""),
        ("write", None, ""),
    ]
    assert grants.lookup(THIRD, VaultId(bytes(16))) is None

    listed = json.loads(run("peer", "accepted", "--json", bare=True).out)["grants"]
    assert {(each["id"], each["vault_id"], each["may_write"], each["quota_bytes"]) for each in listed} == {
        (OTHER_ID, None, True, 5 << 30),
        (OTHER_ID, VAULT_ID, False, None),
        (THIRD_ID, VAULT_ID, True, None),
    }
    lines = run("peer", "accepted", bare=True).out.decode().splitlines()
    assert len(lines) == 4
    assert any(
        line.startswith(OTHER_ID) and line.split()[1:6] == ["laptop", "any", "store", "5.00", "GiB"] for line in lines
    )

    said = run("peer", "accept", OTHER_ID, bare=True)
    assert "what was said before of 1 single vault counts first there" in said.error_line
    assert run("peer", "accept", OTHER_ID, "--vault", VAULT_ID, "--read", bare=True).err == ""

    said = run("peer", "revoke", OTHER_ID[:8], "--vault", "any", bare=True)
    assert (said.code, b"Revoked 1 grant" in said.out) == (0, True)
    assert grants.lookup(OTHER, VaultId(bytes(16))) is None
    assert grants.lookup(OTHER, vault_id) is not None
    said = run("peer", "revoke", OTHER_ID, "--vault", "any", bare=True)
    assert (said.code, "is not accepted for any" in said.error_line) == (ExitCode.USAGE, True)
    assert run("peer", "revoke", OTHER_ID, "--vault", VAULT_ID, bare=True).code == 0
    assert [grant.peer for grant in grants.all()] == [THIRD]


def test_everything_of_a_peer_is_revoked(run: Run, config: Path) -> None:
    for words in ([], ["--vault", VAULT_ID]):
        assert run("peer", "accept", OTHER_ID, *words, bare=True).code == 0
    assert run("peer", "accept", THIRD_ID, bare=True).code == 0
    assert json.loads(run("peer", "revoke", OTHER_ID, "--json", bare=True).out) == {"id": OTHER_ID, "revoked": 2}
    assert [grant.peer for grant in Grants(config / "grants.json").all()] == [THIRD]
    said = run("peer", "revoke", OTHER_ID, bare=True)
    assert (said.code, "there is no peer" in said.error_line) == (ExitCode.USAGE, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([OTHER_ID[:-1]], "not the id of a peer"),
        ([OTHER_ID[:8]], "not the id of a peer"),
        ([THIRD_ID[:-1] + ("a" if THIRD_ID[-1] != "a" else "b")], "mistyped"),
        ([OTHER_ID, "--vault", VAULT_ID[1:]], "32 hexadecimal digits"),
        ([OTHER_ID, "--vault", "0" * 32], "32 hexadecimal digits"),
        ([OTHER_ID, "--vault", "any"], "32 hexadecimal digits"),
        ([OTHER_ID, "--quota", "much"], "no size"),
        ([OTHER_ID, "--quota", "8192P"], "larger than any disk"),
        ([OTHER_ID, "--label", "x" * 65], "at most 64"),
        ([OTHER_ID, "--label", "\x1b[31m"], "printable"),
    ],
)
def test_what_cannot_be_accepted(run: Run, config: Path, words: list[str], reason: str) -> None:
    said = run("peer", "accept", *words, bare=True)
    assert (said.code, reason in said.error_line) == (ExitCode.USAGE, True)
    assert not config.exists()


def test_oneself_is_not_accepted(run: Run, config: Path, own_id: str) -> None:
    said = run("peer", "accept", own_id, bare=True)
    assert (said.code, "this machine" in said.error_line) == (ExitCode.USAGE, True)
    assert not (config / "grants.json").exists()


def test_a_damaged_list_of_grants(run: Run, config: Path) -> None:
    config.mkdir(parents=True)
    (config / "grants.json").write_text("{}")
    (config / "grants.json").chmod(0o600)
    for words in (["accepted"], ["accept", OTHER_ID], ["revoke", OTHER_ID]):
        said = run("peer", *words, bare=True)
        assert (said.code, "grants.json is damaged" in said.error_line) == (ExitCode.INTEGRITY, True)
    assert (config / "grants.json").read_text() == "{}"


# --- pair


def test_a_code_is_shown(run: Run, config: Path, own_id: str) -> None:
    words = ["--vault", VAULT_ID, "--read", "--quota", "1M", "--label", "laptop", "--minutes", "1440"]
    shown = json.loads(run("peer", "pair", *words, "--json", bare=True).out)
    assert (shown["minutes"], shown["id"]) == (1440, own_id)
    vault_id = VaultId(bytes.fromhex(VAULT_ID))
    peer_id = PeerId(bytes(32))
    meeting = Meeting(OTHER, peer_id, vault_id, new_nonce())
    found = Pairings(config / "pairing.json").redeem(meeting, meeting.caller_proof(code_key(parse_code(shown["code"]))))
    assert found is not None
    assert (found.vault, found.may_write, found.quota_bytes, found.label) == (vault_id, False, 1 << 20, "laptop")

    said = run("peer", "pair", bare=True).out.decode().splitlines()
    assert "for 10 minutes" in said[0]
    assert len(parse_code(said[1])) == 16


@pytest.mark.parametrize("minutes", ["0", "-1", "1441", "soon"])
def test_minutes_that_make_no_sense(run: Run, config: Path, own_id: str, minutes: str) -> None:
    assert run("peer", "pair", f"--minutes={minutes}", bare=True).code == ExitCode.USAGE
    assert not (config / "pairing.json").exists()


# --- add, list, remove: of a peer that is away


def test_a_peer_that_is_away(run: Run, vault: Path, config: Path, own_id: str, silent: int) -> None:
    said = run("peer", "add", vault, f"{OTHER_ID}@127.0.0.1:{silent}", "--zone", "home", bare=True)
    assert said.code == 0
    assert "warning: " in said.error_line
    assert "it is added all the same" in said.error_line
    text = said.out.decode()
    assert f"Added the peer {OTHER_ID[:8]} at 127.0.0.1:{silent}: {OTHER_ID}" in text
    assert f"vaultfs peer accept {own_id} --vault {vault_id_of(vault)}" in text

    (remote,) = json.loads(run("remote", "list", vault, "--json", bare=True).out)["remotes"]
    assert (remote["name"], remote["url"]) == ("mesh", f"mesh://{vault_id_of(vault)}")
    (page,) = json.loads(run("peer", "list", vault, "--json", bare=True).out)["vaults"]
    (peer,) = page.pop("peers")
    assert page == {"vault_id": vault_id_of(vault), "replicas": 2, "coding": None}
    assert peer.pop("added_ns") > 0
    assert peer == {"id": OTHER_ID, "host": "127.0.0.1", "port": silent, "zone": "home"}
    lines = run("peer", "list", bare=True).out.decode().splitlines()
    assert (
        lines[0]
        == f"Vault {vault_id_of(vault)}: there are to be 2 copies of each segment, or shares if its peers have these"
    )
    assert lines[2].split() == [OTHER_ID, f"127.0.0.1:{silent}", "home"]


def test_what_adding_again_changes_is_told(run: Run, vault: Path, own_id: str, silent: int) -> None:
    def added(host: str, *zone: str) -> str:
        said = run("peer", "add", vault, f"{OTHER_ID}@{host}:{silent}", *zone, bare=True)
        assert ("it is added all the same" in said.err) == ("Added" in said.out.decode())
        return said.out.decode().splitlines()[0]

    here, there, title = f"127.0.0.1:{silent}", f"localhost:{silent}", OTHER_ID[:8]
    assert added("127.0.0.1") == f"Added the peer {title} at {here}: {OTHER_ID}"
    assert added("127.0.0.1") == f"The peer {title} at {here} was added before; nothing was changed."
    assert added("localhost") == f"Changed the peer {title} at {there}: its address was {here}"
    assert added("localhost", "--zone", "home") == (
        f"Changed the peer {title} at {there}: its zone is 'home' now, and it had none"
    )
    assert added("127.0.0.1", "--zone", "work") == (
        f"Changed the peer {title} at {here}: its address was {there}; its zone is 'work' now, and was 'home'"
    )
    assert added("127.0.0.1", "--zone", "") == (
        f"Changed the peer {title} at {here}: it has no zone any more, and was 'work'"
    )
    said = run("peer", "add", vault, f"{OTHER_ID}@{here}", "--json", bare=True)
    assert json.loads(said.out)["is_new"] is False


def test_added_again(run: Run, vault: Path, own_id: str, silent: int) -> None:
    """Another address; the zone and the one remote stay."""
    for host in ("127.0.0.1", "localhost"):
        words = ["--zone", "home"] if host == "127.0.0.1" else ["--json"]
        assert run("peer", "add", vault, f"{OTHER_ID}@{host}:{silent}", *words, bare=True).code == 0
    (page,) = json.loads(run("peer", "list", "--json", bare=True).out)["vaults"]
    assert [(peer["host"], peer["zone"]) for peer in page["peers"]] == [("localhost", "home")]
    assert len(json.loads(run("remote", "list", vault, "--json", bare=True).out)["remotes"]) == 1


def test_json_of_a_peer_that_is_away(run: Run, vault: Path, own_id: str, silent: int) -> None:
    said = run("peer", "add", vault, f"{OTHER_ID}@127.0.0.1:{silent}", "--json", bare=True)
    found = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert "cannot be reached" in found.pop("error")
    nothing = dict.fromkeys(["round_trip_s", "may_write", "quota_bytes", "used_bytes", "free_bytes", "vault_bytes"])
    assert found == {
        "vault_id": vault_id_of(vault),
        "id": OTHER_ID,
        "host": "127.0.0.1",
        "port": silent,
        "zone": "",
        "is_reachable": False,
        "is_trusted": False,
        **nothing,
        "exit_code": ExitCode.REMOTE_UNREACHABLE,
        "own_id": own_id,
        "is_new": True,
    }


def test_a_vault_that_is_not_here_yet(run: Run, own_id: str, silent: int) -> None:
    said = run("peer", "add", VAULT_ID, f"{OTHER_ID}@127.0.0.1:{silent}", bare=True)
    assert (said.code, b"mesh replicate" in said.out) == (0, False)
    (page,) = json.loads(run("peer", "list", VAULT_ID, "--json", bare=True).out)["vaults"]
    assert [peer["id"] for peer in page["peers"]] == [OTHER_ID]
    assert run("peer", "remove", VAULT_ID, OTHER_ID, bare=True).code == 0
    assert run("peer", "list", VAULT_ID, bare=True).out == b"There are no peers.\n"


def test_removed(run: Run, vault: Path, own_id: str, silent: int) -> None:
    for each in (OTHER_ID, THIRD_ID):
        assert run("peer", "add", vault, f"{each}@127.0.0.1:{silent}", bare=True).code == 0
    said = run("peer", "remove", vault, OTHER_ID[:8].upper(), bare=True)
    assert (said.code, b"1 peer left" in said.out) == (0, True)
    said = run("peer", "remove", vault, OTHER_ID, bare=True)
    assert (said.code, "there is no peer" in said.error_line) == (ExitCode.USAGE, True)
    gone = json.loads(run("peer", "remove", vault, THIRD_ID, "--json", bare=True).out)
    assert (gone["id"], gone["peers_left"], gone["vault_id"]) == (THIRD_ID, 0, vault_id_of(vault))
    said = run("peer", "ping", vault, bare=True)
    assert (said.code, "has no peers" in said.error_line) == (ExitCode.USAGE, True)


def test_ping_of_peers_that_are_away(run: Run, vault: Path, own_id: str, silent: int) -> None:
    for each in (OTHER_ID, THIRD_ID):
        assert run("peer", "add", vault, f"{each}@127.0.0.1:{silent}", bare=True).code == 0
    said = run("peer", "ping", vault, bare=True)
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    assert [line.split()[0] for line in said.out.decode().splitlines()] == ["PEER", OTHER_ID[:8], THIRD_ID[:8]]
    said = run("peer", "ping", vault, THIRD_ID[:8], "--json", bare=True)
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    assert [peer["id"] for peer in json.loads(said.out)["peers"]] == [THIRD_ID]


@pytest.mark.parametrize(
    ("peer", "words", "code", "reason"),
    [
        (f"{OTHER_ID[:-1]}@nas", [], ExitCode.USAGE, "not the id of a peer"),
        ("OWN@nas", [], ExitCode.USAGE, "the id of this machine"),
        (f"{OTHER_ID}@na s", [], ExitCode.USAGE, "no address"),
        (f"{OTHER_ID}@nas:0", [], ExitCode.USAGE, "no port"),
        (OTHER_ID, [], ExitCode.USAGE, "no terminal"),
        ("nas", [], ExitCode.USAGE, "no terminal"),
        ("nas", ["--code-file", "no-such-file"], ExitCode.USAGE, "No such file"),
        ("nas", ["--code-file", "/dev/null"], ExitCode.USAGE, "nothing in it"),
        ("nas", ["--code-file", "/dev/null", "--code-fd", "0"], ExitCode.USAGE, "exclude each other"),
        ("nas", ["--code-fd", "-1"], ExitCode.USAGE, "no file descriptor"),
        (f"{OTHER_ID}@nas", ["--zone", "My House"], ExitCode.USAGE, "cannot be a zone"),
        (f"{OTHER_ID}@nas", ["--label", "me"], ExitCode.USAGE, "goes with a pairing code"),
    ],
)
def test_what_cannot_be_added(
    run: Run, vault: Path, config: Path, own_id: str, peer: str, words: list[str], code: ExitCode, reason: str
) -> None:
    before = digest(vault)
    said = process("peer", "add", vault, peer.replace("OWN", own_id), *words)
    assert (said.code, reason in said.error_line) == (code, True), said.err
    assert digest(vault) == before
    assert not (config / "peers.json").exists()


def test_the_code_of_a_file_is_a_secret(run: Run, vault: Path, own_id: str, tmp_path: Path) -> None:
    (tmp_path / "code").write_text("ABCD-EFGH-IJKL-MNO1")
    (tmp_path / "code").chmod(0o600)
    said = run("peer", "add", vault, "nas", "--code-file", tmp_path / "code", bare=True)
    assert (said.code, "not a pairing code" in said.error_line, "ABCD" in said.error_line) == (
        ExitCode.USAGE,
        True,
        False,
    )


def test_pairing_with_nobody(run: Run, vault: Path, config: Path, own_id: str, silent: int) -> None:
    """Unlike a peer that is away, nobody is known then who could be added."""
    reading, writing = os.pipe()
    os.write(writing, b"ABCD-EFGH-IJKL-MNOP\n")
    os.close(writing)
    said = run("peer", "add", vault, f"127.0.0.1:{silent}", f"--code-fd={reading}", bare=True)
    assert (said.code, "cannot be reached" in said.error_line) == (ExitCode.REMOTE_UNREACHABLE, True)
    assert not (config / "peers.json").exists()
    assert not (vault / "remotes.json").exists()


def test_somebody_else_there_who_is_no_peer(run: Run, vault: Path, config: Path, own_id: str) -> None:
    """What answers and is no peer was mistyped: it is not added."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP\r\n" * 10)
                while connection.recv(10_000):
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        said = run("peer", "add", vault, f"{OTHER_ID}@127.0.0.1:{server.getsockname()[1]}", bare=True)
        thread.join()
    assert (said.code, "is no peer of vaultfs" in said.error_line) == (ExitCode.ERROR, True)
    assert not (config / "peers.json").exists()


def test_no_vault(run: Run, tmp_path: Path, own_id: str) -> None:
    for words in (
        ["add", tmp_path, f"{OTHER_ID}@nas"],
        ["list", tmp_path],
        ["ping", tmp_path],
        ["remove", tmp_path, OTHER_ID],
    ):
        assert run("peer", *words, bare=True).code == ExitCode.NOT_A_VAULT
    assert run("peer", "list", "0" * 32, bare=True).code == ExitCode.USAGE


def test_a_folder_names_its_vault(
    run: Run, vault: Path, tmp_path: Path, passfile: Path, own_id: str, silent: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert process("mount", vault, folder, "--passfile", passfile).code == 0
    try:
        assert run("peer", "add", folder, f"{OTHER_ID}@127.0.0.1:{silent}", bare=True).code == 0
        assert run("peer", "list", folder, bare=True).out == run("peer", "list", vault, bare=True).out
    finally:
        assert process("umount", folder).code == 0
    assert (vault / "remotes.json").is_file()


def test_another_remote_with_that_name(run: Run, vault: Path, disk: Path, config: Path, own_id: str) -> None:
    assert run("remote", "add", vault, "mesh", disk.as_uri(), bare=True).code == 0
    before = digest(vault)
    said = run("peer", "add", vault, f"{OTHER_ID}@nas", bare=True)
    assert (said.code, "remote 'mesh' that is something else" in said.error_line) == (ExitCode.USAGE, True)
    assert digest(vault) == before
    assert not (config / "peers.json").exists()


def test_a_damaged_list_of_peers(run: Run, vault: Path, config: Path, own_id: str) -> None:
    (config / "peers.json").write_text("{}")
    for words in (["add", vault, f"{OTHER_ID}@nas"], ["list"], ["ping", vault], ["remove", vault, OTHER_ID]):
        said = run("peer", *words, bare=True)
        assert (said.code, "peers.json is damaged" in said.error_line) == (ExitCode.INTEGRITY, True)
    assert not (vault / "remotes.json").exists()


# --- on the local network


def test_who_is_heard(run: Run, vault: Path, own_id: str, silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("peer", "add", vault, f"{OTHER_ID}@127.0.0.1:{silent}", bare=True).code == 0
    seen = [
        Sighting(OTHER, (Address("192.0.2.7"), Address("2001:db8::7"))),
        Sighting(THIRD, (Address("192.0.2.8", 9),)),
    ]
    monkeypatch.setattr(peer_list, "heard", lambda: seen)
    lines = run("peer", "list", "--discover", bare=True).out.decode().splitlines()
    assert "2 peers can be heard" in lines[3]
    assert lines[5].split() == [OTHER_ID, "192.0.2.7:7741", "[2001:db8::7]:7741", "yes"]
    assert lines[6].split() == [THIRD_ID, "192.0.2.8:9", "no"]
    answer = json.loads(run("peer", "list", "--discover", "--json", bare=True).out)
    assert answer["seen"] == [
        {"id": OTHER_ID, "addresses": ["192.0.2.7:7741", "[2001:db8::7]:7741"], "is_known": True},
        {"id": THIRD_ID, "addresses": ["192.0.2.8:9"], "is_known": False},
    ]
    assert "seen" not in json.loads(run("peer", "list", "--json", bare=True).out)
    monkeypatch.setattr(peer_list, "heard", list)
    assert b"0 peers can be heard" in run("peer", "list", "--discover", bare=True).out
