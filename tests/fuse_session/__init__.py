"""Tests of the FUSE session layer with a filesystem in memory."""
