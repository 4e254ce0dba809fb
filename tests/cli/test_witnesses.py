"""``restore`` and ``clone`` ask the peers that hold the vault: old copies and forks are refused, lies hinder nobody."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import blake3
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vaultfs.cli import witnesses
from vaultfs.cli.main import main
from vaultfs.cli.witnesses import WitnessKeys
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, IntegrityError
from vaultfs.ids import KeyEpoch, PeerId, SnapshotSeq, VaultId
from vaultfs.mesh import answers
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.places import book_path, identity_path, vault_state_path
from vaultfs.mesh.standing import StandingFile
from vaultfs.mesh.store import MeshStore
from vaultfs.mesh.witness import Head, make_statement
from vaultfs.mesh.witnessing import Proved
from vaultfs.remotes.locations import parse
from vaultfs.remotes.store import BytesSource
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.remote_layout import RemoteHead, head_key

from .conftest import PASSWORD, Run, make_snapshot, read_file, write_file
from .served_peers import ServedPeer, ServedPeers


def add_snapshot(vault: Path, text: bytes) -> None:
    write_file(vault, "/file", text)
    make_snapshot(vault)


@pytest.fixture(scope="module")
def prepared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with three snapshots: two peers have all of them, and a disk has two."""
    base = tmp_path_factory.mktemp("witnessed")
    shutil.copytree(template, base / "vault")
    (base / "disk").mkdir()
    vault = str(base / "vault")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(base / "config"))
        peers = ServedPeers.of(base)
        try:
            assert main(["remote", "add", vault, "mesh", peers.url]) == 0
            assert main(["remote", "add", vault, "disk", (base / "disk").as_uri()]) == 0
            for text in (b"one", b"two", b"three"):
                add_snapshot(base / "vault", text)
                names = ["mesh"] if text == b"three" else ["mesh", "disk"]
                assert main(["sync", vault, *names, "--quiet"]) == 0
        finally:
            peers.close()
    return base


@pytest.fixture
def peers(prepared: Path, tmp_path: Path, own_config: Path) -> Iterator[ServedPeers]:
    """On a machine that knows the peers, and nothing of the vault."""
    for name in ("vault", "disk", "config", "peer0", "peer1"):
        shutil.copytree(prepared / name, tmp_path / name, dirs_exist_ok=True)
    served = ServedPeers.of(tmp_path)
    yield served
    served.close()


@pytest.fixture
def old(peers: ServedPeers, tmp_path: Path) -> str:
    """The URL of the disk, which is behind."""
    return (tmp_path / "disk").as_uri()


