"""Keys, key slots, and the sealing of chunks, manifests and records; no file is read or written here but by one hash."""
