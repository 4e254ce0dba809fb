"""Runs a program and writes down what it took: a process of its own, as small as can be.

Linux counts the memory of whoever starts a program into the program's own peak.

    python launch.py REPORT PROGRAM [ARGUMENT...]     REPORT gets seconds, seconds of processor time, KiB, exit code
"""

import os
import sys
import time

if __name__ == "__main__":
    start = time.perf_counter()
    pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall_s = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    with open(sys.argv[1], "w", encoding="ascii") as report:
        report.write(f"{wall_s} {usage.ru_utime + usage.ru_stime} {usage.ru_maxrss} {code}")
