"""Tests of keys, key slots, the header, and sealing."""
