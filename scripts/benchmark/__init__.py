"""Measures vaultfs and other encrypted filesystems side by side: same machine, same input, in turn."""
