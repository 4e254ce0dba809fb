"""Access tokens of the accounts where this user has logged in: kept, refreshed, and never two at a time.

A refresh may bring another refresh token, and end the one before.  So it happens under the login's lock, and what came
is on the disk before anybody uses it: a process that is killed, and another that refreshes meanwhile, find the newest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from vaultfs.errors import RemoteRefusedError
from vaultfs.remotes.oauth_services import OAuthService, require_service
from vaultfs.remotes.tokens import DEFAULT_ACCOUNT, Login, LoginFile
from vaultfs.remotes.tokens_seal import Seal, brought_seal

if TYPE_CHECKING:
    from vaultfs.remotes.oauth import Client, Grant

_EARLY_S: Final = 300.0
"""So long before its end an access token is not used for anything new: a large object takes its time."""
_FRESH_S: Final = 60.0
"""An access token younger than this that is refused will not get better by asking again."""


class AccessToken(NamedTuple):
    """A token for requests.

    Attributes:
        text: the token.
        renew_at_s: when to ask for another, since the epoch.
    """

    text: str
    renew_at_s: float


class Logins:
    """The logins of this user on this machine.  Threads may share it.

    Args:
        seal: makes what seals tokens; is called when it is needed.
        clock: seconds since the epoch.
    """

    def __init__(self, seal: Callable[[], Seal] = brought_seal, *, clock: Callable[[], float] = time.time) -> None:
        self._seal: Final = seal
        self._clock: Final = clock

    def access_token(self, service_name: str, account: str, *, refused: str | None = None) -> AccessToken:
        """A token that is good for some time.

        Args:
            service_name: of the drive.
            account: what the user calls the account.
            refused: a token that was given before and is not accepted any more: another is wanted.

        Raises:
            RemoteRefusedError: nobody has logged in, or the login has ended.
            RemoteUnreachableError: the service cannot be asked for a new one.
            IntegrityError: the login's file is damaged.
            NoSpaceError, ReadOnlyError, StorageError: it cannot be read or replaced.
        """
        service = require_service(service_name)
        file = self.file(service_name, account)
        login = self._existing(service, account, file)
        if self._needs_new(login, refused):
            with file.locked():
                login = self._existing(service, account, file)  # another may have been faster
                if self._needs_new(login, refused):
                    login = self._refreshed(service, account, login)
                    file.save(login)
        return AccessToken(login.access_token, login.renew_at_s)

    def file(self, service_name: str, account: str) -> LoginFile:
        """Where a login is kept."""
        return LoginFile(service_name, account, self._seal)

    def login_of(self, client: Client, grant: Grant, refresh_token: str) -> Login:
        """What to keep of tokens that have just come.

        Args:
            client: to whom they were given.
            grant: what was given.
            refresh_token: the newest.
        """
        now_s = self._clock()
        renew_at_s = now_s + grant.life_s - min(_EARLY_S, grant.life_s / 4)
        return Login(client.id, client.secret, refresh_token, grant.access_token, now_s, renew_at_s)

    def _existing(self, service: OAuthService, account: str, file: LoginFile) -> Login:
        login = file.load()
        if login is None:
            raise RemoteRefusedError(
                f"nobody has logged in to {service.title} as {account!r} on this machine; "
                f"do so with '{login_command(service.name, account)}'",
            )
        return login

    def _needs_new(self, login: Login, refused: str | None) -> bool:
        now_s = self._clock()
        if not login.issued_at_s <= now_s < login.renew_at_s:  # the clock may have been put back
            return True
        return login.access_token == refused and now_s - login.issued_at_s >= _FRESH_S

    def _refreshed(self, service: OAuthService, account: str, login: Login) -> Login:
        from vaultfs.remotes.oauth import Client, refresh  # noqa: PLC0415  # most uses need no request

        client = Client(login.client_id, login.client_secret)
        grant = refresh(service, client, login.refresh_token, login_command(service.name, account))
        return self.login_of(client, grant, grant.refresh_token or login.refresh_token)


def login_command(service_name: str, account: str) -> str:
    """What a person types to log in."""
    words = f"vaultfs remote login {service_name}"
    return words if account == DEFAULT_ACCOUNT else f"{words} --account {account}"
