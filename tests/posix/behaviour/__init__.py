"""What programs may expect of the folder, tested on a vault that is really mounted.

The package is not called ``posix`` itself, because the standard library has a module of that name.
"""
