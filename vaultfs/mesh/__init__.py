"""The mesh: peers that hold replicas of sealed segments and manifests for each other, and cannot read them.

``identity``, ``tls``, ``frames``, ``messages``     who is who, and how they speak (docs/mesh-protocol.md)
``pool_policy``, ``backoff``, ``pool``              connections, kept and shared
``placement``, ``repair_plan``, ``simulation``      who holds what, and what to do when that changes: pure
``server``, ``replicas``, ``grants``                the peer that stores for others
``client``, ``store``                               the vault's side; a mesh is a remote like any other
"""
