"""``vaultfs remote login`` as a real process; a person with a browser, the services and the drives are played."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from remotes.drives.accounts import CLIENT_ID, CLIENT_SECRET, Accounts, come_back
from remotes.drives.logged_in import grow_older, known, log_in
from remotes.drives.town import NAMES, Town, living
from remotes.drives.web import Request, Response

from vaultfs.cli.user_seal import user_seal
from vaultfs.errors import ExitCode
from vaultfs.remotes.tokens import LoginFile

from .conftest import PASSWORD, Run, Said, command, make_snapshot, process, read_file, write_file

OWN_VARIABLES = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "VAULTFS_CLIENT_ID", "VAULTFS_CLIENT_SECRET"}


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with living(tmp_path_factory.mktemp("town")) as town:
        yield town


@pytest.fixture
def town(city: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    """The fakes; processes that are started now live among them, and so do requests of this one."""
    city.forget()
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name in OWN_VARIABLES:
            monkeypatch.delenv(name)
    for name, value in city.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return city


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def words_for(name: str, tmp_path: Path) -> list[str]:
    """What is given to ``login`` for a service."""
    words = [name, "--client-id", CLIENT_ID, "--no-browser"]
    if name == "gdrive":
        (tmp_path / "client-secret").write_text(CLIENT_SECRET + "\n")
        (tmp_path / "client-secret").chmod(0o600)
        words += ["--client-secret-file", str(tmp_path / "client-secret")]
    if name == "dropbox":
        words += ["--port", str(free_port())]
    return words


class Waiting:
    """A login that waits for its person."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            command("remote", "login", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self._told: list[bytes] = []
        while not self._told or b"waiting" not in self._told[-1]:
            line = self.process.stderr.readline()
            assert line, f"it ended: {self._told}"
            self._told.append(line)
        (address,) = [line for line in self._told if b"https://" in line]
        self.address = address.decode().split(": ", 1)[1].strip()

    def end(self) -> Said:
        """What it says in the end."""
        out, err = self.process.communicate(timeout=60)
        return Said(self.process.returncode, out, err.decode())


@pytest.fixture(params=NAMES)
def accounts(request: pytest.FixtureRequest, town: Town) -> Accounts:
    return town.accounts[request.param]


@pytest.fixture
def microsoft(town: Town) -> Accounts:
    """One of them, for what is the same with all: the one that changes its refresh tokens."""
    town.accounts["onedrive"].is_rotating = True
    return town.accounts["onedrive"]


def login_file(name: str, account: str = "default") -> LoginFile:
    return LoginFile(name, account, user_seal)


def everything(tmp_path: Path) -> bytes:
    """All bytes of all files that are kept."""
    places = (tmp_path / "config", tmp_path / "state")
    return b"".join(path.read_bytes() for place in places for path in place.rglob("*") if path.is_file())


