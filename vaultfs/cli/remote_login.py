"""``vaultfs remote login`` and ``logout``: give vaultfs access to a drive, and end it.

No secret stands on a command line: a client's secret comes from a file or the environment, tokens from the service.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vaultfs.cli.output import emit_json, note, say
from vaultfs.errors import ExitCode, IntegrityError, RemoteError, UsageError
from vaultfs.remotes.oauth_logins import Logins
from vaultfs.remotes.oauth_services import OAuthService, require_service
from vaultfs.remotes.tokens import DEFAULT_ACCOUNT, Login, LoginFile
from vaultfs.remotes.tokens_seal import brought_seal

ID_VARIABLE: Final = "VAULTFS_CLIENT_ID"
SECRET_VARIABLE: Final = "VAULTFS_CLIENT_SECRET"  # noqa: S105  # the name of a variable
_TIMEOUT_S: Final = 300.0
_LARGEST_ID: Final = 512


def login(
    service: str,
    /,
    *,
    account: str = DEFAULT_ACCOUNT,
    client_id: str | None = None,
    client_secret_file: Path | None = None,
    port: int | None = None,
    no_browser: bool = False,
    json: bool = False,
) -> int:
    """Log in to Google Drive, Dropbox or OneDrive, so that remotes there can be used on this machine.

    A browser is sent to the service, where you say yes; it comes back to vaultfs at 127.0.0.1. The client id is that of
    an application which you register with the service: docs/cli/remote.md tells how. It is needed once.

    Args:
        service: gdrive, dropbox or onedrive.
        account: What to call the account, if there are several: letters, digits, '-' and '_'.
        client_id: The application's client id; also VAULTFS_CLIENT_ID.
        client_secret_file: A file with the client's secret, which Google wants as well; also VAULTFS_CLIENT_SECRET.
        port: The port on 127.0.0.1 to which the browser comes back.
        no_browser: Print the address, and open no browser.
        json: Print JSON.
    """
    from vaultfs.remotes.oauth import Attempt, Client, exchange  # noqa: PLC0415  # other verbs about remotes need no HTTP
    from vaultfs.remotes.oauth_loopback import listening  # noqa: PLC0415

    where = require_service(service)
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"--port: {port} is not from 1 to 65535")
    logins = Logins()
    file = logins.file(where.name, account)
    brought_seal()  # what is wrong with it is told now, and not when the person has logged in
    client = Client(*_identity(where, _known(file), client_id, _given_secret(client_secret_file)))
    with listening(where.port if port is None else port) as loopback:
        attempt = Attempt.begin(where.redirect.format(port=loopback.port), loopback.state)
        _send_browser(where, attempt.address(where, client), is_wanted=not no_browser)
        grant = exchange(where, client, attempt, loopback.wait(where.title, _TIMEOUT_S))
    assert grant.refresh_token is not None, "exchange sees to it"
    with file.locked():
        file.save(logins.login_of(client, grant, grant.refresh_token))
    if json:
        emit_json({"service": where.name, "account": account, "client_id": client.id})
        return ExitCode.OK
    say(f"Logged in to {where.title}, as account {account!r} of this user on this machine.")
    option = "" if account == DEFAULT_ACCOUNT else f" --option account={account}"
    say(f"Add a remote there with: vaultfs remote add VAULT NAME {where.name}:FOLDER{option}")
    return ExitCode.OK


def logout(service: str, /, *, account: str = DEFAULT_ACCOUNT, json: bool = False) -> int:
    """Forget a login, and have the service end it. Remotes there stay, and need another login.

    Args:
        service: gdrive, dropbox or onedrive.
        account: What the account is called.
        json: Print JSON.
    """
    where = require_service(service)
    logins = Logins()
    file = logins.file(where.name, account)
    if not file.path.exists():
        raise UsageError(f"nobody has logged in to {where.title} as {account!r} on this machine")
    is_revoked = False
    problem = ""
    try:
        is_revoked = _revoke(where, logins, account)
    except (RemoteError, IntegrityError) as error:
        problem = str(error)
    with file.locked():
        file.remove()
    if problem:
        note(f"warning: {problem}")
    if json:
        emit_json({"service": where.name, "account": account, "is_revoked": is_revoked})
    elif is_revoked:
        say(f"Logged out of {where.title}: the login is forgotten here, and has ended there.")
    elif problem:
        say(f"Forgot the login to {where.title}.  See whether it has ended there: {where.permissions}")
    else:
        say(f"Forgot the login to {where.title}.  It has not ended there; end it at {where.permissions}")
    return ExitCode.PARTIAL if problem else ExitCode.OK


def _revoke(service: OAuthService, logins: Logins, account: str) -> bool:
    """Have the service end a login; False if it has no way to."""
    from vaultfs.remotes.oauth import revoke  # noqa: PLC0415  # see above

    # An access token that counts today; asking for it may bring another refresh token, which is the one to revoke.
    access_token = logins.access_token(service.name, account).text if service.revoke_own_url else ""
    known = logins.file(service.name, account).load()
    return known is not None and revoke(service, refresh_token=known.refresh_token, access_token=access_token)


def _known(file: LoginFile) -> Login | None:
    """The login that there is; one that does not open is about to be replaced."""
    try:
        return file.load()
    except IntegrityError as error:
        note(f"warning: {error}")
        return None


def _identity(
    service: OAuthService, known: Login | None, given_id: str | None, given_secret: str | None
) -> tuple[str, str | None]:
    """Id and secret of the client that asks for access: what was given now, else what was remembered.

    Raises:
        UsageError: something is missing, or makes no sense.
    """
    identity = given_id or os.environ.get(ID_VARIABLE) or (known.client_id if known is not None else None)
    if identity is None:
        raise UsageError(
            f"vaultfs has no client id at {service.title} of its own: make one at {service.console} "
            f"(docs/cli/remote.md tells how), and give it with --client-id or {ID_VARIABLE}; it is remembered",
        )
    if len(identity) > _LARGEST_ID or not all("!" <= character <= "~" for character in identity):
        raise UsageError(f"a client id has at most {_LARGEST_ID} printable characters, and no spaces")
    secret = given_secret
    if secret is None and known is not None and known.client_id == identity:
        secret = known.client_secret
    if secret is None and service.has_secret:
        raise UsageError(
            f"{service.title} wants the client's secret as well: give it with --client-secret-file or {SECRET_VARIABLE}"
        )
    return identity, secret


def _given_secret(path: Path | None) -> str | None:
    """The client's secret from its file or the environment; no child of ours shall see it there."""
    variable = os.environ.pop(SECRET_VARIABLE, None)
    if path is not None:
        from vaultfs.cli.secret_sources import obtain_text  # noqa: PLC0415  # imports ciphers

        return obtain_text(path, "--client-secret-file")
    return variable or None


def _send_browser(service: OAuthService, address: str, *, is_wanted: bool) -> None:
    """Have the person go to the service; the address is shown in any case, as no browser tells whether it was seen."""
    note(f"to give vaultfs access to {service.title}, open this address in a browser on this machine:")
    note(address)
    if is_wanted and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        import webbrowser  # noqa: PLC0415  # looks for browsers

        webbrowser.open(address)
    note(f"waiting for the answer, for at most {_TIMEOUT_S / 60:g} minutes; Ctrl-C ends it")
