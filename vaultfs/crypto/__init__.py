"""Keys, key slots, and the sealing of chunks, manifests and records; no disk is touched but to hash one file."""
