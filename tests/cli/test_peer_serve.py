"""``vaultfs peer serve`` as a process, and two machines that come to know each other through it."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from vaultfs.cli import peer_add, peer_daemon
from vaultfs.cli.peer_daemon import take_confirmations
from vaultfs.cli.peer_serve import tell_store
from vaultfs.cli.service_notice import notify
from vaultfs.errors import ExitCode, IntegrityError, ObjectMissingError, RemoteError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.confirmations import Confirmations, Confirmed
from vaultfs.mesh.grants import Grant, Grants
from vaultfs.mesh.identity import Identity, format_peer_id
from vaultfs.mesh.replica_record import VaultRecord
from vaultfs.mesh.replica_vault import remembered_devices
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import open_listeners
from vaultfs.mesh.witness import Head

from .conftest import Run, Said, command

PATIENCE_S = 30


@dataclass
class Machine:
    """A user of another machine: directories of his own."""

    base: Path
    _run: Run

    @property
    def environment(self) -> dict[str, str]:
        return {f"XDG_{name.upper()}_HOME": str(self.base / name) for name in ("config", "data", "state")}

    @property
    def config(self) -> Path:
        return self.base / "config" / "vaultfs" / "mesh"

    def run(self, *words: str | Path) -> Said:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return self._run(*words, bare=True)

    def init(self) -> str:
        return str(json.loads(self.run("peer", "init", "--json").out)["id"])


@dataclass
class Daemon:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    lines: list[dict[str, object]]

    @property
    def port(self) -> object:
        return self.lines[0]["port"]

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, bytes]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


def started(machine: Machine, *words: str | Path, listen: Sequence[str] = ("127.0.0.1:0",), **more: str) -> Daemon:
    options = [word for address in listen for word in ("--listen", address)]
    process = subprocess.Popen(
        command("peer", "serve", "--json", *options, *words),
        env={**os.environ, **machine.environment, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in listen]
    if not all(lines):
        _, err = process.communicate(timeout=PATIENCE_S)
        raise AssertionError(err.decode())
    return Daemon(process, [json.loads(line) for line in lines])


@pytest.fixture
def machine(tmp_path: Path, run: Run) -> Machine:
    return Machine(tmp_path / "nas", run)


@pytest.fixture
def laptop(tmp_path: Path, run: Run) -> Machine:
    machine = Machine(tmp_path / "laptop", run)
    machine.init()
    return machine


@pytest.fixture
def nas(machine: Machine) -> Iterator[tuple[Machine, Daemon]]:
    """A machine that serves."""
    machine.init()
    daemon = started(machine, "--quota", "1G")
    yield machine, daemon
    if daemon.process.poll() is None:
        code, err = daemon.end()
        assert (code, b"Traceback" in err) == (0, False), err.decode()
    assert daemon.process.stdout is not None
    daemon.process.stdout.close()


def own_id(machine: Machine) -> str:
    return machine.run("peer", "id").out.decode().strip()


def vault_id_of(vault: Path) -> str:
    return str(json.loads((vault / "vault.json").read_text())["vault_id"])


def pings(machine: Machine, vault: Path | str, *words: str) -> tuple[int, list[dict[str, object]]]:
    said = machine.run("peer", "ping", vault, *words, "--json")
    assert said.out, said.err
    return said.code, json.loads(said.out)["peers"]


# --- two machines


def test_with_ids(nas: tuple[Machine, Daemon], laptop: Machine, vault: Path) -> None:
    """Not trusted at first, then for another vault only, then trusted, and revoked again."""
    machine, daemon = nas
    said = laptop.run("peer", "add", vault, f"{own_id(machine)}@127.0.0.1:{daemon.port}")
    assert (said.code, said.err) == (0, "")
    (words,) = [line for line in said.out.decode().splitlines() if "peer accept" in line]
    assert words.strip() == f"vaultfs peer accept {own_id(laptop)} --vault {vault_id_of(vault)}"
    code, (peer,) = pings(laptop, vault)
    assert (code, peer["is_reachable"], peer["is_trusted"]) == (ExitCode.REMOTE_REFUSED, True, False)
    said = laptop.run("peer", "ping", vault)
    assert (said.code, b"does not know this machine" in said.out) == (ExitCode.REMOTE_REFUSED, True)
    assert own_id(laptop) in said.error_line

    assert machine.run("peer", "accept", own_id(laptop), "--vault", "f" * 32).code == 0
    assert pings(laptop, vault)[0] == ExitCode.REMOTE_REFUSED
    assert machine.run(*words.split()[1:], "--quota", "64M").code == 0
    code, (peer,) = pings(laptop, vault)
    assert (code, peer["is_trusted"], peer["may_write"], peer["quota_bytes"]) == (0, True, True, 64 << 20)
    assert isinstance(peer["round_trip_s"], float)
    assert (0 < peer["round_trip_s"] < PATIENCE_S, peer["used_bytes"], peer["error"]) == (True, 0, None)
    said = laptop.run("peer", "ping", vault)
    assert said.out.decode().splitlines()[1].split()[-4:] == ["ms", "64.0", "MiB", "ready"]

    assert machine.run("peer", "accept", own_id(laptop), "--vault", vault_id_of(vault), "--read").code == 0
    assert b"read only" in laptop.run("peer", "ping", vault).out
    said = laptop.run("peer", "add", vault, f"{own_id(machine)}@127.0.0.1:{daemon.port}")
    assert b"may read there, but store nothing" in said.out
    assert machine.run("peer", "revoke", own_id(laptop)).code == 0
    assert pings(laptop, vault)[0] == ExitCode.REMOTE_REFUSED


def test_with_a_code(nas: tuple[Machine, Daemon], laptop: Machine, vault: Path, tmp_path: Path) -> None:
    machine, daemon = nas
    code = json.loads(machine.run("peer", "pair", "--quota", "5M", "--json").out)["code"]
    (tmp_path / "code").write_text(f"{code.lower()}\n")
    (tmp_path / "code").chmod(0o600)
    words = ("peer", "add", vault, f"127.0.0.1:{daemon.port}", "--code-file", tmp_path / "code")
    said = laptop.run(*words, "--label", "my laptop", "--zone", "home", "--json")
    found = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert (found["id"], found["is_trusted"], found["zone"]) == (own_id(machine), True, "home")
    assert (found["own_id"], found["vault_id"]) == (own_id(laptop), vault_id_of(vault))
    (grant,) = json.loads(machine.run("peer", "accepted", "--json").out)["grants"]
    assert grant.pop("added_ns") > 0
    assert grant == {
        "id": own_id(laptop),
        "label": "my laptop",
        "vault_id": vault_id_of(vault),
        "may_write": True,
        "quota_bytes": 5 << 20,
    }
    assert pings(laptop, vault)[0] == 0
    (remote,) = json.loads(laptop.run("remote", "list", vault, "--json").out)["remotes"]
    assert remote["url"] == f"mesh://{vault_id_of(vault)}"

    said = laptop.run(*words)
    assert (said.code, "no such pairing code" in said.error_line) == (ExitCode.REMOTE_REFUSED, True)


def test_a_wrong_code(nas: tuple[Machine, Daemon], laptop: Machine, vault: Path, tmp_path: Path) -> None:
    """Nothing is added on either side, and the right one counts still; an id that was given has to fit too."""
    machine, daemon = nas
    code = json.loads(machine.run("peer", "pair", "--vault", vault_id_of(vault), "--json").out)["code"]
    file = tmp_path / "code"
    file.touch(mode=0o600)
    stranger = format_peer_id(Identity.new().peer_id)
    for text, where, expected in (
        ("ABCD-EFGH-IJKL-MNOP", vault, ExitCode.REMOTE_REFUSED),
        (code, "f" * 32, ExitCode.REMOTE_REFUSED),
        (code, f"{stranger}@", ExitCode.INTEGRITY),
    ):
        file.write_text(text)
        prefix = where if isinstance(where, str) and where.endswith("@") else ""
        meant = vault if prefix else where
        said = laptop.run("peer", "add", meant, f"{prefix}127.0.0.1:{daemon.port}", "--code-file", file)
        assert (said.code, text in said.error_line) == (expected, False)
    assert not (laptop.config / "peers.json").exists()
    assert not (vault / "remotes.json").exists()
    assert machine.run("peer", "accepted").out == b"No peer is accepted.\n"
    assert laptop.run("peer", "add", vault, f"{own_id(machine)}@127.0.0.1:{daemon.port}", "--code-file", file).code == 0


def test_a_code_is_not_used_up_in_vain(
    nas: tuple[Machine, Daemon], laptop: Machine, vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is shown all is checked that could keep the peer from being added; after it, it is written down."""
    machine, daemon = nas
    file = tmp_path / "code"
    file.touch(mode=0o600)
    file.write_text(json.loads(machine.run("peer", "pair", "--json").out)["code"])
    words = ("peer", "add", vault, f"127.0.0.1:{daemon.port}", "--code-file", file)
    assert laptop.run(*words, "--zone", "My House").code == ExitCode.USAGE
    assert laptop.run(*words, "--label", "\x07").code == ExitCode.USAGE
    book = laptop.config / "peers.json"
    book.write_text("{}")
    assert laptop.run(*words).code == ExitCode.INTEGRITY
    book.unlink()
    assert machine.run("peer", "accepted").out == b"No peer is accepted.\n"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(peer_add, "visited_all", interrupted)
    assert laptop.run(*words).code == ExitCode.SIGINT
    assert own_id(machine) in book.read_text()


