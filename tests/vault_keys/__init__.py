"""Tests of key slots on disk, of rotation, and of their verbs."""
