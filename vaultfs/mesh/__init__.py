"""The mesh: peers that hold replicas of sealed segments and manifests for each other, and cannot read them.

``identity``, ``tls``, ``frames``, ``messages``, ``connection``   who is who, and how they speak (docs/mesh-protocol.md)
``pool``, ``pool_policy``, ``pool_queue``, ``backoff``            connections, kept and shared
``server``, ``conversation``, ``replicas``, ``grants``            the peer that stores for others
``placement``, ``repair_plan``, ``health``, ``needs``             who holds what, and what is lacking
``book``, ``client``, ``survey``, ``store``                       the machine with the vault; a mesh is a remote
``writing``, ``reading``, ``repairing``, ``coded``, ``erasure``   copies and shares, made and mended
``auditor``, ``witnessing``                                       peers that do not tell the truth
"""
