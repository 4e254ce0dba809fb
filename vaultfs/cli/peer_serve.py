"""``vaultfs peer serve``: the daemon that holds copies of vaults for other machines.  It has no key of any vault."""

from __future__ import annotations

import os
from pathlib import Path

from vaultfs.cli.output import counted, error_line, note, printable
from vaultfs.cli.peer_grants import parse_quota
from vaultfs.cli.sizes import format_size
from vaultfs.errors import UsageError, VaultError
from vaultfs.mesh.addresses import parse_address
from vaultfs.mesh.discovery import require_discovery
from vaultfs.mesh.grants import Grants
from vaultfs.mesh.identity import require_identity
from vaultfs.mesh.places import default_store, grants_path, identity_path


def serve(
    *,
    store: Path | None = None,
    quota: str | None = None,
    listen: tuple[str, ...] = (),
    announce: bool = False,
    install_service: bool = False,
    remove_service: bool = False,
    no_enable: bool = False,
    json: bool = False,
) -> int:
    """Hold copies of vaults for the peers that were accepted, until Ctrl-C or SIGTERM.

    It runs in the foreground, as systemd and containers like it; --install-service has systemd run it. What is
    accepted or revoked meanwhile counts at once.

    Args:
        store: The directory for what is stored; $XDG_DATA_HOME/vaultfs/peer if not given.
        quota: What is stored in all at most, as in 2T; as much as the disk has, but for a reserve, if not given.
        listen: Where to listen, as HOST:PORT or [IPV6]:PORT; may be given several times. All addresses, port 7741, if
            not given. With port 0 the system chooses one.
        announce: Tell the local network that this peer is here; everybody there can hear it.
        install_service: Do not serve now; write a systemd service that does, with these options, and start it.
        remove_service: Stop the systemd service, and remove it. What is stored stays.
        no_enable: With --install-service, only write the file.
        json: Print JSON.
    """
    quota_bytes = parse_quota(quota)
    addresses = [parse_address(text, "--listen", may_be_any_port=True) for text in listen]
    root = Path(os.path.abspath(default_store() if store is None else store))  # noqa: PTH100  # without ".."
    if announce:
        require_discovery()
    if remove_service:
        from vaultfs.cli import peer_service  # noqa: PLC0415  # few ask for one

        if install_service or no_enable or announce or store is not None or quota is not None or listen:
            raise UsageError("--remove-service goes with nothing else")
        return peer_service.remove(json=json)
    identity = require_identity(identity_path())
    if install_service:
        from vaultfs.cli import peer_service  # noqa: PLC0415

        words = ["--store", str(root)]
        words += [] if quota is None else ["--quota", quota]
        words += [word for address in addresses for word in ("--listen", str(address))]
        words += ["--announce"] if announce else []
        return peer_service.install(root, words, enable=not no_enable, json=json)
    if no_enable:
        raise UsageError("--no-enable goes with --install-service")
    from vaultfs.cli.peer_daemon import run_daemon  # noqa: PLC0415  # trio takes long to load

    def tell() -> None:
        if not json:
            tell_store(root, quota_bytes)

    return run_daemon(identity, root, quota_bytes, addresses, announce=announce, json=json, on_listening=tell)


def tell_store(root: Path, quota_bytes: int | None) -> None:
    """Say where things are stored, how much, and for how many; where it listens is said when it does.

    Args:
        root: the directory.
        quota_bytes: of all together; None: there is none.
    """
    quota = "as much as the disk has" if quota_bytes is None else f"{format_size(quota_bytes)} at most"
    note(f"storing in {printable(str(root))}, {quota}")
    try:
        accepted = {grant.peer for grant in Grants(grants_path()).all()}
    except VaultError as error:  # it serves all the same, and takes up the file when it was mended
        error_line(f"warning: {error}")
        return
    note(
        f"{counted(len(accepted), 'peer')} accepted; 'vaultfs peer accepted' shows who"
        if accepted
        else "nobody is accepted yet: run 'vaultfs peer pair' or 'vaultfs peer accept ID' here"
    )
