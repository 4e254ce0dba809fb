"""All fakes together: a web in which the three drives and their authorization servers are played."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from . import accounts, dropbox, gdrive, onedrive
from .accounts import Accounts
from .api import Api
from .web import Request, Response, Web, serving

NAMES: Final = ("gdrive", "dropbox", "onedrive")


class Town:
    """The fakes.

    Attributes:
        web: that leads to them.
        apis: the drives, by name.
        accounts: who may use them, by name.
    """

    def __init__(self, web: Web) -> None:
        self.web = web
        self.gdrive, self.dropbox, self.onedrive = gdrive.Gdrive(), dropbox.Dropbox(), onedrive.Onedrive()
        self.apis: Mapping[str, Api] = {"gdrive": self.gdrive, "dropbox": self.dropbox, "onedrive": self.onedrive}
        self.accounts = {name: Accounts(name) for name in NAMES}
        for name, module in (("gdrive", gdrive), ("dropbox", dropbox), ("onedrive", onedrive)):
            self.apis[name].accepts = self.accounts[name].accepts
            for host in module.HOSTS:
                web.players[host] = self.apis[name]
            web.players[accounts.HOSTS[name][1]] = self.accounts[name]
        web.players["api.dropboxapi.com"] = self._dropbox

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to be here."""
        return self.web.environment

    def forget(self) -> None:
        """Everything is as at the beginning."""
        for api in self.apis.values():
            api.forget()
        for each in self.accounts.values():
            each.forget()
        self.web.asked.clear()

    def _dropbox(self, request: Request) -> Response:
        """One host for both."""
        is_about_tokens = request.path in {"/oauth2/token", "/2/auth/token/revoke"}
        return (self.accounts["dropbox"] if is_about_tokens else self.dropbox)(request)


@contextmanager
def living(where: Path) -> Iterator[Town]:
    """Run the fakes.

    Args:
        where: a directory for certificates.
    """
    hosts = {*gdrive.HOSTS, *dropbox.HOSTS, *onedrive.HOSTS, *(pair[1] for pair in accounts.HOSTS.values())}
    with serving(where, sorted(hosts)) as web:
        yield Town(web)
        assert web.strangers == [], "nobody but those who are played was asked for"
