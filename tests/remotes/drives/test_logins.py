"""How logins are kept and renewed; with drives in ``test_drives.py``, whole commands in ``tests/cli``."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from remotes.conftest import free_port
from vaultfs.cli.user_seal import user_seal
from vaultfs.errors import IntegrityError, RemoteError, RemoteRefusedError, RemoteUnreachableError, UsageError
from vaultfs.remotes import tokens
from vaultfs.remotes.oauth import Attempt, Client, Grant, exchange
from vaultfs.remotes.oauth_http import post
from vaultfs.remotes.oauth_logins import Logins
from vaultfs.remotes.oauth_loopback import listening
from vaultfs.remotes.oauth_services import SERVICES
from vaultfs.remotes.tokens import Login, LoginFile, require_account

from .accounts import CLIENT_ID, Accounts, challenge_of, come_back
from .logged_in import known, log_in
from .town import NAMES, Town
from .web import Response, make_certificates

HOUR_S = 3600.0
START_S = 1_000_000_000.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logins of its own for each test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return tmp_path


@pytest.fixture
def near(town: Town, monkeypatch: pytest.MonkeyPatch) -> Town:
    """The fakes, and requests of this process reach them."""
    town.forget()
    for name, value in town.environment.items():
        monkeypatch.setenv(name, value)
    return town


@pytest.fixture(params=NAMES)
def accounts(request: pytest.FixtureRequest, near: Town) -> Accounts:
    return near.accounts[request.param]


class Clock:
    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


def assert_nothing_shows(error: BaseException | None) -> None:
    """No secret is in an error, nor in those behind it."""
    while error is not None:
        assert "canary" not in repr(error)
        error = error.__cause__ or error.__context__


class TestRenewal:
    def logins(self, accounts: Accounts) -> tuple[Logins, Clock]:
        """Logins with a login that came just now."""
        clock = Clock()
        logins = Logins(user_seal, clock=clock)
        access, lasting = accounts.new_tokens()
        client = Client(CLIENT_ID, "canary-client-secret" if accounts.name == "gdrive" else None)
        logins.file(accounts.name, "default").save(logins.login_of(client, Grant(access, HOUR_S, lasting), lasting))
        return logins, clock

    def test_a_token_is_used_until_five_minutes_before_its_end(self, accounts: Accounts) -> None:
        logins, clock = self.logins(accounts)
        first = logins.access_token(accounts.name, "default")
        clock.now_s += HOUR_S - 301
        assert logins.access_token(accounts.name, "default") == first
        clock.now_s += 2
        second = logins.access_token(accounts.name, "default")
        assert second.text != first.text
        assert second.renew_at_s == clock.now_s + HOUR_S - 300
        assert accounts.refreshes == 1

    def test_a_short_one_is_used_for_three_quarters(self, accounts: Accounts) -> None:
        logins, clock = self.logins(accounts)
        accounts.life_s = 100
        clock.now_s += HOUR_S
        token = logins.access_token(accounts.name, "default")
        assert token.renew_at_s == clock.now_s + 75

    def test_one_that_is_refused(self, accounts: Accounts) -> None:
        logins, clock = self.logins(accounts)
        first = logins.access_token(accounts.name, "default")
        clock.now_s += 59
        assert logins.access_token(accounts.name, "default", refused=first.text) == first
        clock.now_s += 1
        second = logins.access_token(accounts.name, "default", refused=first.text)
        assert second.text != first.text
        # Somebody who still has the first one is given what is there.
        assert logins.access_token(accounts.name, "default", refused=first.text) == second
        assert accounts.refreshes == 1

    def test_a_clock_that_was_put_back(self, accounts: Accounts) -> None:
        logins, clock = self.logins(accounts)
        clock.now_s -= 1
        logins.access_token(accounts.name, "default")
        logins.access_token(accounts.name, "default")
        assert accounts.refreshes == 1

    def test_what_came_is_kept_before_it_is_given(self, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
        logins, clock = self.logins(accounts)
        accounts.is_rotating = True
        clock.now_s += HOUR_S

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", fail)
            with pytest.raises(Exception, match="No space left"):
                logins.access_token(accounts.name, "default")

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (Response(503), RemoteUnreachableError),
            (Response(429), RemoteUnreachableError),
            (Response(400, b'{"error": "invalid_grant", "error_description": "canary"}'), RemoteRefusedError),
            (Response(401, b'{"error": "invalid_client"}'), RemoteRefusedError),
            (Response(400, b'{"error": {"canary": 1}}'), RemoteRefusedError),
            (Response(200, b"canary"), RemoteError),
            (Response(200, b'{"access_token": 5}'), RemoteError),
            (Response(200, b'{"access_token": "two words"}'), RemoteError),
            (Response(200, b'{"access_token": "\xc3\xa4"}'), RemoteError),
            (Response(200, b'{"access_token": "a", "refresh_token": ""}'), RemoteError),
        ],
    )
    def test_answers(self, accounts: Accounts, answer: Response, error: type[RemoteError]) -> None:
        """The login stays as it is, and nothing that was sent or came is in the error, nor behind it."""
        logins, clock = self.logins(accounts)
        before = known(logins.file(accounts.name, "default"))
        clock.now_s += HOUR_S
        accounts.failures = [answer]
        with pytest.raises(RemoteError) as caught:
            logins.access_token(accounts.name, "default")
        assert type(caught.value) is error
        assert_nothing_shows(caught.value)
        assert known(logins.file(accounts.name, "default")) == before

    @pytest.mark.parametrize("life", [None, "soon", -5, "7200", 1e300, float("nan"), 10**400])
    def test_lives_that_make_no_sense(self, accounts: Accounts, life: object) -> None:
        logins, clock = self.logins(accounts)
        clock.now_s += HOUR_S
        access, _ = accounts.new_tokens()
        accounts.failures = [Response(200, json.dumps({"access_token": access, "expires_in": life}).encode())]
        token = logins.access_token(accounts.name, "default")
        life_s = {"7200": 7200.0, 1e300: 365 * 86400.0}.get(life, HOUR_S)
        assert token.renew_at_s == clock.now_s + life_s - 300


class TestHttp:
    def test_a_server_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(
            RemoteUnreachableError, match=r"oauth2\.googleapis\.com cannot be reached: Connection refused"
        ):
            post("https://oauth2.googleapis.com/token", {"canary": "canary"})

    def test_a_proxy_that_refuses(self, near: Town) -> None:
        with pytest.raises(RemoteUnreachableError, match="cannot be reached"):
            post("https://accounts.google.com/", {})
        near.web.strangers.clear()

    def test_a_certificate_that_is_not_trusted(
        self, near: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(make_certificates(tmp_path, ["example.org"])))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
        with pytest.raises(
            RemoteRefusedError, match=r"certificate of oauth2\.googleapis\.com is not trusted"
        ) as caught:
            post("https://oauth2.googleapis.com/token", {"canary": "canary"})
        assert_nothing_shows(caught.value)

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_it_is_not_sent_elsewhere(self, near: Town, status: int) -> None:
        accounts = near.accounts["onedrive"]
        accounts.failures = [Response(status, b"", {"Location": "https://graph.microsoft.com/steal"})]
        with pytest.raises(RemoteRefusedError):
            exchange(SERVICES["onedrive"], Client(CLIENT_ID), Attempt.begin("http://localhost:1", "state"), "code")
        assert [request.host for request in near.web.asked] == ["login.microsoftonline.com"]


class TestAttempts:
    def test_secrets_are_new_each_time(self) -> None:
        attempts = [Attempt.begin("http://127.0.0.1:1", "state") for _ in range(20)]
        assert len({attempt.verifier for attempt in attempts}) == 20
        assert all(43 <= len(attempt.verifier) <= 128 for attempt in attempts)
        assert attempts[0].verifier not in repr(attempts[0])

    def test_the_example_of_the_standard(self) -> None:
        """RFC 7636, appendix B."""
        verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
        address = Attempt("state", verifier, "http://127.0.0.1:1").address(SERVICES["dropbox"], Client("id"))
        assert "code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256" in address
        assert verifier not in address
        assert challenge_of(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"

    def test_no_secret_is_in_an_address(self) -> None:
        for service in SERVICES.values():
            address = Attempt.begin("http://127.0.0.1:1", "state").address(service, Client("id", "canary"))
            assert address.startswith("https://")
            assert "canary" not in address

    def test_nothing_shows(self) -> None:
        login = Login("canary", "canary", "canary", "canary", 0.0, 0.0)
        for each in (Client("canary", "canary"), Grant("canary", 1.0, "canary"), login):
            assert "canary" not in repr(each)
            assert "canary" not in f"{each}"


class TestLoopback:
    def test_one_answer_counts(self) -> None:
        with listening(0) as loopback:
            address = f"http://127.0.0.1:{loopback.port}"
            assert come_back(address, state=loopback.state, code="x" * 5000)[0] == 404
            assert come_back(address, state=loopback.state, code="first")[0] == 200
            assert come_back(address, state=loopback.state, code="second")[0] == 404
            assert come_back(address, state=loopback.state, error="access_denied")[0] == 404
            assert loopback.wait("the service", 30.0) == "first"

    def test_nobody_comes(self) -> None:
        with listening(0) as loopback, pytest.raises(RemoteRefusedError, match="nobody has logged in to the service"):
            loopback.wait("the service", 0.0)

    def test_connections_that_say_nothing_are_in_nobodys_way(self) -> None:
        with listening(0) as loopback, ExitStack() as stack:
            for _ in range(4):  # browsers open some on suspicion
                stack.enter_context(socket.create_connection(("127.0.0.1", loopback.port)))
            nonsense = stack.enter_context(socket.create_connection(("127.0.0.1", loopback.port)))
            nonsense.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert come_back(f"http://127.0.0.1:{loopback.port}", state=loopback.state, code="x")[0] == 200
            assert loopback.wait("the service", 30.0) == "x"

    def test_it_is_for_this_machine_alone(self) -> None:
        with listening(0) as loopback, socket.socket() as other:
            other.bind(("127.0.0.2", loopback.port))  # it would be taken, were it all addresses

    def test_states_are_new_each_time(self) -> None:
        with listening(0) as one, listening(0) as other:
            assert one.state != other.state


class TestFiles:
    def test_each_login_is_sealed_for_itself(self, near: Town) -> None:
        """Who can write there cannot have the tokens of one account used for another."""
        work, home = log_in(near.accounts["dropbox"], "work"), log_in(near.accounts["dropbox"], "home")
        work.path.write_bytes(home.path.read_bytes())
        with pytest.raises(IntegrityError, match="does not open"):
            work.load()
        assert known(home)

    @pytest.mark.parametrize(
        "content", [b"", b"vaultfs login 1\n", b"vaultfs login 2\n" + bytes(100), bytes(1000), b"\xff" * (1 << 19)]
    )
    def test_damaged_ones(self, near: Town, content: bytes) -> None:
        file = log_in(near.accounts["dropbox"])
        file.path.write_bytes(content)
        with pytest.raises(IntegrityError, match="log in again"):
            file.load()

    def test_one_that_was_sealed_and_makes_no_sense(self, near: Town) -> None:
        file = log_in(near.accounts["dropbox"])
        for content in (b"", b"[]", b'{"client_id": 5}', b"\xff", b'{"more": 1}'):
            sealed = user_seal().seal(b"vaultfs login dropbox.default", content)
            file.path.write_bytes(b"vaultfs login 1\n" + sealed)
            with pytest.raises(IntegrityError, match="log in again"):
                file.load()

    def test_what_is_no_file(self, near: Town, tmp_path: Path) -> None:
        file = log_in(near.accounts["dropbox"])
        content = file.path.read_bytes()
        file.path.unlink()
        os.mkfifo(file.path)
        with pytest.raises(IntegrityError):
            file.load()
        file.path.unlink()
        (tmp_path / "elsewhere").write_bytes(content)
        file.path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Exception, match="symbolic links"):
            file.load()

    def test_one_at_a_time(self, near: Town, monkeypatch: pytest.MonkeyPatch) -> None:
        file = log_in(near.accounts["dropbox"])
        with file.locked():
            pass
        (lock,) = Path(os.environ["XDG_STATE_HOME"]).rglob("*.lock")
        monkeypatch.setattr(tokens, "_LOCK_PATIENCE_S", 0.0)
        with lock.open("wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(RemoteUnreachableError, match="another process"), file.locked():
                pytest.fail("it is locked")
        with file.locked():
            pass

    def test_removed(self, near: Town) -> None:
        file = log_in(near.accounts["dropbox"])
        file.remove()
        assert file.load() is None
        file.remove()

    @pytest.mark.parametrize("account", ["", "A", "a b", "../x", "a/b", "a" * 33, ".a", "a\n"])
    def test_names_of_accounts(self, account: str) -> None:
        with pytest.raises(UsageError, match="name of an account"):
            LoginFile("dropbox", account, user_seal)
        assert require_account("work-2_a") == "work-2_a"
