"""A control group for each VMM process, and one for all of a daemon's."""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import structlog
import trio

from ..host.cgroups import Groups, hierarchies, limits, open_groups, sweep
from ..host.files import is_in_memory
from ..settings.config import Config
from ..settings.paths import StatePaths
from ..storage.manifest import Shape

_MIB = 2**20
_REMOVAL_DEADLINE = 10.0
_VMM_MIB = 256  # of a process's own, for the most; idle it is a tenth
_TRANSLATIONS_MIB = 512  # the size of QEMU's translation cache (tb-size)
_TABLES = 32  # a part of the guest's memory: page tables, and what else grows with it
_THREADS = 256  # beside those of the vCPUs; QEMU has up to 64 for its files
# Of all VMMs together, for each processor, beside the 100 of the daemon: it answers in a few
# milliseconds then while they all compute, and in many times as many with an equal weight.
_WEIGHT = 25

log = structlog.get_logger()


class VmmGroups:
    """Makes the groups in which VMM processes run, where the host lets it."""

    def __init__(self, groups: Groups, config: Config, *, limits_memory: bool) -> None:
        self._groups = groups
        self._config = config
        self._limits_memory = limits_memory

    @classmethod
    def none(cls, config: Config) -> VmmGroups:
        """Give one that makes no groups."""
        return cls(Groups("none", [], None), config, limits_memory=False)

    def describe(self) -> tuple[str, str | None]:
        """Say what is limited, and what is missing."""
        there = ", ".join(self._groups.controllers) or "nothing"
        missing = self._groups.missing
        if "memory" in self._groups.controllers and not self._limits_memory:
            missing = "no limits of memory: the state directory is in memory itself"
        return f"{there} of each VMM in a group of its own", missing

    @asynccontextmanager
    async def group(self, shape: Shape) -> AsyncIterator[list[Path]]:
        """Make a group for a VMM process for the length of a block, in which it also ends.

        Gives the files that the process writes 0 to in order to be in it.
        """
        name = f"vmm-{uuid4().hex}"
        try:
            yield self._groups.make(name, self._limits(shape))
        finally:
            with trio.move_on_after(_REMOVAL_DEADLINE, shield=True):
                await trio.to_thread.run_sync(self._groups.remove, name)

    def _limits(self, shape: Shape) -> dict[str, str]:
        # Files count too, where the process was the first to read or write them. They are
        # dropped when room is needed, so only what cannot be dropped has to fit.
        memory = shape.memory_mib + shape.memory_mib // _TABLES + _VMM_MIB
        if shape.accelerator == "tcg":
            memory += _TRANSLATIONS_MIB
        return limits(
            memory=memory * _MIB if self._limits_memory else None,
            cpu_weight=100 * shape.vcpus,
            cpu_quota=self._config.limits.cpu_quota * shape.vcpus,
            threads=_THREADS + shape.vcpus,
        )


@contextmanager
def open_vmm_groups(config: Config, paths: StatePaths, memory_mib: int) -> Iterator[VmmGroups]:
    """Make the group that all VMMs are in, for the length of a block. Blocks.

    They may have so much memory together. What a daemon that was killed has left is removed:
    where its groups were is noted in the state directory before they are made.
    """
    name = _name(paths)
    sweep_groups(paths)
    trees = hierarchies()
    paths.groups.write_text("".join(f"{tree.own / name}\n" for tree in trees))
    limits_memory = not is_in_memory(paths.root)
    memory = memory_mib * _MIB if limits_memory else None
    cores = os.cpu_count() or 1
    groups = open_groups(name, trees, limits(memory, _WEIGHT * cores, 0, None))
    made = VmmGroups(groups, config, limits_memory=limits_memory)
    described, missing = made.describe()
    log.info("the kernel limits VMMs", what=described)
    if missing is not None:
        log.warning("VMMs are not limited as they should be", reason=missing)
    try:
        yield made
    finally:
        sweep_groups(paths)


def _name(paths: StatePaths) -> str:
    return f"arrakis-{zlib.crc32(bytes(paths.root.resolve())):08x}"


def sweep_groups(paths: StatePaths) -> None:
    """Remove the groups whose places were noted, and have our name. Blocks."""
    note, name = paths.groups, _name(paths)
    if not note.exists():
        return
    tops = [Path(line) for line in note.read_text().splitlines()]
    left = [top for top in tops if top.name == name and not sweep(top)]
    if not left:
        note.unlink()
    else:
        log.warning("control groups were not removed", places=[str(top) for top in left])
