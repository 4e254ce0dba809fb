"""The store contract and a whole backup over Ceph's radosgw, a real cluster on loopback.  Only with ``--ceph``.

``./scripts/test --ceph tests/remotes/ceph`` installs what Debian has of it and runs these tests alone.
"""
