"""Machines: each has directories of its own, perhaps a network namespace, and runs real ``vaultfs`` processes.

The processes are forked from one that has everything imported, so a command costs a tenth of a second instead of one.
Each writes down, when a pool of connections ends, what its counters said then; `Machine.run` requires zeros.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vaultfs.ids import PeerId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.grants import Access, Grant, Grants
from vaultfs.mesh.identity import Identity, format_peer_id

PASSWORD: Final = "correct-horse-battery"
HOME: Final = "127.0.0.1"
DEADLINE_S: Final = 60.0
"""For anything a test waits for: far below what pytest allows, and far above what it takes."""

Settings = Mapping[str, object]
"""What is changed in a process before it runs: ``module:CONSTANT``, or ``module:Dataclass.field`` for a default."""

HASTY: Final[Settings] = {
    "vaultfs.mesh.connection:ANSWER_S": 2.0,
    "vaultfs.mesh.connection:HELLO_S": 1.0,
    "vaultfs.mesh.dialing:DIAL_S": 1.0,
    "vaultfs.mesh.message_stream:FRAME_S": 1.0,
    "vaultfs.mesh.pool_records:PoolLimits.connect_timeout_s": 1.0,
    "vaultfs.mesh.pool_records:PoolLimits.wait_s": 4.0,
    "vaultfs.mesh.pool_records:PoolLimits.close_timeout_s": 0.5,
    "vaultfs.remotes.retrying:RetryPolicy.tries": 2,
    "vaultfs.remotes.retrying:RetryPolicy.first_wait_s": 0.01,
}
"""Who calls waits seconds, where it would wait a minute: the same code, and tests that end."""

HASTY_PEER: Final[Settings] = {
    "vaultfs.mesh.incoming_object:PROGRESS_S": 1.0,
    "vaultfs.mesh.message_stream:FRAME_S": 1.0,
    "vaultfs.mesh.server:Limits.greeting_s": 1.0,
    "vaultfs.mesh.server:Limits.stranger_s": 1.0,
    "vaultfs.mesh.server:Limits.revocation_s": 0.1,
    "vaultfs.mesh.server:Limits.closing_s": 1.0,
}

_LISTENING: Final = re.compile(r"listening on \S+:(\d+) as ")
_FORKER: Final = Path(__file__).with_name("forker.py")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        words: the command.
        code: its exit code; negative: the signal that killed it.
        out, err: what it printed.
        pools: the counters of its pools after their end.
    """

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    pools: list[dict[str, Any]]

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)

    def require(self, *codes: int) -> Ended:
        """It ended with one of these exit codes."""
        assert self.code in codes, f"{self.words}: exit code {self.code}\n{self.out}\n{self.err}"
        return self


