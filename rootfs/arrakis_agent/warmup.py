"""Using each type of the protocol once, before the first call does.

The converter generates code for a type when it first meets it, which takes longer than a
whole command. Done here, at boot, it is part of the template that all machines come from.
"""

from __future__ import annotations

from arrakis_rpc import guest_api as g
from arrakis_rpc.converter import structure, unstructure

_STAT = g.FileStat(name="a", kind="file", size=0, mode=0, mtime=0.0, uid=0, gid=0)
_ZEROS = bytes(32)
_KEPT = 2 * 1024 * 1024

_SAMPLES: tuple[object, ...] = (
    g.Hello(versions=[1], token=_ZEROS),
    g.HelloResult(version=1, agent="", python=""),
    g.ExecSpec(argv=["true"], env={"A": "B"}, pty=g.Pty(), timeout=1.0),
    g.ExecResult(pid=1),
    _STAT,
    g.FilePath("a"),
    g.FileList("a"),
    g.FileListResult([_STAT], more=False),
    g.FileRead("a"),
    g.FileWrite("a"),
    g.FileMkdir("a"),
    g.FileRemove("a"),
    g.Identity(
        hostname="a",
        machine_id="0" * 32,
        entropy=_ZEROS,
        ssh_host_key=b"",
        ssh_host_key_public=b"",
        network=g.Network(mac="", address="", dns=[""]),
    ),
    g.Clock(realtime=0),
    g.Health(booted=True, uptime=0.0, load=0.0, memory_total=0, memory_available=0, processes=0),
    g.Nothing(),
)


def warm_up() -> None:
    """Convert a value of each type in both directions, and make room for chunks of data."""
    # The C library gives large blocks back to the kernel when they are freed, and each page
    # of the next one is a page fault: 200 for each MiB moved, which took half of the time.
    # From the size of what is freed here it learns to keep that much.
    bytes(_KEPT)
    for sample in _SAMPLES:
        structure(unstructure(sample), type(sample))
