"""vaultfs: an encrypted vault that mounts as a normal folder."""
