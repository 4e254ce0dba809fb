"""Everything bad that can happen to a mesh, and after each: a repair makes it sound, and nothing wrong was believed.

Real ``peer serve`` processes and real commands, on loopback or as hosts of a network of their own (`network`:
namespaces, and a switch that is told what to lose); hostile peers and callers are threads of the tests.
`Household.require_sound` is what must hold after each: no needed segment has fewer good copies than there should be, on
the disks of the peers; no object has other bytes than its name says; a new machine restores every file from the peers
alone; no connection is left at any peer.  After each command its pools are empty.  Time-outs are seconds here
(`machines.HASTY`); ``--long`` has them as people do, every pair of five peers, and the cases that are marked.

=============================================================  ==================================================
case                                                           test, here or in the directory that is named
=============================================================  ==================================================
five peers, any two killed or burnt in turn, the laptop too    test_five_peers
cut in mid-transfer and back: resumed, or not noticed          test_cut
cut for good: another peer, what is short is told              test_cut
one-way partitions, either way, of one peer and of all         test_cut
delay, loss, a slow line                                       test_slow_lines
half-open connections, a peer that lost its power while idle   test_slow_lines
a peer, the laptop, all lose their power in mid-transfer       test_power
what the power cut left is torn, too long, empty               test_power
full disk, before and while something comes; the reserve       test_power; mesh_replicas/test_full_disk
clocks decades off, of libraries in C too                      test_power
two machines: the same vault, two histories, at once           test_two_writers
slow-loris, garbage, oversized frames: callers                 test_hostile_callers; mesh_server, byte by byte
likewise: peers, in each phase                                 test_hostile_peers: RAW, SCRIPTS, Pretender
a peer that can be reached and never answers                   test_hostile_peers; mesh_connection/test_silences
wrong identity at an address                                   test_hostile_peers; mesh_server/test_tls_refusals
identity revoked in mid-transfer                               test_hostile_callers
orders to delete: unsigned, another's, replayed                test_hostile_callers; mesh_server/test_deleting
a peer that claims all, in lists and when asked                test_lying_peers
a peer that acknowledges and stores nothing                    test_lying_peers
a peer that lies in audits                                     test_lying_peers; mesh_audit
wrong bytes of whole segments and of parts                     test_lying_peers
bodies too long, endless, a byte now and then                  test_hostile_peers: Gives
a peer restored from an old backup                             test_lying_peers; mesh_witness
the pool's counters return to zero                             after every command here; mesh_pool
=============================================================  ==================================================
"""
