"""Every test of the store contract, over Ceph.

The tests are those of `remotes.test_contract`; what differs are the fixtures that give them a store.
"""

from __future__ import annotations

import inspect

import pytest

from remotes import test_contract as contract

pytestmark = pytest.mark.ceph

_STORES = {"store", "conditional_store", "racing_store"}
_TESTS = {
    name: test
    for name, test in vars(contract).items()
    if name.startswith("test_") and _STORES & set(inspect.signature(test).parameters)
}
globals().update(_TESTS)
TestContract = contract.TestContract
objects = contract.objects


def test_the_contract_was_found() -> None:
    assert len(_TESTS) > 10
