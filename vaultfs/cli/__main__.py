"""``python -m vaultfs.cli`` is the command ``vaultfs``."""

from __future__ import annotations

import sys

from vaultfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
