"""Everything bad that can happen to a backup, and after each: the next sync succeeds, and the remote is clean.

Real processes, real mounts, and a store on loopback (`s3_double`) that speaks S3 and misbehaves at the n-th request.
``--long`` takes every signal in every part of every request, and disks of every size.

==============================================================  =================================================
case                                                            test, here or in the directory that is named
==============================================================  =================================================
wrong object, short, long, empty body, a page with 200, 10 GiB  test_answers: FETCHING; cli/test_restore, test_verify
PUT acknowledged but not stored, each in turn                   test_lost_and_secret; sync/test_upload_faults
vault.json replaced, acknowledged, and the old one is there     test_lost_and_secret
LIST that omits                                                 test_older_and_other; sync/test_upload_faults
LIST that repeats                                               sync/test_upload_faults
LIST that invents snapshots, names with ``..``                  test_answers
LIST in many pages, without end, of something else              test_answers, test_not_s3
an older valid head, an older header                            test_older_and_other
two heads with one parent                                       test_older_and_other; sync/test_histories
bad signature, unknown device                                   test_older_and_other; cli/test_restore
manifest nested 10^5 deep, of 64 MiB, of absurd segments        test_older_and_other; header: test_answers
429, 503 with and without Retry-After, resets, storms           test_answers: ANY; remotes/test_retrying
redirects without end, conflicts, answers without a length      test_not_s3
credentials refused (16)                                        test_answers: ANY, SENDING; remotes/test_s3
unreachable (17): refused, no name, no answer                   test_unreachable; remotes/test_s3
disk full or broken during restore, ulimit                      test_disks
the remote is full; the ledger's disk is full                   test_disks
the remote's disk is pulled out meanwhile                       test_disks; remotes/test_directory
symlink, FIFO, directory in an object's place                   test_disks; remotes/test_directory
clock ten years wrong, set back, refused by the server          test_lost_and_secret
the remote holds another vault, also from now on                test_answers, test_older_and_other; cli/test_sync
the remote has a newer format: header, manifest                 test_answers, test_older_and_other
two syncs at once; of two machines; one was killed              test_mounted
sync while it is unmounted, and the other way round             test_mounted
the daemon is killed before it answers, or later                test_mounted
Ctrl-C, SIGTERM, SIGKILL at any request, in mid-body            test_interrupted
likewise at any system call of a fetch or a ledger              sync/test_killed; restore: test_disks
a server that never answers, and Ctrl-C                         test_interrupted
invariant 6: canaries in remotes, ledgers, logs, requests       test_lost_and_secret
invariant 8: a head refers to present objects only              at every request of every test here
a part of the cluster dies in mid-sync                          remotes/ceph, with ``--ceph``
two objects of one name, certificates, TLS                      remotes/test_opendal, remotes/test_s3
==============================================================  =================================================
"""
