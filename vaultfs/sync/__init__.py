"""The sidecar: copies sealed segments and manifests to remotes, and back.

It works on ciphertext only: it imports no key code, and needs no password.
"""
