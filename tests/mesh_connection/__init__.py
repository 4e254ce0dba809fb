"""The caller's end of a connection, against a peer that says what a test tells it to."""
