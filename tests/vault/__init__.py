"""The core under its own tests: files, names, faults, costs."""
