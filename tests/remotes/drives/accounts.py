"""The authorization servers of the three services (RFC 6749, 7636): they check what they are told, as the real ones do.

A person is played by `Accounts.consent`, which does what a browser would: open the address, say yes or no, and come
back.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from itertools import count
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from .web import Request, Response, as_json

CLIENT_ID: Final = "client-0815"
CLIENT_SECRET: Final = "canary-client-secret"
HOSTS: Final = {
    "gdrive": ("accounts.google.com", "oauth2.googleapis.com"),
    "dropbox": ("www.dropbox.com", "api.dropboxapi.com"),
    "onedrive": ("login.microsoftonline.com", "login.microsoftonline.com"),
}
_ADDRESSES: Final = {
    "gdrive": ("https://accounts.google.com/o/oauth2/v2/auth", "/token"),
    "dropbox": ("https://www.dropbox.com/oauth2/authorize", "/oauth2/token"),
    "onedrive": (
        "https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
        "/common/oauth2/v2.0/token",
    ),
}
_OFFLINE: Final = {
    "gdrive": {"access_type": "offline", "prompt": "consent"},
    "dropbox": {"token_access_type": "offline"},
    "onedrive": {},
}
_SCOPES: Final = {
    "gdrive": {"https://www.googleapis.com/auth/drive.file"},
    "dropbox": {"files.content.read", "files.content.write", "files.metadata.read"},
    "onedrive": {"Files.ReadWrite", "offline_access"},
}


@dataclass
class Code:
    """A code that was given out."""

    challenge: str
    redirect_uri: str


@dataclass
class Accounts:
    """The authorization server of one service.

    Attributes:
        name: of the service.
        is_rotating: whether a refresh gives a new refresh token and ends the one before.
        life_s: of access tokens.
        failures: what is answered next instead.
        access_tokens: that count now.
        refresh_tokens: that count now.
        refreshes: how often there were new tokens for a refresh token.
        problems: what a client did wrong.
        revoked: refresh tokens that were revoked.
    """

    name: str
    is_rotating: bool = False
    life_s: int = 3600
    failures: list[Response] = field(default_factory=list)
    access_tokens: set[str] = field(default_factory=set)
    refresh_tokens: set[str] = field(default_factory=set)
    refreshes: int = 0
    problems: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._codes: dict[str, Code] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Begin anew: nobody has logged in."""
        with self._lock:
            self.is_rotating, self.life_s, self.refreshes = False, 3600, 0
            for each in (
                self.failures,
                self.access_tokens,
                self.refresh_tokens,
                self.problems,
                self.revoked,
                self._codes,
            ):
                each.clear()

    def accepts(self, token: str | None) -> bool:
        return token in self.access_tokens

    def expire(self) -> None:
        """No access token counts any more."""
        self.access_tokens.clear()

    def new_tokens(self) -> tuple[str, str]:
        """An access token and a refresh token."""
        number = next(self._numbers)
        access, lasting = f"canary-access-{self.name}-{number}", f"canary-refresh-{self.name}-{number}"
        self.access_tokens.add(access)
        self.refresh_tokens.add(lasting)
        return access, lasting

    def authorize(self, address: str) -> tuple[str, str, str]:
        """Check the address that a client sends the person's browser to: its redirect URI, its state, and a code."""
        base, _, query = address.partition("?")
        asked = {name: values[0] for name, values in parse_qs(query, strict_parsing=True).items()}
        assert base == _ADDRESSES[self.name][0]
        assert asked["client_id"] == CLIENT_ID
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert len(asked["code_challenge"]) == 43
        assert len(asked["state"]) >= 32
        assert set(asked["scope"].split()) == _SCOPES[self.name]
        assert _OFFLINE[self.name].items() <= asked.items()
        place = urlsplit(asked["redirect_uri"])
        assert place.scheme == "http"
        assert place.hostname == ("localhost" if self.name == "onedrive" else "127.0.0.1")
        assert (place.path, place.query) == ("", "")
        code = f"canary-code-{next(self._numbers)}"
        self._codes[code] = Code(asked["code_challenge"], asked["redirect_uri"])
        return asked["redirect_uri"], asked["state"], code

    def consent(self, address: str) -> str:
        """Log in and say yes, as a person with a browser; gives the page that is shown at the end."""
        redirect_uri, state, code = self.authorize(address)
        return come_back(redirect_uri, state=state, code=code)[1]

    def __call__(self, request: Request) -> Response:
        with self._lock:
            if self.failures:
                return self.failures.pop(0)
            if request.method == "POST" and request.path == _ADDRESSES[self.name][1]:
                return self._token(request)
            if self.name == "gdrive" and request.path == "/revoke":
                return self._revoke(request.form["token"])
            if self.name == "dropbox" and request.path == "/2/auth/token/revoke":
                return self._revoke_own(request)
            return Response(404)

    def _token(self, request: Request) -> Response:
        form = request.form
        if form["client_id"] != CLIENT_ID:
            return self._refused("invalid_client")
        if form.get("client_secret") != (CLIENT_SECRET if self.name == "gdrive" else None):
            return self._refused("invalid_client")
        if form["grant_type"] == "authorization_code":
            code = self._codes.pop(form["code"], None)  # counts once
            if code is None or code.redirect_uri != form["redirect_uri"]:
                return self._refused("invalid_grant")
            if not 43 <= len(form["code_verifier"]) <= 128 or challenge_of(form["code_verifier"]) != code.challenge:
                return self._refused("invalid_grant", "the verifier is wrong")
            access, lasting = self.new_tokens()
            return as_json({"access_token": access, "refresh_token": lasting, **self._rest()})
        if form["grant_type"] != "refresh_token":
            return self._refused("unsupported_grant_type")
        if form["refresh_token"] not in self.refresh_tokens:
            return self._refused("invalid_grant", form["refresh_token"])
        self.refreshes += 1
        access, lasting = self.new_tokens()
        if not self.is_rotating:
            self.refresh_tokens.discard(lasting)
            return as_json({"access_token": access, **self._rest()})
        self.refresh_tokens.discard(form["refresh_token"])
        return as_json({"access_token": access, "refresh_token": lasting, **self._rest()})

    def _rest(self) -> dict[str, object]:
        return {"token_type": "Bearer", "expires_in": self.life_s, "scope": " ".join(sorted(_SCOPES[self.name]))}

    def _refused(self, error: str, description: str = "") -> Response:
        self.problems.append(f"{error} {description}".strip())
        return as_json({"error": error, "error_description": f"canary-description {description}"}, 400)

    def _revoke(self, token: str) -> Response:
        if token not in self.refresh_tokens:
            return as_json({"error": "invalid_token"}, 400)
        self.refresh_tokens.discard(token)
        self.revoked.append(token)
        return as_json({})

    def _revoke_own(self, request: Request) -> Response:
        if not self.accepts(request.bearer) or request.body:
            return as_json({"error_summary": "invalid_access_token/.."}, 401)
        self.revoked += sorted(self.refresh_tokens)
        self.refresh_tokens.clear()
        self.access_tokens.clear()
        return Response(200, b"null", {"Content-Type": "application/json"})


def challenge_of(verifier: str) -> str:
    """RFC 7636, section 4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def come_back(redirect_uri: str, *, path: str = "/", **answer: str) -> tuple[int, str]:
    """What a browser does at the end: status and page."""
    place = urlsplit(redirect_uri)
    address = f"http://127.0.0.1:{place.port}{path}?{urlencode(answer)}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=30) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
