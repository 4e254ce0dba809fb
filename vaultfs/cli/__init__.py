"""The command line: one module per verb, which parses, calls the core, and prints."""
