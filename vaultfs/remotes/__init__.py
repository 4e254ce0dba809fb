"""Object stores that hold the ciphertext of vaults: one protocol, one module for each kind of store.

Nothing here has keys, or knows what the objects mean.
"""