class TestLogin:
    def test_it_works(self, accounts: Accounts, tmp_path: Path) -> None:
        waiting = Waiting(*words_for(accounts.name, tmp_path))
        page = accounts.consent(waiting.address)
        assert "You can close this window" in page
        said = waiting.end()
        assert (said.code, said.err) == (0, "")
        assert f"vaultfs remote add VAULT NAME {accounts.name}:FOLDER" in said.out.decode()
        assert accounts.problems == []
        login = known(login_file(accounts.name))
        assert {login.refresh_token} == accounts.refresh_tokens
        assert {login.access_token} == accounts.access_tokens
        for path in (login_file(accounts.name).path, tmp_path / "state/vaultfs/logins/key"):
            assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        kept = everything(tmp_path)
        assert b"canary" not in kept
        assert login.refresh_token.encode() not in kept
        assert CLIENT_ID.encode() not in kept

    def test_the_client_is_remembered(self, town: Town, tmp_path: Path) -> None:
        google = town.accounts["gdrive"]
        first = Waiting(*words_for("gdrive", tmp_path), "--json")
        google.consent(first.address)
        assert json.loads(first.end().out) == {"service": "gdrive", "account": "default", "client_id": CLIENT_ID}
        before = known(login_file("gdrive"))
        again = Waiting("gdrive", "--no-browser")
        google.consent(again.address)
        assert again.end().code == 0
        after = known(login_file("gdrive"))
        assert (after.client_id, after.client_secret) == (CLIENT_ID, CLIENT_SECRET)
        assert after.refresh_token != before.refresh_token

    def test_a_secret_belongs_to_its_client(self, town: Town, run: Run) -> None:
        log_in(town.accounts["gdrive"])
        said = run("remote", "login", "gdrive", "--client-id", "another", bare=True)
        assert (said.code, "wants the client's secret" in said.error_line) == (ExitCode.USAGE, True)

    def test_the_client_from_the_environment(self, town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAULTFS_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv("VAULTFS_CLIENT_SECRET", CLIENT_SECRET)
        waiting = Waiting("gdrive", "--no-browser", "--account", "work")
        town.accounts["gdrive"].consent(waiting.address)
        said = waiting.end()
        assert (said.code, b"--option account=work" in said.out) == (0, True)
        assert known(login_file("gdrive", "work")).client_secret == CLIENT_SECRET
        assert login_file("gdrive").load() is None

    def test_a_browser_is_sent(self, town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "browser"
        program.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path / "opened"}\nenv > {tmp_path / "environment"}\n')
        program.chmod(0o700)
        monkeypatch.setenv("BROWSER", str(program))
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setenv("VAULTFS_CLIENT_SECRET", CLIENT_SECRET)
        waiting = Waiting("gdrive", "--client-id", CLIENT_ID)
        town.accounts["gdrive"].consent((tmp_path / "opened").read_text())
        assert waiting.end().code == 0
        assert CLIENT_SECRET not in (tmp_path / "environment").read_text()

    def test_answers_that_are_none(self, microsoft: Accounts, tmp_path: Path) -> None:
        """Whoever does not know the state is told nothing, and the login goes on waiting."""
        waiting = Waiting(*words_for(microsoft.name, tmp_path))
        redirect_uri, state, code = microsoft.authorize(waiting.address)
        for answer in (
            {"state": "wrong", "code": code},
            {"state": "wrong", "error": "access_denied"},
            {"code": code},
            {"error": "access_denied"},
            {"state": state},
            {"state": state, "code": ""},
            {},
        ):
            status, page = come_back(redirect_uri, **answer)
            assert (status, "not the answer" in page) == (404, True)
        for path in ("/favicon.ico", "/../", f"//{state}"):
            assert come_back(redirect_uri, path=path, state=state, code=code)[0] == 404
        assert waiting.process.poll() is None
        status, page = come_back(redirect_uri, state=state, code=code)
        assert (status, code in page, state in page) == (200, False, False)
        assert waiting.end().code == 0

    @pytest.mark.parametrize(
        ("error", "text"), [("access_denied", "was refused in the browser"), ("server_error", "refused the login")]
    )
    def test_no(self, microsoft: Accounts, tmp_path: Path, error: str, text: str) -> None:
        waiting = Waiting(*words_for(microsoft.name, tmp_path))
        redirect_uri, state, _ = microsoft.authorize(waiting.address)
        assert come_back(redirect_uri, state=state, error=error, error_description="canary")[0] == 200
        said = waiting.end()
        assert (said.code, said.out) == (ExitCode.REMOTE_REFUSED, b"")
        assert text in said.error_line
        assert "canary" not in said.err
        assert login_file(microsoft.name).load() is None

    def test_a_code_of_somebody_else(self, microsoft: Accounts, tmp_path: Path) -> None:
        """The verifier belongs to one address only: a code that was stolen, or slipped in, is worth nothing."""
        waiting = Waiting(*words_for(microsoft.name, tmp_path))
        redirect_uri, state, _ = microsoft.authorize(waiting.address)
        other = waiting.address.replace("code_challenge=", "code_challenge=" + "A" * 43 + "&x=")
        _, _, foreign = microsoft.authorize(other)
        come_back(redirect_uri, state=state, code=foreign)
        said = waiting.end()
        assert said.code == ExitCode.REMOTE_REFUSED
        assert "(invalid_grant)" in said.error_line
        assert microsoft.problems == ["invalid_grant the verifier is wrong"]
        assert "canary" not in said.err

    def test_a_client_that_is_unknown(self, town: Town) -> None:
        waiting = Waiting("onedrive", "--client-id", "another", "--no-browser")
        redirect_uri = "http://127.0.0.1:" + waiting.address.partition("localhost%3A")[2].partition("&")[0]
        state = waiting.address.partition("state=")[2].partition("&")[0]
        come_back(redirect_uri, state=state, code="canary")
        said = waiting.end()
        assert said.code == ExitCode.REMOTE_REFUSED
        assert "check the client id at https://entra.microsoft.com/" in said.error_line

    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (Response(503, b"canary"), ExitCode.REMOTE_UNREACHABLE),
            (Response(400, b"canary"), ExitCode.REMOTE_REFUSED),
            (Response(302, b"", {"Location": "https://canary.example/"}), ExitCode.REMOTE_REFUSED),
            (Response(200, b"canary"), ExitCode.ERROR),
            (Response(200, b"[" * 100_000), ExitCode.ERROR),
            (Response(200, b'{"access_token": "canary\\n"}'), ExitCode.ERROR),
            (Response(200, b'{"access_token": "canary", "expires_in": "NaN"}'), ExitCode.REMOTE_REFUSED),
        ],
        ids=["503", "400", "elsewhere", "nonsense", "deep", "no token", "nothing lasting"],
    )
    def test_answers_of_the_service(self, town: Town, answer: Response, code: ExitCode) -> None:
        accounts = town.accounts["onedrive"]
        waiting = Waiting("onedrive", "--client-id", CLIENT_ID, "--no-browser")
        accounts.failures = [answer]
        accounts.consent(waiting.address)
        said = waiting.end()
        assert said.code == code
        assert "canary" not in said.error_line
        assert login_file("onedrive").load() is None

    def test_ctrl_c(self, town: Town) -> None:
        waiting = Waiting("onedrive", "--client-id", CLIENT_ID, "--no-browser")
        waiting.process.send_signal(2)
        assert waiting.end().code == ExitCode.SIGINT

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["dropbox"], "no client id at Dropbox"),
            (["gdrive", "--client-id", CLIENT_ID], "wants the client's secret"),
            (["box"], "gdrive, dropbox, onedrive"),
            (["dropbox", "--client-id", "two words"], "client id"),
            (["dropbox", "--client-id", CLIENT_ID, "--account", "../x"], "name of an account"),
            (["dropbox", "--client-id", CLIENT_ID, "--port", "70000"], "--port"),
            (["dropbox", "--client-id", CLIENT_ID, "--client-secret-file", "/no/such"], "--client-secret-file"),
            (["dropbox", "--client-secret", "x"], "nknown option"),
        ],
    )
    def test_what_makes_no_sense(self, town: Town, run: Run, words: list[str], text: str) -> None:
        said = run("remote", "login", *words, bare=True)
        assert (said.code, text in said.error_line) == (ExitCode.USAGE, True)

    def test_a_port_that_is_taken(self, town: Town, tmp_path: Path, run: Run) -> None:
        words = words_for("dropbox", tmp_path)
        waiting = Waiting(*words)
        said = run("remote", "login", *words, bare=True)
        assert (said.code, "--port" in said.error_line) == (ExitCode.USAGE, True)
        waiting.process.terminate()
        assert waiting.end().code == ExitCode.SIGTERM