def test_another_identity_answers(nas: tuple[Machine, Daemon], laptop: Machine, vault: Path) -> None:
    machine, daemon = nas
    stranger = format_peer_id(Identity.new().peer_id)
    said = laptop.run("peer", "add", vault, f"{stranger}@127.0.0.1:{daemon.port}")
    assert (said.code, own_id(machine)[:8] in said.error_line) == (ExitCode.INTEGRITY, True)
    assert not (laptop.config / "peers.json").exists()
    assert not (vault / "remotes.json").exists()


def test_one_is_well_and_another_is_not(nas: tuple[Machine, Daemon], laptop: Machine) -> None:
    machine, daemon = nas
    vault_id = "f" * 32
    assert machine.run("peer", "accept", own_id(laptop)).code == 0
    stranger = format_peer_id(Identity.new().peer_id)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        for who, port in ((stranger, silent.getsockname()[1]), (own_id(machine), daemon.port)):
            assert laptop.run("peer", "add", vault_id, f"{who}@127.0.0.1:{port}").code == 0
        code, found = pings(laptop, vault_id)
        assert code == ExitCode.PARTIAL
        assert [(each["id"], each["exit_code"]) for each in found] == [
            (stranger, ExitCode.REMOTE_UNREACHABLE),
            (own_id(machine), 0),
        ]
        assert pings(laptop, vault_id, own_id(machine)[:8])[0] == 0


