"""OAuth 2.0 for programs on a person's machine: the authorization code grant with PKCE (RFC 6749, 7636, 8252).

Tokens, codes and secrets appear in no message and no ``repr``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from vaultfs.errors import RemoteError, RemoteRefusedError
from vaultfs.remotes.oauth_http import Answer, post
from vaultfs.remotes.oauth_services import OAuthService

_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_ERROR: Final = re.compile(r"[a-z_]{1,40}")
_USUAL_LIFE_S: Final = 3600.0
"""Of an access token whose life is not told."""
_LONGEST_LIFE_S: Final = 86400.0 * 365


@dataclass(frozen=True, repr=False)
class Client:
    """Who asks: an application that somebody has registered with the service.

    Attributes:
        id: public.
        secret: only where the service insists on one.
    """

    id: str
    secret: str | None = None


@dataclass(frozen=True, repr=False)
class Grant:
    """What the service gave.

    Attributes:
        access_token: for requests.
        life_s: of the access token, from now on.
        refresh_token: for the next access token; None: the one before goes on.
    """

    access_token: str
    life_s: float
    refresh_token: str | None


@dataclass(frozen=True, repr=False)
class Attempt:
    """One try to log in.

    Attributes:
        state: what has to come back with the code.
        verifier: what nobody knows but us; its hash goes out first (RFC 7636).
        redirect_uri: where the browser comes back to.
    """

    state: str
    verifier: str
    redirect_uri: str

    @classmethod
    def begin(cls, redirect_uri: str, state: str) -> Attempt:
        """Draw the verifier."""
        return cls(state, secrets.token_urlsafe(64), redirect_uri)

    def address(self, service: OAuthService, client: Client) -> str:
        """Where the person's browser has to go."""
        digest = hashlib.sha256(self.verifier.encode("ascii")).digest()
        parameters = {
            "client_id": client.id,
            "response_type": "code",
            "redirect_uri": self.redirect_uri,
            "scope": service.scope,
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).decode("ascii").rstrip("="),
            "code_challenge_method": "S256",
            **service.extra,
        }
        return f"{service.authorize_url}?{urlencode(parameters)}"


def exchange(service: OAuthService, client: Client, attempt: Attempt, code: str) -> Grant:
    """Turn the code that the browser brought into tokens.

    Raises:
        RemoteRefusedError: the service does not accept it, or gives nothing that could be refreshed.
        RemoteUnreachableError: it cannot be asked.
        RemoteError: its answer makes no sense.
    """
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "code_verifier": attempt.verifier,
        "redirect_uri": attempt.redirect_uri,
    }
    answer = post(service.token_url, form | _identity(client))
    if answer.status != 200:
        raise RemoteRefusedError(f"{service.title} refused the login ({_kind(answer)}); {_advice(service, answer)}")
    grant = _grant(service, answer.document)
    if grant.refresh_token is None:
        raise RemoteRefusedError(f"{service.title} gave no lasting access; end the old one at {service.permissions}")
    return grant


def refresh(service: OAuthService, client: Client, refresh_token: str, again: str) -> Grant:
    """Get a new access token.

    Args:
        service: who gives it.
        client: who logged in.
        refresh_token: of the login.
        again: the command that logs in anew, for messages.

    Raises:
        RemoteRefusedError: the login has ended, or the client is not accepted any more.
        RemoteUnreachableError: the service cannot be asked.
        RemoteError: its answer makes no sense.
    """
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    answer = post(service.token_url, form | _identity(client))
    if answer.status == 200:
        return _grant(service, answer.document)
    if _kind(answer) == "invalid_grant":
        raise RemoteRefusedError(f"the login to {service.title} has ended or was revoked; log in again with '{again}'")
    raise RemoteRefusedError(
        f"{service.title} gives no new access token ({_kind(answer)}); {_advice(service, answer)}, "
        f"or log in again with '{again}'"
    )


def revoke(service: OAuthService, *, refresh_token: str, access_token: str) -> bool:
    """Have the service forget a login; False if this one has no way to.

    Raises:
        RemoteRefusedError: it did not; the login may have ended before.
        RemoteUnreachableError: it cannot be asked.
    """
    if service.revoke_url:
        answer = post(service.revoke_url, {"token": refresh_token})
    elif service.revoke_own_url:
        answer = post(service.revoke_own_url, bearer=access_token)
    else:
        return False
    if answer.status != 200:
        raise RemoteRefusedError(f"{service.title} did not revoke the login ({_kind(answer)})")
    return True


def _identity(client: Client) -> dict[str, str]:
    return {"client_id": client.id} | ({} if client.secret is None else {"client_secret": client.secret})


def _grant(service: OAuthService, document: dict[str, Any]) -> Grant:
    access_token, refresh_token = document.get("access_token"), document.get("refresh_token")
    # What is no word of ASCII would be no header, and OpenDAL would not survive it.
    for token in (access_token, refresh_token):
        if token is not None and not (isinstance(token, str) and _TOKEN.fullmatch(token)):
            raise RemoteError(f"{service.title} gave something that is no token; try again")
    if access_token is None:
        raise RemoteError(f"{service.title} gave no access token; try again")
    try:
        life_s = float(document.get("expires_in", _USUAL_LIFE_S))
    except (TypeError, ValueError, OverflowError):  # the last: a number too large for any
        life_s = _USUAL_LIFE_S
    # The comparison is false for what is no number.
    return Grant(access_token, min(life_s, _LONGEST_LIFE_S) if life_s > 0 else _USUAL_LIFE_S, refresh_token)


def _kind(answer: Answer) -> str:
    """The kind of error, if it is one of those words that the standard has, and not some text."""
    error = answer.document.get("error")
    return error if isinstance(error, str) and _ERROR.fullmatch(error) else str(answer.status)


def _advice(service: OAuthService, answer: Answer) -> str:
    if _kind(answer) in {"invalid_client", "unauthorized_client", "deleted_client"}:
        return f"check the client id{' and its secret' if service.has_secret else ''} at {service.console}"
    return f"check the client's settings at {service.console}"