class TestLogout:
    def test_it_ends(self, accounts: Accounts, run: Run) -> None:
        file = log_in(accounts)
        lasting = known(file).refresh_token
        said = run("remote", "logout", accounts.name, bare=True)
        assert (said.code, said.err) == (0, "")
        assert not file.path.exists()
        if accounts.name == "onedrive":
            assert b"https://account.live.com/consent/Manage" in said.out
        else:
            assert accounts.revoked == [lasting]
        said = run("remote", "logout", accounts.name, bare=True)
        assert (said.code, "nobody has logged in" in said.error_line) == (ExitCode.USAGE, True)

    def test_after_a_long_time(self, town: Town, run: Run) -> None:
        """What is revoked is the newest refresh token, which asking for an access token may bring."""
        dropbox = town.accounts["dropbox"]
        dropbox.is_rotating = True
        file = log_in(dropbox)
        grow_older(file, 100_000.0)
        dropbox.expire()
        assert run("remote", "logout", "dropbox", bare=True).code == 0
        assert (len(dropbox.revoked), dropbox.refresh_tokens, dropbox.problems) == (1, set(), [])
        assert not file.path.exists()

    @pytest.mark.parametrize("name", ["gdrive", "dropbox"])
    def test_one_that_has_ended_already(self, town: Town, run: Run, name: str) -> None:
        file = log_in(town.accounts[name])
        grow_older(file, 100_000.0)
        town.accounts[name].refresh_tokens.clear()
        said = run("remote", "logout", name, bare=True)
        assert (said.code, "canary" in said.error_line) == (ExitCode.PARTIAL, False)
        assert b"See whether it has ended there: https://" in said.out
        assert not file.path.exists()

    def test_the_service_cannot_be_told(self, town: Town, run: Run) -> None:
        file = log_in(town.accounts["gdrive"])
        town.accounts["gdrive"].failures = [Response(503)]
        said = run("remote", "logout", "gdrive", "--json", bare=True)
        assert (said.code, "oauth2.googleapis.com" in said.error_line) == (ExitCode.PARTIAL, True)
        assert json.loads(said.out) == {"service": "gdrive", "account": "default", "is_revoked": False}
        assert not file.path.exists()


