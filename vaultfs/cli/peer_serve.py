"""``vaultfs peer serve``: the daemon that holds copies of vaults for other machines.  It has no key of any vault."""

from __future__ import annotations

import os
from pathlib import Path

from vaultfs.cli.peer_grants import parse_quota
from vaultfs.errors import UsageError
from vaultfs.mesh.addresses import parse_address
from vaultfs.mesh.discovery import require_discovery
from vaultfs.mesh.identity import require_identity
from vaultfs.mesh.places import default_store, identity_path


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

    return run_daemon(identity, root, quota_bytes, addresses, announce=announce, json=json)
