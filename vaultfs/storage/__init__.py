"""The vault's files on disk: segments, manifests, the lock.  Everything here sees ciphertext only and holds no key."""