# --- the daemon itself


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_in_order(machine: Machine, tmp_path: Path, number: signal.Signals) -> None:
    """And tells systemd, which takes 0 for success.  The store is free then."""
    own = machine.init()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE_S)
        systemd.bind(str(tmp_path / "notify"))
        daemon = started(
            machine,
            *("--store", tmp_path / "store"),
            listen=["127.0.0.1:0", "[::1]:0"],
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        assert systemd.recv(100) == b"READY=1"
        assert [line["host"] for line in daemon.lines] == ["127.0.0.1", "::1"]
        assert [line["id"] for line in daemon.lines] == [own, own]
        assert daemon.end(number) == (0, f"vaultfs: {number.name}: saying goodbye\n".encode())
        assert systemd.recv(100) == b"STOPPING=1"
    ReplicaStore.open(tmp_path / "store", None).close()


def test_plain_lines(machine: Machine) -> None:
    own = machine.init()
    process = subprocess.Popen(
        command("peer", "serve", "--listen", "127.0.0.1:0"),
        env={**os.environ, **machine.environment},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    process.terminate()
    assert process.communicate(timeout=PATIENCE_S)[0] == b""
    host, port, printed = line.removeprefix("listening on ").replace(" as ", ":").strip().split(":")
    assert (line.startswith("listening on "), host, int(port) > 0, printed) == (True, "127.0.0.1", True, own)
    assert (machine.base / "data" / "vaultfs" / "peer").is_dir()


def test_one_server_for_a_store(nas: tuple[Machine, Daemon]) -> None:
    machine, _ = nas
    said = machine.run("peer", "serve", "--listen", "127.0.0.1:0")
    assert (said.code, "stop it first" in said.error_line) == (ExitCode.LOCKED, True)


def test_a_port_that_is_taken(nas: tuple[Machine, Daemon], tmp_path: Path) -> None:
    machine, daemon = nas
    said = machine.run("peer", "serve", "--store", tmp_path / "other", "--listen", f"127.0.0.1:{daemon.port}")
    assert (said.code, "cannot listen on 127.0.0.1" in said.error_line) == (ExitCode.USAGE, True)


def test_a_disk_that_is_not_mounted(machine: Machine, tmp_path: Path) -> None:
    """Nothing is made in the place where it would be."""
    machine.init()
    said = machine.run("peer", "serve", "--store", tmp_path / "disk" / "peer", "--listen", "127.0.0.1:0")
    assert (said.code, "No such file" in said.error_line) == (ExitCode.ERROR, True)
    assert not (tmp_path / "disk").exists()


async def test_everywhere_without_ipv6(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel without IPv6 is no reason not to serve; without IPv4 nothing works, and it is told."""
    real = open_listeners

    async def no_ipv6(addresses: Sequence[Address]) -> object:
        hosts = ["fd00::1:2" if address.host == "::" else "127.0.0.1" for address in addresses]
        return await real([Address(host, 0) for host in hosts])

    monkeypatch.setattr(peer_daemon, "open_listeners", no_ipv6)
    (listener,) = await peer_daemon._listeners([])
    assert peer_daemon._address_of(listener).host == "127.0.0.1"
    assert "warning: cannot listen on [fd00::1:2]" in capsys.readouterr().err
    await listener.aclose()


# --- confirmed devices


VAULT, DEVICE = VaultId(bytes(range(16))), bytes(range(32))


class Store:
    """Remembers what was confirmed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.confirmed: list[tuple[VaultId, bytes]] = []

    def confirm_device(self, vault: VaultId, device: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.confirmed.append((vault, device))


def test_a_device_is_confirmed(machine: Machine) -> None:
    path = machine.config / "confirmed.json"
    said = machine.run("peer", "confirm-device", VAULT.hex(), DEVICE.hex().upper(), "--json")
    assert json.loads(said.out) == {"vault_id": VAULT.hex(), "device": DEVICE.hex(), "is_seen": False}
    assert Confirmations(path).waiting() == [Confirmed(VAULT, DEVICE)]
    store = Store(RemoteError("the disk failed"))
    with pytest.raises(RemoteError):
        take_confirmations(Confirmations(path), store)  # type: ignore[arg-type]
    assert Confirmations(path).waiting() == [Confirmed(VAULT, DEVICE)], "it is tried again"
    store = Store()
    for _ in range(2):
        take_confirmations(Confirmations(path), store)  # type: ignore[arg-type]
    assert store.confirmed == [(VAULT, DEVICE)]
    assert not path.exists()


def test_of_a_device_that_never_stored_a_snapshot_a_note_tells(machine: Machine) -> None:
    said = machine.run("peer", "confirm-device", VAULT.hex(), DEVICE.hex())
    assert (said.code, "no snapshot of that device is known here" in said.error_line) == (0, True)
    root = machine.base / "data" / "vaultfs" / "peer"
    record = VaultRecord()
    record.remember(Head(1, bytes(32), DEVICE), 1)
    path = root / VAULT.hex() / ".mesh" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(record.encode())
    assert remembered_devices(root, VAULT) == {DEVICE}
    said = machine.run("peer", "confirm-device", VAULT.hex(), DEVICE.hex())
    assert (said.code, said.err) == (0, "")
    path.write_text("damaged")
    assert remembered_devices(root, VAULT) == frozenset()


def test_the_help_says_that_the_store_is_a_directory(machine: Machine) -> None:
    said = machine.run("peer", "serve", "--help").out.decode()
    assert "--store DIR " in said
    assert "--code-file FILE" in machine.run("peer", "add", "--help").out.decode()


def test_where_and_how_much_is_stored_is_told(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)

    def told(quota_bytes: int | None) -> list[str]:
        tell_store(tmp_path / "store", quota_bytes)
        return capsysbinary.readouterr().err.decode().splitlines()

    storing, accepted = told(None)
    assert storing == f"vaultfs: storing in {tmp_path}/store, as much as the disk has"
    assert accepted == "vaultfs: nobody is accepted yet: run 'vaultfs peer pair' or 'vaultfs peer accept ID' here"
    grants = Grants(machine.config / "grants.json")
    grants.add(Grant(PeerId(bytes(32)), None, "write", None, "", 0))
    grants.add(Grant(PeerId(bytes(32)), VAULT, "write", None, "", 0))
    storing, accepted = told(1 << 30)
    assert storing.endswith(", 1.00 GiB at most")
    assert accepted == "vaultfs: 1 peer accepted; 'vaultfs peer accepted' shows who"
    (machine.config / "grants.json").write_text("damaged")
    assert "warning: " in told(None)[1]


def test_a_device_of_a_vault_that_is_not_here(machine: Machine) -> None:
    path = machine.config / "confirmed.json"
    assert machine.run("peer", "confirm-device", VAULT.hex(), DEVICE.hex()).code == 0
    take_confirmations(Confirmations(path), Store(ObjectMissingError("nothing was stored")))  # type: ignore[arg-type]
    assert not path.exists()
    path.write_text("{}")
    with pytest.raises(IntegrityError):
        take_confirmations(Confirmations(path), Store())  # type: ignore[arg-type]


@pytest.mark.parametrize(("vault_id", "device"), [("f" * 31, "0" * 64), ("f" * 32, "0" * 63), ("f" * 32, "x" * 64)])
def test_what_cannot_be_confirmed(machine: Machine, vault_id: str, device: str) -> None:
    assert machine.run("peer", "confirm-device", vault_id, device).code == ExitCode.USAGE
    assert not machine.config.exists()


def test_the_server_takes_what_was_confirmed(machine: Machine) -> None:
    """At the latest when it is started."""
    machine.init()
    assert machine.run("peer", "confirm-device", VAULT.hex(), DEVICE.hex()).code == 0
    daemon = started(machine)
    assert daemon.process.stderr is not None
    line = daemon.process.stderr.readline().decode()
    assert f"the device {DEVICE.hex()} was not confirmed" in line, "there is no such vault here"
    assert daemon.end()[0] == 0
    assert not (machine.config / "confirmed.json").exists()


# --- telling systemd


def test_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    abstract = f"vaultfs-test-{os.getpid()}"
    for written, bound in ((str(tmp_path / "notify"), str(tmp_path / "notify")), (f"@{abstract}", f"\0{abstract}")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(bound)
            monkeypatch.setenv("NOTIFY_SOCKET", written)
            notify("READY=1")
            systemd.setblocking(False)
            assert systemd.recv(100) == b"READY=1"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert "cannot be told READY=1" in capsys.readouterr().err


def test_the_code_is_asked_for_on_the_terminal(nas: tuple[Machine, Daemon], laptop: Machine, vault: Path) -> None:
    machine, daemon = nas
    code = json.loads(machine.run("peer", "pair", "--json").out)["code"]
    environment = {**os.environ, **laptop.environment}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, command("peer", "add", vault, f"127.0.0.1:{daemon.port}"), environment)
    said = b""
    while b": " not in said:
        said += os.read(terminal, 1000)
    assert said == b"The code that 'vaultfs peer pair' shows on 127.0.0.1: "
    os.write(terminal, code.lower().replace("-", " ").encode() + b"\n")
    while True:
        try:
            said += os.read(terminal, 1000)
        except OSError:
            break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said
    assert b"It knows this machine, and has room for" in said


def test_large_blocks_of_memory_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each thread that has checked a manifest keeps room for one."""
    from vaultfs.cli.peer_daemon import LARGEST_KEPT_BLOCK_BYTES, give_back_large_blocks

    called: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, what: int, value: int) -> int:
            called.append((what, value))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda _name: Library())
    give_back_large_blocks()
    assert called == [(-3, LARGEST_KEPT_BLOCK_BYTES)]
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())
    give_back_large_blocks()  # another C library


def test_the_daemon_gives_them_back_from_its_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vaultfs.cli import peer_daemon
    from vaultfs.errors import VaultLockedError
    from vaultfs.mesh.identity import Identity

    calls: list[str] = []

    def refuse(*_: object) -> None:
        calls.append("open")
        raise VaultLockedError("taken")

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(peer_daemon, "give_back_large_blocks", lambda: calls.append("give back"))
    monkeypatch.setattr("vaultfs.cli.peer_daemon.ReplicaStore.open", refuse)
    with pytest.raises(VaultLockedError):
        peer_daemon.run_daemon(Identity.new(), tmp_path / "store", None, [], announce=False, json=False)
    assert calls == ["give back", "open"]
