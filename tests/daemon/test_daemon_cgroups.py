"""Control groups, real ones where this host lets us make them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from arrakisd.host.cgroups import Groups, hierarchies, limits, open_groups, sweep
from arrakisd.host.processes import owned, spawn

_MIB = 2**20
_EATS = "x = bytearray(200 * 2**20); print('eaten', flush=True)"
_BREEDS = """
import threading, time
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError:
    print("enough", threading.active_count(), flush=True)
"""
_READS = """
import os, sys
with open(sys.argv[1], "wb") as file:
    for _ in range(200):
        file.write(bytes(2**20))
with open(sys.argv[1], "rb") as file:
    while file.read(2**20):
        pass
print("read", flush=True)
"""


@pytest.fixture
def groups() -> Iterator[Groups]:
    """Groups of this test alone."""
    made = open_groups(f"arrakis-test-{os.getpid()}", hierarchies(), limits(0, 100, 0, 0))
    try:
        if {"memory", "pids"} - set(made.controllers):
            pytest.skip(f"this host has {made.missing}")
        yield made
    finally:
        assert all(sweep(top) for top in made.tops)


async def outcome(groups: Groups, output: Path, wanted: dict[str, str], *program: str) -> Any:
    """Run a Python program in a group; give its exit status and what it printed."""
    joining = groups.make("one", wanted)
    try:
        argv = [sys.executable, "-S", "-c", *program]
        async with owned(spawn(argv, output=output, groups=joining)) as child:
            with trio.fail_after(60):
                status = await child.wait()
    finally:
        await trio.to_thread.run_sync(groups.remove, "one")
    assert not any(file.parent.exists() for file in joining)
    return status, output.read_text().split()


async def test_memory(groups: Groups, tmp_path: Path) -> None:
    """Who takes more memory than it may is killed; who has as much of files in memory is not."""
    little = limits(64 * _MIB, 100, 0, 0)
    status, printed = await outcome(groups, tmp_path / "a", little, _EATS)
    assert (status, printed) == (-9, [])
    assert await outcome(groups, tmp_path / "b", limits(0, 100, 0, 0), _EATS) == (0, ["eaten"])
    file = str(tmp_path / "file")
    assert await outcome(groups, tmp_path / "c", little, _READS, file) == (0, ["read"])


async def test_threads(groups: Groups, tmp_path: Path) -> None:
    """Who breeds has no more threads than it may, the first of them included."""
    few = limits(0, 100, 0, 20)
    assert await outcome(groups, tmp_path / "a", few, _BREEDS) == (0, ["enough", "20"])


async def test_born_inside(groups: Groups, tmp_path: Path) -> None:
    """A process is in its groups from its first instruction on, and in those of nobody else."""
    show = "print(open('/proc/self/cgroup').read().count('/one'))"
    _, (count,) = await outcome(groups, tmp_path / "a", limits(0, 300, 0.5, 0), show)
    assert int(count) == len(groups.tops)


def test_both_versions(tmp_path: Path) -> None:
    """Trees of both versions are found, also where only a part of one is mounted."""
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2/cgroup.controllers").write_text("cpu io pids\n")
    (tmp_path / "mountinfo").write_text(
        f"41 31 0:37 / {tmp_path}/v2 rw shared:1 - cgroup2 none rw\n"
        f"32 31 0:29 /docker/1 {tmp_path}/m rw - cgroup cgroup rw,seclabel,memory\n"
    )
    (tmp_path / "cgroup").write_text("4:memory:/docker/1/own\n1:name=systemd:/\n0::/\n")
    found = [(one.own, one.version, one.controllers) for one in hierarchies(tmp_path)]
    assert found == [(tmp_path / "m/own", 1, ["memory"]), (tmp_path / "v2", 2, ["cpu", "pids"])]


def test_nothing_to_make(tmp_path: Path) -> None:
    """A host without groups that we may make is told of, and has no limits."""
    (tmp_path / "mountinfo").write_text("")
    (tmp_path / "cgroup").write_text("0::/\n")
    none = open_groups("none", hierarchies(tmp_path), limits(0, 100, 0, 0))
    assert none.missing == "no limits of memory, cpu, pids"
    assert none.make("one", limits(1, 1, 1, 1)) == []
