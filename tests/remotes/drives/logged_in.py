"""A login as it is after ``vaultfs remote login``, without the ceremony."""

from __future__ import annotations

import msgspec

from vaultfs.cli.user_seal import user_seal
from vaultfs.remotes.oauth import Client, Grant
from vaultfs.remotes.oauth_logins import Logins
from vaultfs.remotes.tokens import DEFAULT_ACCOUNT, Login, LoginFile

from .accounts import CLIENT_ID, CLIENT_SECRET, Accounts


def log_in(accounts: Accounts, account: str = DEFAULT_ACCOUNT) -> LoginFile:
    """Log this user in.

    Args:
        accounts: where.
        account: its name here.
    """
    access, lasting = accounts.new_tokens()
    client = Client(CLIENT_ID, CLIENT_SECRET if accounts.name == "gdrive" else None)
    logins = Logins(user_seal)
    file = logins.file(accounts.name, account)
    file.save(logins.login_of(client, Grant(access, accounts.life_s, lasting), lasting))
    return file


def known(file: LoginFile) -> Login:
    """What is kept."""
    login = file.load()
    assert login is not None
    return login


def grow_older(file: LoginFile, age_s: float) -> None:
    """As if the access token had come so much earlier."""
    login = known(file)
    earlier = {"issued_at_s": login.issued_at_s - age_s, "renew_at_s": login.renew_at_s - age_s}
    file.save(msgspec.structs.replace(login, **earlier))