class Forker:
    """Starts processes; any number may run at once.

    Args:
        place: a directory for what they print.
        vault: its password is stretched once, for all of them.
    """

    def __init__(self, place: Path, vault: Path) -> None:
        self._place = place
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, str(_FORKER), str(vault), PASSWORD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        settings: Settings,
        namespace: str | None,
        executable: str | None,
    ) -> Running:
        """Run a command."""
        self._count += 1
        place = self._place / str(self._count)
        order = {
            "words": list(words),
            "environment": dict(environment),
            "out": f"{place}.out",
            "err": f"{place}.err",
            "pools": f"{place}.pools",
            "settings": dict(settings),
            "namespace": namespace,
            "executable": executable,
        }
        return Running(self, tuple(words), place, int(self._ask(order)))

    def wait(self, pid: int) -> int:
        """The exit code of one that has ended."""
        return int(self._ask({"wait": pid}))

    def _ask(self, order: Mapping[str, Any]) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return line.strip()

    def close(self) -> None:
        """End."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._process.stdout.close()


class Running:
    """A process."""

    def __init__(self, forker: Forker, words: tuple[str, ...], place: Path, pid: int) -> None:
        assert pid > 1, "a signal to such a process would go to many"
        self._forker = forker
        self._words = words
        self._place = place
        self._ended: Ended | None = None
        self.pid = pid

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._read(".out")

    @property
    def err(self) -> str:
        """What it has said on standard error so far."""
        return self._read(".err")

    @property
    def has_ended(self) -> bool:
        """Whether somebody has waited for its end."""
        return self._ended is not None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._ended is None
        os.kill(self.pid, number)

    def kill(self) -> None:
        """The power goes; harmless if it has ended."""
        if self._ended is None:
            self.send(signal.SIGKILL)
            self.wait()

    def wait(self, within_s: float = DEADLINE_S) -> Ended:
        """Wait for its end; one that hangs fails the test."""
        if self._ended is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                is_over = bool(select.select([descriptor], [], [], within_s)[0])
            finally:
                os.close(descriptor)
            if not is_over:
                os.kill(self.pid, signal.SIGKILL)
            code = self._forker.wait(self.pid)
            lines = self._read(".pools").splitlines()
            self._ended = Ended(self._words, code, self.out, self.err, [json.loads(line) for line in lines])
            assert is_over, f"{self._words} had not ended after {within_s:.0f} s: {self.err}"
        return self._ended

    def sockets(self) -> int:
        """How many it has open."""
        count = 0
        for entry in os.listdir(f"/proc/{self.pid}/fd"):
            with suppress(FileNotFoundError):
                count += os.readlink(f"/proc/{self.pid}/fd/{entry}").startswith("socket:")
        return count

    def _read(self, suffix: str) -> str:
        try:
            return Path(f"{self._place}{suffix}").read_text(errors="replace")
        except FileNotFoundError:
            return ""


@dataclass
class Machine:
    """One machine.

    Attributes:
        root: its directories lie here.
        forker: starts its processes.
        address: of it, for others.
        namespace: the network it is in; None: that of the tests.
        settings: of all its processes.
        extra: variables of their environment, besides what all have.
        executable: the Python that is started anew for each, without settings; None: they are forked.
    """

    root: Path
    forker: Forker
    address: str = HOME
    namespace: str | None = None
    settings: Settings = field(default_factory=lambda: HASTY)
    extra: dict[str, str] = field(default_factory=dict)
    executable: str | None = None

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for kind in ("config", "data", "state", "cache", "run"):
            (self.root / kind).mkdir(mode=0o700, exist_ok=True)
        self._identity: Identity | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes."""
        kinds = {f"XDG_{kind.upper()}_HOME": str(self.root / kind) for kind in ("config", "data", "state", "cache")}
        return {
            **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "VAULTFS_TEST_RUN"}},
            **kinds,
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "VAULTFS_PASSWORD": PASSWORD,
            **self.extra,
        }

    @property
    def mesh(self) -> Path:
        """Where its identity, its address book and its grants are."""
        return self.root / "config" / "vaultfs" / "mesh"

    @property
    def identity(self) -> Identity:
        """Which peer it is; made when it is first asked for."""
        if self._identity is None:
            path = self.mesh / "identity.pem"
            self.mesh.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._identity = Identity.load(path)
            if self._identity is None:
                self._identity = Identity.new()
                self._identity.save(path)
        return self._identity

    @identity.setter
    def identity(self, identity: Identity) -> None:
        self.mesh.mkdir(mode=0o700, parents=True, exist_ok=True)
        identity.save(self.mesh / "identity.pem")
        self._identity = identity

    @property
    def id(self) -> PeerId:
        """As the protocol has it."""
        return self.identity.peer_id

    @property
    def printed_id(self) -> str:
        """As people write it."""
        return format_peer_id(self.id)

    def start(self, *words: str | Path, settings: Settings | None = None) -> Running:
        """Run a command in the background."""
        changed = {**self.settings, **(settings or {})}
        spoken = [str(word) for word in words]
        return self.forker.start(spoken, self.environment, changed, self.namespace, self.executable)

    def run(self, *words: str | Path, within_s: float = DEADLINE_S, settings: Settings | None = None) -> Ended:
        """Run a command to its end, which has to come; its pools are empty then."""
        ended = self.start(*words, settings=settings).wait(within_s)
        require_empty_pools(ended)
        return ended


