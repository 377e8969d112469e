"""The packet filter's library, which has a limit of its own."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, resource
from arrakisd.host.net import nftables

resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
nftables.apply("add table inet probe")
assert nftables.has_tables("absent") is False
nftables.apply("delete table inet probe")
try:
    nftables.apply("nonsense")
except OSError as error:
    assert "syntax error" in str(error)
for one in held:
    os.fstat(one)
print("lives")
"""


def test_a_daemon_with_many_open_files_lives() -> None:
    """More than a thousand clients and machines do not abort the process at its next rule."""
    argv = ["unshare", "--net", sys.executable, "-c", PROGRAM]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "lives\n"), ended.stderr
