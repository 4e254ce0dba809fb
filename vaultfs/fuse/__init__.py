"""The mounted folder: requests of the kernel in, answers of the vault out; the only importer of pyfuse3."""
