"""The mounted vault: what needs a kernel, or the request handlers."""
