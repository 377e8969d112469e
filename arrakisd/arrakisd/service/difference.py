"""What is different between stored guests."""

from __future__ import annotations

from arrakis_rpc import daemon_api as api

from ..deadlines import deadline
from ..guest.comparing import compare
from ..machines.supervisor import Supervisor
from ..machines.templates import Templates
from ..storage.manifest import Manifest
from ..storage.store import Store
from .call import Call

_DEADLINE = 120.0


class DifferenceOperations:
    """``snapshot.diff``."""

    def __init__(self, store: Store, supervisor: Supervisor, templates: Templates) -> None:
        self._store = store
        self._supervisor = supervisor
        self._templates = templates

    async def snapshot_diff(self, params: api.SnapshotPair, call: Call) -> api.SnapshotDifference:
        """Wake two stored guests, unseen and unconnected, and ask them what is different."""
        sources = [await self._stored(one) for one in (params.before, params.after)]
        await call.progress("waking both")
        with deadline(_DEADLINE, "comparing the two"):
            async with self._supervisor.aside(sources) as (before, after):
                await call.progress("comparing")
                return await compare(before.agent, after.agent)

    async def _stored(self, name: str) -> Manifest:
        if name in self._store.templates and name not in self._store.snapshots:
            manifest = self._store.template(name)
        else:
            manifest = self._store.snapshot(name)
        await self._templates.check_compatible(manifest)
        return manifest
