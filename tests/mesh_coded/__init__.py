"""Segments as shares on peers in memory; and that keys of shares say what they must."""
