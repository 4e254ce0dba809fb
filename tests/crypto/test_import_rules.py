"""Rules that import-linter cannot express: who may touch an AEAD, and that no function takes a nonce."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path

import vaultfs
import vaultfs.crypto

PACKAGE = Path(vaultfs.__file__).parent


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_one_module_alone_imports_ciphers() -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(".ciphers" in name for name in imported_names(path))
    }
    assert importers == {"crypto/aead.py"}


def test_only_the_crypto_package_and_identities_of_peers_import_cryptography() -> None:
    importers = {
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "cryptography" for name in imported_names(path))
    }
    assert {path.parts[0] for path in importers} == {"crypto", "mesh"}
    assert [str(path) for path in importers if path.parts[0] != "crypto"] == ["mesh/identity.py"]


def test_identities_of_peers_sign_and_encrypt_nothing() -> None:
    names = {name for name in imported_names(PACKAGE / "mesh" / "identity.py") if name.startswith("cryptography")}
    assert names
    allowed = (
        "cryptography.x509",
        "cryptography.exceptions.",
        "cryptography.hazmat.primitives.asymmetric.ed25519.",
        "cryptography.hazmat.primitives.serialization.",
    )
    assert [name for name in names if not name.startswith(allowed)] == []


def public_callables() -> Iterator[tuple[str, Callable[..., object]]]:
    for info in pkgutil.iter_modules(vaultfs.crypto.__path__, "vaultfs.crypto."):
        module = importlib.import_module(info.name)
        for name, item in vars(module).items():
            if getattr(item, "__module__", None) != info.name:
                continue
            if inspect.isfunction(item):
                yield f"{info.name}.{name}", item
            elif inspect.isclass(item):
                for member, function in inspect.getmembers(item, inspect.isroutine):
                    if getattr(function, "__module__", None) == info.name:
                        yield f"{info.name}.{name}.{member}", function


def test_no_function_takes_a_nonce() -> None:
    """The constructor of a cipher, sealing and opening are among those that are looked at."""
    seen = dict(public_callables())
    assert {"vaultfs.crypto.aead.seal_record", "vaultfs.crypto.aead.SegmentCipher.seal_into"} <= seen.keys()
    for name, function in seen.items():
        for parameter in inspect.signature(function).parameters:
            assert not {"nonce", "iv", "counter", "random"} & set(parameter.split("_")), name