@pytest.fixture
def current(peers: ServedPeers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a disk that has all."""
    (tmp_path / "other").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state of the first machine"))
        sync_to(tmp_path / "vault", tmp_path / "other", "other")
    return (tmp_path / "other").as_uri()


def sync_to(vault: Path, disk: Path, name: str) -> None:
    assert main(["remote", "add", str(vault), name, disk.as_uri()]) == 0
    assert main(["sync", str(vault), name, "--quiet"]) == 0


def head_of(vault: Path, seq: int) -> RemoteHead:
    found = next(each for each in list_manifests(VaultLayout(vault)) if each.seq == seq)
    data = VaultLayout(vault).manifest_path(seq, found.hash).read_bytes()
    return RemoteHead(Manifest.decode(data)[0].device.hex(), seq, found.hash)


def witnessed(head: RemoteHead) -> Head:
    return Head(head.seq, bytes.fromhex(head.hash), bytes.fromhex(head.device))


def stop(*peers: ServedPeer) -> None:
    for peer in peers:
        peer.stop()


# --- an old copy


@pytest.mark.parametrize("words", [["restore"], ["clone"], ["restore", "file"]], ids=" ".join)
def test_an_old_copy_is_refused(
    old: str, peers: ServedPeers, tmp_path: Path, run: Run, prepared: Path, words: list[str]
) -> None:
    verb, *paths = words
    said = run(verb, old, tmp_path / "back", *paths, "--quiet")
    assert said.code == ExitCode.INTEGRITY
    line = said.error_line
    seen, shown = head_of(prepared / "vault", 3), head_of(prepared / "vault", 2)
    assert f"{old} shows snapshot 2 as the newest" in line
    assert any(f"at {peer.address}" in line for peer in peers.peers)
    assert f"and 1 other peer have seen snapshot 3 ({seen.hash[:12]}), made 20" in line
    assert f"take {peers.url}" in line
    assert f"--snapshot {shown.hash[:12]}" in line
    assert not (tmp_path / "back").exists()


def test_who_names_a_snapshot_gets_it(old: str, tmp_path: Path, run: Run) -> None:
    said = run("restore", old, tmp_path / "back", "--snapshot", "2", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert read_file(tmp_path / "back", "/file") == b"two"


def test_a_copy_that_has_all_is_fine(current: str, tmp_path: Path, run: Run) -> None:
    said = run("restore", current, tmp_path / "back", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert read_file(tmp_path / "back", "/file") == b"three"


def test_the_peers_themselves_have_it(peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    said = run("restore", peers.url, tmp_path / "back", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert read_file(tmp_path / "back", "/file") == b"three"


def test_a_copy_that_is_ahead_is_fine(current: str, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    for peer in peers.peers:
        peer.store.heads = [head for head in peer.store.newest_heads(peers.vault_id) if head.seq < 3]
    said = run("restore", current, tmp_path / "back", "--quiet")
    assert (said.code, said.err) == (0, "")


# --- peers that are away, and machines that know none


def test_one_peer_is_enough(old: str, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    stop(peers.peers[0])
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    note, line = said.err.splitlines()
    assert "1 of 2 peers of the vault did not say what they have seen" in note
    assert "has seen snapshot 3" in line
    assert "other peer" not in line


def test_without_any_the_remote_is_believed(old: str, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    stop(*peers.peers)
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert "2 of 2 peers of the vault did not say what they have seen" in said.error_line
    assert "cannot be reached" in said.error_line


@pytest.mark.parametrize("is_other", [False, True])
def test_who_knows_no_peer_loads_no_event_loop(
    old: str, peers: ServedPeers, tmp_path: Path, passfile: Path, is_other: bool
) -> None:
    """Nor one that knows only those of another vault."""
    text = book_path().read_text()
    book_path().unlink()
    if is_other:
        book_path().write_text(text.replace(peers.vault_id.hex(), "ab" * 16))
    words = ["restore", old, str(tmp_path / "back"), "--quiet", "--passfile", str(passfile)]
    program = (
        f"import sys; from vaultfs.cli.main import main; code = main({words!r}); print(code, 'trio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert done.stderr == ""


def test_a_damaged_address_book_hinders_nobody(old: str, tmp_path: Path, run: Run) -> None:
    book_path().write_text("nonsense")
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert "not asked what they have seen" in said.error_line


def test_a_machine_without_identity(old: str, tmp_path: Path, run: Run) -> None:
    identity_path().unlink()
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert "vaultfs peer init" in said.error_line


# --- lies


def test_a_claim_without_a_manifest_counts_for_nothing(
    current: str, peers: ServedPeers, tmp_path: Path, run: Run, prepared: Path
) -> None:
    device = witnessed(head_of(prepared / "vault", 3)).device
    peers.peers[0].store.heads = [Head(9, bytes(32), device)]
    said = run("restore", current, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert "warning" in said.error_line
    assert "says that it has seen snapshot 9 (000000000000), and does not prove it" in said.error_line
    assert f"at {peers.peers[0].address}" in said.error_line


def test_a_manifest_that_is_withheld_counts_for_nothing(
    old: str, peers: ServedPeers, tmp_path: Path, run: Run, prepared: Path
) -> None:
    key = head_key(head_of(prepared / "vault", 3))
    for peer in peers.peers:
        peer.store.withholds = frozenset({key})
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert len(said.err.splitlines()) == 2
    assert said.err.count("does not prove it") == 2


def stolen(peers: ServedPeers, seq: int) -> Head:
    """Somebody who may store at the peers signs a snapshot with a key of his own, and stores it."""
    key = Ed25519PrivateKey.generate()
    device = key.public_key().public_bytes_raw()
    manifest = Manifest(peers.vault_id, device, SnapshotSeq(seq), 10**18, None, (), b"private")
    data = manifest.encode(key.sign(manifest.signed_bytes()))
    head = RemoteHead(device.hex(), seq, blake3.blake3(data).hexdigest())
    store = MeshStore.of_url(parse(peers.url), {})
    store.put(head_key(head), BytesSource(data))
    store.close()
    return witnessed(head)


def test_snapshots_of_strangers_count_for_nothing(current: str, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    stolen(peers, 1000)
    said = run("restore", current, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert said.err.count("signed by no device of the vault") == 2


def test_snapshots_of_strangers_hide_no_true_claim(old: str, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    stolen(peers, 1000)
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert "have seen snapshot 3" in said.error_line


@pytest.mark.parametrize("how", ["another key", "an old answer", "another vault"])
def test_a_statement_that_is_none(
    current: str, peers: ServedPeers, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real = make_statement

    def forged(identity, vault, nonce, time_ns, heads):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        match how:
            case "another key":
                return real(Identity.new(), vault, nonce, time_ns, heads)
            case "an old answer":
                return real(identity, vault, bytes(32), time_ns, heads)
            case _:
                return real(identity, bytes(16), nonce, time_ns, heads)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "make_statement", forged)
    said = run("restore", current, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert "2 of 2 peers of the vault did not say what they have seen" in said.error_line


# --- two histories


@pytest.fixture
def forked(peers: ServedPeers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a disk to which another copy of the vault was saved, which went on from the second snapshot."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state of the second machine"))
        twin = tmp_path / "twin"
        assert (
            main(["restore", (tmp_path / "disk").as_uri(), str(twin), "--snapshot", "2", "--quiet", *secret(tmp_path)])
            == 0
        )
        add_snapshot(twin, b"another three")
        (tmp_path / "fork").mkdir()
        sync_to(twin, tmp_path / "fork", "fork")
    return (tmp_path / "fork").as_uri()


def secret(tmp_path: Path) -> list[str]:
    file = tmp_path / "secret"
    file.write_text(PASSWORD)
    file.chmod(0o600)
    return ["--passfile", str(file)]


def test_a_fork_is_refused(forked: str, tmp_path: Path, run: Run, prepared: Path) -> None:
    said = run("clone", forked, tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    other = head_of(prepared / "vault", 3)
    assert f"have seen another snapshot 3 ({other.hash[:12]})" in said.error_line
    assert "two histories" in said.error_line
    assert not (tmp_path / "back").exists()


def test_a_fork_that_was_accepted_is_none(
    forked: str, peers: ServedPeers, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person has put both side by side on the peers; then what is behind there is still found."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state of the second machine"))
        assert main(["remote", "add", str(tmp_path / "twin"), "mesh", peers.url]) == 0
        assert main(["sync", str(tmp_path / "twin"), "mesh", "--fork", "--quiet"]) == 0
    said = run("restore", forked, tmp_path / "back", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert read_file(tmp_path / "back", "/file") == b"another three"
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state of the second machine"))
        for text in (b"four", b"five"):
            add_snapshot(tmp_path / "twin", text)
        assert main(["sync", str(tmp_path / "twin"), "mesh", "--quiet"]) == 0
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "third"))
    said = run("restore", forked, tmp_path / "again", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert "have seen snapshot 5" in said.error_line


# --- new keys


@pytest.fixture
def rotated(peers: ServedPeers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vault whose key was changed, as the peers have it; the disk has the old header and snapshots."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state of the first machine"))
    vault = tmp_path / "vault"
    assert main(["key", "rotate", str(vault), *secret(tmp_path)]) == 0
    add_snapshot(vault, b"four")
    return vault


def test_a_copy_from_before_a_new_key_is_refused(
    old: str, rotated: Path, peers: ServedPeers, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sync", str(rotated), "mesh", "--quiet"]) == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "third"))
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert "have seen snapshot 4" in said.error_line


def test_what_the_old_password_does_not_open_is_a_warning(
    old: str, rotated: Path, peers: ServedPeers, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_text("another password")
    (tmp_path / "new").chmod(0o600)
    assert main(["passwd", str(rotated), *secret(tmp_path), "--new-passfile", str(tmp_path / "new")]) == 0
    assert main(["sync", str(rotated), "mesh", "--quiet"]) == 0
    for peer in peers.peers:  # which have never seen the third
        peer.store.heads = [head for head in peer.store.newest_heads(peers.vault_id) if head.seq != 3]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "third"))
    said = run("restore", old, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert said.err.count("says that it has seen snapshot 4") == 2
    assert said.err.count("signed by no device of the vault that this password knows") == 2


# --- what is remembered


def test_a_peer_that_has_forgotten(current: str, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    assert run("restore", current, tmp_path / "back", "--quiet").code == 0
    file = StandingFile(vault_state_path(peers.vault_id))
    assert {each.newest_seq for each in file.load().peers.values()} == {3}
    peers.peers[1].store.heads = []
    said = run("restore", current, tmp_path / "again", "--quiet", "--snapshot", "3")
    assert said.code == 0  # nobody was asked
    said = run("restore", current, tmp_path / "third", "--quiet")
    assert said.code == 0
    lines = [line for line in said.err.splitlines() if "old backup" in line]
    assert len(lines) == 1
    assert str(peers.peers[1].address) in lines[0]
    assert "has seen snapshot 3 once, and now says that it has seen none" in lines[0]
    assert {each.newest_seq for each in file.load().peers.values()} == {3}


# --- the keys that prove


@pytest.fixture(scope="module")
def keys() -> tuple[VaultHeader, WitnessKeys, Keyring]:
    secret = Secret.password(PASSWORD.encode())
    header, keyring = VaultHeader.create(secret, label="first", kdf=KdfParameters.weakest())
    return header, WitnessKeys(keyring, secret), keyring


def edited(header: VaultHeader, memory_kib: int) -> bytes:
    """A header that somebody wrote who has no key."""
    (slot,) = header.key_slots
    assert slot.kdf is not None
    costly = replace(slot, kdf=replace(slot.kdf, memory_kib=memory_kib))
    return replace(header, epoch=KeyEpoch(2), key_slots=(costly,)).encode()


def test_a_header_of_another_vault_teaches_nothing(keys: tuple[VaultHeader, WitnessKeys, Keyring]) -> None:
    """Though the same password opens it."""
    _, known, _ = keys
    before = known.devices()
    other, _ = VaultHeader.create(Secret.password(PASSWORD.encode()), label="other", kdf=KdfParameters.weakest())
    with pytest.raises(IntegrityError, match="of another vault"):
        known.learn(other.encode())
    assert known.devices() == before


def test_a_header_that_is_no_newer_teaches_nothing(keys: tuple[VaultHeader, WitnessKeys, Keyring]) -> None:
    """So that no password is stretched for it."""
    header, known, _ = keys
    with pytest.raises(IntegrityError, match="no newer"):
        known.learn(header.encode())


def test_a_header_that_takes_too_much_memory(
    keys: tuple[VaultHeader, WitnessKeys, Keyring], monkeypatch: pytest.MonkeyPatch
) -> None:
    header, known, _ = keys

    def derive(*_: object) -> bytes:
        raise AssertionError("it was stretched")

    monkeypatch.setattr(KdfParameters, "derive", derive)
    with pytest.raises(IntegrityError, match="more memory"):
        known.learn(edited(header, (1 << 20) + 1))
    with pytest.raises(AssertionError, match="it was stretched"):
        known.learn(edited(header, 1 << 20))


def test_a_manifest_that_only_says_that_a_device_signed_it(keys: tuple[VaultHeader, WitnessKeys, Keyring]) -> None:
    _, known, keyring = keys
    (device,) = known.devices()
    manifest = Manifest(keyring.vault_id, device, SnapshotSeq(9), 1, None, (), b"private")
    data = manifest.encode(Ed25519PrivateKey.generate().sign(manifest.signed_bytes()))
    with pytest.raises(IntegrityError, match="signature is wrong"):
        known.check(Head(9, blake3.blake3(data).digest(), device), data)
    with pytest.raises(IntegrityError, match="no device of the vault"):
        known.check(Head(9, blake3.blake3(data).digest(), bytes(32)), data)


def test_peers_are_not_told_to_be_better_than_themselves() -> None:
    peer, vault_id = PeerId(bytes(32)), VaultId(bytes(range(16)))
    url = f"mesh://{vault_id.hex()}"
    proved = [Proved(Head(3, bytes(32), bytes(32)), (peer,), 0)]
    shown = RemoteHead("ab" * 32, 2, "cd" * 32)
    text = str(witnesses._refusal(url, shown, vault_id, {peer: "peer one"}, proved))
    assert "ask again when more peers answer" in text
    assert "take mesh://" not in text
