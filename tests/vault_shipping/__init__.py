"""Tests of compaction: nothing lost, room given back."""
