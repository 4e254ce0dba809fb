"""A Ceph cluster on loopback: one monitor, three OSDs in files, and radosgw, which speaks S3.

Everything lies below one directory, nothing is installed or kept, and every daemon is a child of this process, in the
foreground, so that ending it ends them all.  Two of three copies acknowledge a write; so one OSD may die at any time.
There is no manager: nothing here needs statistics.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
OSDS: Final = 3
OSD_BYTES: Final = 6 << 30
"""The file of an OSD is sparse."""
ACCESS_KEY: Final = "test"
SECRET_KEY: Final = "very-secret"
PATIENCE_S: Final = 180.0

_CONFIGURATION: Final = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {root}/$cluster.$name.keyring
run dir = {root}
admin socket = {root}/$name.asok
pid file = {root}/$name.pid
log file = {root}/$name.log
crash dir = {root}/crash
osd pool default size = {osds}
osd pool default min size = 2
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0

[mon]
mon data = {root}/mon
mon osd min down reporters = 1
mon osd reporter subtree level = osd
mon data avail crit = 1
mon data avail warn = 1
mon max pg per osd = 1000
auth allow insecure global id reclaim = false

[osd]
osd data = {root}/osd-$id
osd objectstore = bluestore
osd max object name len = 1024
osd heartbeat grace = 6
osd heartbeat interval = 1
osd memory target = 939524096
osd op num shards = 2
bluestore block size = {size}
bluestore fsck on mount = false

[client]
rgw frontends = beast endpoint=127.0.0.1:{rgw}
rgw thread pool size = 32
rgw dns name = localhost
rgw enable usage log = false
rgw num rados handles = 1
"""


def missing_programs() -> list[str]:
    """What is not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Cluster:
    """A cluster that runs, until `stop`.

    Args:
        root: an empty directory, whose path is short: sockets lie in it.

    Attributes:
        endpoint: the URL of radosgw.
        osds: the processes of the OSDs.
    """

    def __init__(self, root: Path) -> None:
        self._root: Final = root
        self._daemons: Final[list[subprocess.Popen[bytes]]] = []
        self.osds: Final[list[subprocess.Popen[bytes]]] = []
        v2, v1, rgw = _free_ports(3)
        self._fsid: Final = str(uuid.uuid4())
        self._monitor: Final = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        self.endpoint: Final = f"http://127.0.0.1:{rgw}"
        self._file: Final = root / "ceph.conf"
        self._file.write_text(
            _CONFIGURATION.format(fsid=self._fsid, root=root, v1=v1, v2=v2, rgw=rgw, osds=OSDS, size=OSD_BYTES)
        )
        (root / "crash").mkdir()

    def start(self) -> None:
        """Have everything up, and a user who may make buckets."""
        self._start_monitor()
        for number in range(OSDS):
            self._start_osd(number)
        self._start_gateway()

    def stop(self) -> None:
        """Kill everything.  What was stored is not wanted any more."""
        for daemon in reversed(self._daemons):
            daemon.kill()
        for daemon in self._daemons:
            daemon.wait(PATIENCE_S)
        self._daemons.clear()

    def kill_osd(self, number: int) -> None:
        """As a power cut: SIGKILL, and it does not come back by itself."""
        self.osds[number].send_signal(signal.SIGKILL)
        self.osds[number].wait(PATIENCE_S)

    def wait_until_down(self, number: int) -> None:
        """Wait until the monitor has noticed that an OSD is dead."""
        deadline = time.monotonic() + PATIENCE_S
        while number in self.up():
            assert time.monotonic() < deadline, f"nobody misses the OSD {number}\n{self.last_words()}"
            time.sleep(0.2)

    def up(self) -> set[int]:
        """The OSDs that the monitor takes for alive."""
        dump = json.loads(self._run("ceph", "osd", "dump", "--format", "json"))
        return {each["osd"] for each in dump["osds"] if each["up"]}

    def last_words(self) -> str:
        """The end of each log, for the message of a test that fails."""
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            for log in sorted(self._root.glob("*.log"))
        )

    def _start_monitor(self) -> None:
        root = self._root
        admin, monitor = root / "ceph.client.admin.keyring", root / "ceph.mon.a.keyring"
        caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        self._run("ceph-authtool", "--create-keyring", str(admin), "--gen-key", "-n", "client.admin", *caps)
        self._run(
            "ceph-authtool", "--create-keyring", str(monitor), "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"
        )
        self._run("ceph-authtool", str(monitor), "--import-keyring", str(admin))
        self._run("monmaptool", "--create", "--addv", "a", self._monitor, "--fsid", self._fsid, str(root / "monmap"))
        (root / "mon").mkdir()
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(root / "monmap"), "--keyring", str(monitor))
        self._daemon("ceph-mon", "-i", "a")
        self._run("ceph", "mon", "stat")

    def _start_osd(self, number: int) -> None:
        place = self._root / f"osd-{number}"
        place.mkdir()
        keyring = self._root / f"ceph.osd.{number}.keyring"
        name, secret = str(uuid.uuid4()), self._run("ceph-authtool", "--gen-print-key").strip()
        secrets = self._root / f"osd-{number}.json"
        secrets.write_text(json.dumps({"cephx_secret": secret}))
        given = self._run("ceph", "osd", "new", name, "-i", str(secrets)).strip()
        assert given == str(number)
        self._run("ceph-authtool", "--create-keyring", str(keyring), "-n", f"osd.{number}", "--add-key", secret)
        self._run("ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", name)
        self.osds.append(self._daemon("ceph-osd", "-i", str(number)))
        self._wait_until_up(number + 1)

    def _start_gateway(self) -> None:
        keyring = self._run("ceph", "auth", "get-or-create", "client.gateway", "mon", "allow rw", "osd", "allow rwx")
        (self._root / "ceph.client.gateway.keyring").write_text(keyring)
        user = ["--uid", "tests", "--display-name", "tests", "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
        self._run("radosgw-admin", "-n", "client.gateway", "user", "create", *user)
        gateway = self._daemon("radosgw", "-n", "client.gateway")
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(self.endpoint):
            assert gateway.poll() is None, f"radosgw ended\n{self.last_words()}"
            assert time.monotonic() < deadline, f"radosgw does not answer\n{self.last_words()}"
            time.sleep(0.1)

    def _wait_until_up(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(self.up()) < count:
            assert all(osd.poll() is None for osd in self.osds), f"an OSD ended\n{self.last_words()}"
            assert time.monotonic() < deadline, f"an OSD does not come up\n{self.last_words()}"
            time.sleep(0.2)

    def _daemon(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        with (self._root / "output").open("ab") as output:
            daemon = subprocess.Popen(
                ["nice", program, "-c", str(self._file), *words, "-f"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._daemons.append(daemon)
        return daemon

    def _run(self, program: str, *words: str) -> str:
        place = [] if program in {"ceph-authtool", "monmaptool"} else ["-c", str(self._file)]
        done = subprocess.run(
            [program, *place, *words], check=False, capture_output=True, text=True, timeout=PATIENCE_S, cwd=self._root
        )
        assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stderr}\n{self.last_words()}"
        return done.stdout


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses; all are held until all are known, so they differ."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
