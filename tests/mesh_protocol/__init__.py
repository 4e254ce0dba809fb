"""Frames, messages and identities: the bytes, the bounds, and that docs/mesh-protocol.md says the same as the code."""
