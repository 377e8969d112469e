"""How many VMs and snapshots there may be, and how much on disk.

Each is checked before work is done, together with what others are about to make: of two
callers that want the last place, one gets it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from arrakis_rpc.errors import ExhaustedError

from ..host.files import allocated_bytes
from ..settings.limits import LimitsConfig
from ..settings.paths import StatePaths
from .store import Store

_MIB = 2**20


class Quotas:
    """What is there, what is about to be made, and how much of it the settings allow."""

    def __init__(self, limits: LimitsConfig, store: Store, paths: StatePaths) -> None:
        self.limits = limits
        self._store = store
        self._root = paths.root
        self._snapshots_to_be: set[str] = set()
        self._mib_to_be = 0
        self._measuring = trio.Lock()

    def check_vms(self, there: Collection[str], more: Collection[str]) -> None:
        """Raise `ExhaustedError` if, beside VMs that are there, not so many more may be."""
        _check(len(there), len(more), self.limits.vms, "VMs", "vms", "destroy one")

    @contextmanager
    def new_snapshots(self, ids: Collection[str]) -> Iterator[None]:
        """Make snapshots in a block; raise `ExhaustedError` if they are too many."""
        there = {*self._store.snapshots, *self._snapshots_to_be}
        most = self.limits.snapshots
        _check(len(there), len(set(ids) - there), most, "snapshots", "snapshots", "delete one")
        self._snapshots_to_be.update(ids)
        try:
            yield
        finally:
            self._snapshots_to_be.difference_update(ids)

    @asynccontextmanager
    async def disk(self, mib: int) -> AsyncIterator[None]:
        """Write up to so many MiB in a block; raise `ExhaustedError` if they are too many."""
        if self.limits.disk_mib:
            async with self._measuring:  # who comes second is to know of what the first may write
                used = await trio.to_thread.run_sync(allocated_bytes, self._root) // _MIB
                self._check_disk(used, mib)
                self._mib_to_be += mib
        else:
            self._mib_to_be += mib
        try:
            yield
        finally:
            self._mib_to_be -= mib

    def _check_disk(self, used: int, mib: int) -> None:
        most, others = self.limits.disk_mib, self._mib_to_be
        if not most or used + others + mib <= most:
            return
        by_others = f" and others are about to write {others}" if others else ""
        raise ExhaustedError(
            f"this may take {mib} MiB on disk; {used} of the {most} MiB that may be used are"
            f"{by_others}",
            hint="delete snapshots, images or templates, or raise disk_mib in [limits]",
        )


def _check(there: int, more: int, most: int, what: str, key: str, way_out: str) -> None:
    if most and more and there + more > most:
        raise ExhaustedError(
            f"there are {there} of the {most} {what} that there may be, and {more} more do not fit",
            hint=f"{way_out}, or raise {key} in [limits]",
        )
