"""Where one logs in to Google Drive, Dropbox and OneDrive, and what is asked for there.

The addresses are constants: a setting for them would be a way to have tokens sent elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vaultfs.errors import UsageError


@dataclass(frozen=True)
class OAuthService:
    """A service that one logs in to.

    Attributes:
        name: as in URLs of remotes.
        title: for people.
        authorize_url: where a browser is sent.
        token_url: where codes and refresh tokens are exchanged.
        scope: what is asked for; no more than copying a vault needs.
        extra: further parameters of the address that the browser is sent to.
        redirect: where the browser comes back to; ``{port}`` stands for the port.
        port: that port; 0 if the service does not care which one it is.
        has_secret: whether the service wants the client's secret too, though it cannot be secret on a desktop.
        revoke_url: where a refresh token is revoked by being sent; empty if nowhere.
        revoke_own_url: where an access token revokes itself and its refresh token; empty if nowhere.
        console: where a client id is made.
        permissions: where a person sees who has access, and can end it.
    """

    name: str
    title: str
    authorize_url: str
    token_url: str
    scope: str
    redirect: str
    console: str
    permissions: str
    extra: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    has_secret: bool = False
    revoke_url: str = ""
    revoke_own_url: str = ""


SERVICES: Final[Mapping[str, OAuthService]] = {
    service.name: service
    for service in (
        OAuthService(
            "gdrive",
            "Google Drive",
            authorize_url="https://accounts.google.com/o/oauth2/v2/auth",
            token_url="https://oauth2.googleapis.com/token",  # noqa: S106  # an address
            # Only what this client has made itself: not the person's other files.
            scope="https://www.googleapis.com/auth/drive.file",
            # Without "consent" a second login brings no refresh token.
            extra={"access_type": "offline", "prompt": "consent"},
            redirect="http://127.0.0.1:{port}",
            has_secret=True,
            revoke_url="https://oauth2.googleapis.com/revoke",
            console="https://console.cloud.google.com/auth/clients",
            permissions="https://myaccount.google.com/connections",
        ),
        OAuthService(
            "dropbox",
            "Dropbox",
            authorize_url="https://www.dropbox.com/oauth2/authorize",
            token_url="https://api.dropboxapi.com/oauth2/token",  # noqa: S106  # an address
            scope="files.content.read files.content.write files.metadata.read",
            extra={"token_access_type": "offline"},
            # Dropbox compares the whole address, port included, with those that were registered.
            redirect="http://127.0.0.1:{port}",
            port=53682,
            revoke_own_url="https://api.dropboxapi.com/2/auth/token/revoke",
            console="https://www.dropbox.com/developers/apps",
            permissions="https://www.dropbox.com/account/connected_apps",
        ),
        OAuthService(
            "onedrive",
            "OneDrive",
            authorize_url="https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
            token_url="https://login.microsoftonline.com/common/oauth2/v2.0/token",  # noqa: S106  # an address
            scope="Files.ReadWrite offline_access",
            # Its console takes "localhost" and any port, but not the number 127.0.0.1.
            redirect="http://localhost:{port}",
            console="https://entra.microsoft.com/",
            permissions="https://account.live.com/consent/Manage",
        ),
    )
}


def require_service(name: str) -> OAuthService:
    """The service of a name.

    Raises:
        UsageError: one does not log in to it.
    """
    service = SERVICES.get(name)
    if service is None:
        raise UsageError(f"there is no login to {name[:64]!r}; there is one to {', '.join(SERVICES)}")
    return service
