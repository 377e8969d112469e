"""Control groups: how much memory, CPU time and how many threads a VMM may take.

Each VMM process is in a group of its own, in one that all of a daemon's are in, below the
daemon's own group. Version 2 of the kernel's interface has one tree of groups, version 1 one
for each controller; a host may have both, with some controllers in either.

The groups are made below wherever the daemon was put, by systemd for instance, and never
elsewhere. Version 2 wants no processes beside groups that have limits. So the daemon moves into
a group of its own there, which it may if nobody else is where it was (with systemd:
``Delegate=yes``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

CONTROLLERS = ("memory", "cpu", "pids")
_PERIOD = 100_000  # microseconds, of a CPU quota
_DAEMON = "daemon"
_REMOVAL = 2.0
_USUAL_SHARES = 1024  # those of one process of usual priority, in version 1

# Limits by the files of version 2. Those of version 1 have other names, and some other units.
Limits = Mapping[str, str]


def limits(
    memory: int | None, cpu_weight: int, cpu_quota: float, threads: int | None
) -> dict[str, str]:
    """Give the limits of a group: bytes, a weight (100 is usual), CPUs, threads; none for 0."""
    quota = int(cpu_quota * _PERIOD) if cpu_quota else "max"
    return {
        "memory.max": str(memory or "max"),
        "cpu.weight": str(min(10_000, cpu_weight)),
        "cpu.max": f"{quota} {_PERIOD}",
        "pids.max": str(threads or "max"),
    }


class Hierarchy:
    """One tree of groups in which some controllers are, and where in it this process is."""

    def __init__(self, own: Path, version: int, controllers: Sequence[str]) -> None:
        self.own = own
        self.version = version
        self.controllers = list(controllers)

    def make(self, name: str) -> None:
        """Make the group that others are to be in; raise `OSError` where that cannot be.

        Version 2: move this process out of the way, where it is alone.
        """
        top = self.own / name
        if self.version == 2:
            self._enable()
        top.mkdir(exist_ok=True)
        if self.version == 2:
            self._pass_on(top)

    def _enable(self) -> None:
        enabled = (self.own / "cgroup.subtree_control").read_text().split()
        if set(self.controllers) <= set(enabled):
            return
        if (self.own / "cgroup.type").exists():  # it does not in the root, which may have both
            leaf = self.own / _DAEMON
            if _processes(self.own) - {os.getpid()}:
                raise OSError(f"other processes are in {self.own}, beside which no limits can be")
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
        self._pass_on(self.own)

    def _pass_on(self, group: Path) -> None:
        words = " ".join(f"+{controller}" for controller in self.controllers)
        (group / "cgroup.subtree_control").write_text(words)

    def limit(self, group: Path, wanted: Limits) -> None:
        """Set those limits of a group that are of controllers in this tree."""
        for name, value in wanted.items():
            if name.partition(".")[0] in self.controllers:
                files = _in_version_1(name, value) if self.version == 1 else [(name, value)]
                for file, text in files:
                    (group / file).write_text(text)


def _in_version_1(name: str, value: str) -> list[tuple[str, str]]:
    if name == "memory.max":
        return [("memory.limit_in_bytes", "-1" if value == "max" else value)]
    if name == "cpu.weight":
        return [("cpu.shares", str(max(2, int(value) * _USUAL_SHARES // 100)))]
    if name == "cpu.max":
        quota, period = value.split()
        texts = (period, "-1" if quota == "max" else quota)
        return list(zip(("cpu.cfs_period_us", "cpu.cfs_quota_us"), texts, strict=True))
    return [(name, value)]


class Groups:
    """The groups of one daemon, all below one ``name`` in each tree."""

    def __init__(self, name: str, hierarchies: Sequence[Hierarchy], missing: str | None) -> None:
        self._name = name
        self._hierarchies = list(hierarchies)
        self.missing = missing

    @property
    def controllers(self) -> list[str]:
        """What can be limited."""
        return [one for hierarchy in self._hierarchies for one in hierarchy.controllers]

    @property
    def tops(self) -> list[Path]:
        """The group that all others are in, in each tree."""
        return [hierarchy.own / self._name for hierarchy in self._hierarchies]

    def make(self, name: str, wanted: Limits) -> list[Path]:
        """Make a group; give the files that a process writes 0 to in order to be in it.

        Takes less than a millisecond.
        """
        made = []
        for hierarchy, top in zip(self._hierarchies, self.tops, strict=True):
            group = top / name
            group.mkdir()
            hierarchy.limit(group, wanted)
            made.append(group / "cgroup.procs")
        return made

    def remove(self, name: str) -> None:
        """Remove a group, or what there is of it, whose processes have been ended. Blocks."""
        for top in self.tops:
            remove(top / name)


def open_groups(name: str, trees: Sequence[Hierarchy], wanted: Limits) -> Groups:
    """Make the groups that this process may make, with limits for all that will be in them.

    What it may not is told by ``missing``.
    """
    usable, problems = [], list[str]()
    for hierarchy in trees:
        try:
            hierarchy.make(name)
            hierarchy.limit(hierarchy.own / name, wanted)
            usable.append(hierarchy)
        except OSError as error:
            problems.append(error.strerror or str(error))
    there = {one for hierarchy in usable for one in hierarchy.controllers}
    lacking = [one for one in CONTROLLERS if one not in there]
    why = f" ({'; '.join(problems)})" if problems else ""
    return Groups(name, usable, f"no limits of {', '.join(lacking)}{why}" if lacking else None)


def hierarchies(proc: Path = Path("/proc/self")) -> list[Hierarchy]:
    """Find the trees that have the controllers, and this process's groups in them."""
    mounts = (proc / "mountinfo").read_text().splitlines()
    found = []
    for line in (proc / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        own = next((one for mount in mounts if (one := _place(mount, names, path))), None)
        if own is None:
            continue
        offered = names.split(",")
        if not names:
            with suppress(OSError):
                offered = (own / "cgroup.controllers").read_text().split()
        controllers = [one for one in CONTROLLERS if one in offered]
        if controllers:
            found.append(Hierarchy(own, 1 if names else 2, controllers))
    return found


def _place(mount: str, names: str, path: str) -> Path | None:
    """Where a group is, if a line of mountinfo (proc_pid_mountinfo(5)) is of its tree."""
    words = mount.split()
    kind, options = words[words.index("-") + 1], words[-1].split(",")
    is_its = set(names.split(",")) <= set(options) if names else kind == "cgroup2"
    if not kind.startswith("cgroup") or not is_its:
        return None
    root = words[3]  # what is mounted there: not the whole tree, in some containers
    below = path.removeprefix(root) if root != "/" else path
    return Path(words[4], below.lstrip("/"))


def _processes(group: Path) -> set[int]:
    return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}


def remove(group: Path) -> bool:
    """Remove a group, whose processes have ended; give whether it is gone. Blocks."""
    end = time.monotonic() + _REMOVAL
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return True
        except OSError:  # the last of a process goes a moment after it was waited for
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        else:
            return True


def sweep(top: Path) -> bool:
    """Remove a group with all that are in it; give whether it is gone. Blocks."""
    if top.is_dir():
        for group in top.iterdir():
            if group.is_dir():
                remove(group)
    return remove(top)