class TestKey:
    def test_without_it_a_login_does_not_open(self, town: Town, tmp_path: Path, run: Run, vault: Path) -> None:
        log_in(town.accounts["dropbox"])
        (tmp_path / "state/vaultfs/logins/key").unlink()
        said = run("remote", "add", vault, "cloud", "dropbox:x", bare=True)
        assert (said.code, "log in again" in said.error_line) == (ExitCode.INTEGRITY, True)

    @pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
    def test_one_that_is_none(self, town: Town, tmp_path: Path, run: Run, vault: Path, content: bytes) -> None:
        log_in(town.accounts["dropbox"])
        (tmp_path / "state/vaultfs/logins/key").write_bytes(content)
        said = run("remote", "add", vault, "cloud", "dropbox:x", bare=True)
        assert (said.code, "32 bytes" in said.error_line) == (ExitCode.INTEGRITY, True)
        said = run("remote", "login", "dropbox", "--no-browser", bare=True)
        assert (said.code, "32 bytes" in said.error_line) == (ExitCode.INTEGRITY, True)

    def test_many_that_need_one_make_one(self, tmp_path: Path) -> None:
        program = "from vaultfs.cli.user_seal import user_seal; print(user_seal().seal(b'p', b'd').hex())"
        running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(6)]
        for each in running:
            sealed = each.communicate(timeout=60)[0].decode()
            assert user_seal().open(b"p", bytes.fromhex(sealed)) == b"d"
        assert os.listdir(tmp_path / "state/vaultfs/logins") == ["key"]

    def test_that_of_a_service(
        self, town: Town, tmp_path: Path, run: Run, vault: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As systemd gives it: then nothing is kept in the state directory."""
        (tmp_path / "credentials").mkdir()
        (tmp_path / "credentials/vaultfs-token-key").write_bytes(bytes(range(32)))
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
        log_in(town.accounts["dropbox"])
        assert not (tmp_path / "state/vaultfs/logins/key").exists()
        said = process("remote", "add", vault, "cloud", "dropbox:x")
        assert (said.code, said.err) == (0, "")
        monkeypatch.delenv("CREDENTIALS_DIRECTORY")
        assert process("remote", "test", vault, "cloud").code == ExitCode.INTEGRITY


class TestUse:
    def test_everything_by_way_of_a_drive(
        self, accounts: Accounts, town: Town, vault: Path, tmp_path: Path, passfile: Path
    ) -> None:
        """Add, sync, verify and restore; tokens run out in between, and refresh tokens change."""
        accounts.is_rotating = True
        file = log_in(accounts)
        contents = {"/large": os.urandom(3 << 20), "/small": b"a few bytes", "/empty": b""}
        for path, data in contents.items():
            write_file(vault, path, data)
        make_snapshot(vault)
        url = f"{accounts.name}:Backups/my%20vault"

        def step(*words: str | Path) -> Said:
            grow_older(file, 100.0)
            accounts.expire()
            said = process(*words)
            assert (said.code, "canary" in said.err) == (0, False), said.err
            return said

        step("remote", "add", vault, "cloud", url)
        step("sync", vault, "cloud")
        assert json.loads(step("verify", vault, "cloud", "--read-data", "--json").out)["problems"] == []
        step("restore", url, tmp_path / "restored", "--passfile", passfile)
        for path, data in contents.items():
            assert read_file(tmp_path / "restored", path) == data
        assert accounts.refreshes == 4
        assert accounts.problems == []
        assert b"canary" not in everything(tmp_path)
        assert PASSWORD.encode() not in b"".join(request.body for request in town.web.asked)

    def test_a_mount_reads_from_a_drive(
        self, microsoft: Accounts, vault: Path, tmp_path: Path, folder: Path, passfile: Path
    ) -> None:
        """The daemon has the logins too, and renews them."""
        file = log_in(microsoft)
        write_file(vault, "/file", bytes(range(256)) * 1000)
        make_snapshot(vault)
        assert process("remote", "add", vault, "cloud", "onedrive:x").code == 0
        assert process("sync", vault).code == 0
        assert process("clone", "onedrive:x", tmp_path / "clone", "--passfile", passfile).code == 0
        assert process("mount", tmp_path / "clone", folder, "--passfile", passfile).code == 0
        grow_older(file, 100.0)
        microsoft.expire()
        assert (folder / "file").read_bytes() == bytes(range(256)) * 1000
        assert (microsoft.refreshes, microsoft.problems) == (1, [])
        assert process("umount", folder).code == 0

    def test_killed_after_a_refresh(self, microsoft: Accounts, town: Town, vault: Path) -> None:
        """What a refresh brought is kept before it is used, so it is not lost with the process."""
        file = log_in(microsoft)
        grow_older(file, 100.0)
        microsoft.expire()
        words = ("remote", "add", vault, "cloud", f"{microsoft.name}:x")
        with subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:

            def kill(request: Request) -> None:
                if microsoft.refreshes:
                    running.kill()

            town.apis[microsoft.name].before = kill
            running.communicate(timeout=60)
        assert running.returncode == -9
        town.apis[microsoft.name].before = lambda _: None
        assert {known(file).refresh_token} == microsoft.refresh_tokens
        said = process(*words)
        assert (said.code, said.err) == (0, "")
        assert (microsoft.refreshes, microsoft.problems) == (1, [])

    def test_two_processes_refresh_at_once(self, microsoft: Accounts, vault: Path) -> None:
        file = log_in(microsoft)
        assert process("remote", "add", vault, "cloud", f"{microsoft.name}:x").code == 0
        make_snapshot(vault)
        for _ in range(2):
            grow_older(file, 100.0)
            microsoft.expire()
            before = microsoft.refreshes
            running = [subprocess.Popen(command("sync", vault, "--dry-run"), stdout=subprocess.PIPE) for _ in range(3)]
            for each in running:
                each.communicate(timeout=60)
            assert [each.returncode for each in running] == [0, 0, 0]
            assert microsoft.refreshes == before + 1
        assert microsoft.problems == []

    @pytest.mark.parametrize("debug", ["", "1"])
    def test_a_login_that_has_ended(
        self, microsoft: Accounts, vault: Path, monkeypatch: pytest.MonkeyPatch, debug: str
    ) -> None:
        monkeypatch.setenv("VAULTFS_DEBUG", debug)
        file = log_in(microsoft)
        assert process("remote", "add", vault, "cloud", f"{microsoft.name}:x").code == 0
        grow_older(file, 4000.0)
        microsoft.expire()
        microsoft.refresh_tokens.clear()
        said = process("remote", "test", vault, "cloud")
        assert said.code == ExitCode.REMOTE_REFUSED
        assert f"log in again with 'vaultfs remote login {microsoft.name}'" in said.err.splitlines()[-1]
        assert "canary" not in said.err
        assert bool(debug) == ("Traceback" in said.err)

    def test_nobody_has_logged_in(self, town: Town, vault: Path, run: Run) -> None:
        said = run("remote", "add", vault, "cloud", "gdrive:x", bare=True)
        assert said.code == ExitCode.REMOTE_REFUSED
        assert "do so with 'vaultfs remote login gdrive'" in said.error_line

    def test_without_a_seal_nothing_opens(self, town: Town) -> None:
        """A program that uses vaultfs's modules and brings no seal."""
        log_in(town.accounts["gdrive"])
        program = (
            "from vaultfs.errors import RemoteRefusedError\n"
            "from vaultfs.remotes.urls import open_store\n"
            "try: open_store('gdrive:x').size_bytes('key')\n"
            "except RemoteRefusedError as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
        assert b"cannot open the logins" in done.stdout