class PeerMachine(Machine):
    """A machine that serves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store = self.root / "store"
        self.quota: str | None = None
        self.port = 0
        self.process: Running | None = None
        self._sockets = 0

    @property
    def listens_at(self) -> Address:
        """Where it can be called, from its first start on."""
        assert self.port, "it was never started"
        return Address(self.address, self.port)

    @property
    def is_running(self) -> bool:
        """Whether it serves, as far as is known."""
        return self.process is not None and not self.process.has_ended

    def accept(self, caller: PeerId, access: Access = "write") -> None:
        """Store for somebody."""
        self.mesh.mkdir(mode=0o700, parents=True, exist_ok=True)
        Grants(self.mesh / "grants.json").add(Grant(caller, None, access, None, "", 1))

    def revoke(self, caller: PeerId) -> None:
        """Not any more."""
        Grants(self.mesh / "grants.json").remove(caller, every=True)

    def serve(self) -> None:
        """Start, and wait until it listens."""
        assert not self.is_running
        _ = self.identity
        words: list[str | Path] = ["peer", "serve", "--listen", f"{self.address}:{self.port}", "--store", self.store]
        words += ["--quota", self.quota] if self.quota is not None else []
        process = self.process = self.start(*words)
        try:
            until(lambda: _LISTENING.search(process.out) is not None or _is_zombie(process.pid), "it listens")
            found = _LISTENING.search(process.out)
            assert found, f"the peer did not start: {process.err}"
        except BaseException:
            process.kill()
            raise
        self.port = int(found[1])
        self._sockets = process.sockets()

    def kill(self) -> None:
        """The power goes."""
        assert self.process is not None
        self.process.kill()

    def stop(self) -> None:
        """Go down in order; harmless if it does not run."""
        if self.is_running:
            assert self.process is not None
            self.process.send(signal.SIGTERM)
            self.process.wait().require(0)

    @property
    def connections(self) -> int:
        """How many are open."""
        assert self.process is not None
        return self.process.sockets() - self._sockets

    @property
    def is_receiving(self) -> bool:
        """Whether an object is on its way to it."""
        assert self.process is not None
        place = f"/proc/{self.process.pid}/fd"
        for entry in os.listdir(place):
            with suppress(FileNotFoundError):
                if "/.mesh/partial/" in os.readlink(f"{place}/{entry}"):
                    return True
        return False

    def until_nobody_is_connected(self) -> None:
        """The end of every connection is noticed."""
        until(lambda: self.connections == 0, "no connection is left")


def require_empty_pools(ended: Ended) -> None:
    """Nothing was leaked by a command: each pool that it began has ended, and holds nothing."""
    began = [pool for pool in ended.pools if "began" in pool]
    over = [pool for pool in ended.pools if "began" not in pool]
    assert len(began) == len(over), f"{ended.words}: a pool has not ended: {ended.pools}"
    for pool in over:
        assert pool["wrong"] == [], ended.words
        left = {name: pool["counters"][name] for name in ("open", "opening", "idle", "leases", "waiting")}
        assert set(left.values()) == {0}, f"{ended.words}: {left}"


def until(condition: Any, what: str, within_s: float = DEADLINE_S) -> None:
    """Wait for something that other processes do."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {within_s:.0f} s in vain until {what}"
        time.sleep(0.005)


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@contextmanager
def forking(place: Path, vault: Path) -> Iterator[Forker]:
    """Have a forker."""
    forker = Forker(place, vault)
    try:
        yield forker
    finally:
        forker.close()
