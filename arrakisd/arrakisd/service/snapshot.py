"""The operations on snapshots."""

from __future__ import annotations

import secrets
import time

import structlog
import trio

from arrakis_rpc import daemon_api as api
from arrakis_rpc.errors import AlreadyExistsError
from arrakis_rpc.guest_api import Nothing

from ..machines.events import Events
from ..machines.machine import Machine
from ..machines.states import VmState
from ..machines.supervisor import Supervisor
from ..machines.surroundings import Surroundings
from ..storage.manifest import Manifest
from ..storage.retention import expired
from . import describe
from .call import Call
from .pages import cut_page

log = structlog.get_logger()


class SnapshotOperations:
    """``snapshot.*``."""

    def __init__(self, surroundings: Surroundings, supervisor: Supervisor, events: Events) -> None:
        self._surroundings = surroundings
        self._paths = surroundings.paths
        self._store = surroundings.store
        self._supervisor = supervisor
        self._events = events
        self._being_taken: set[str] = set()

    async def take(self, machine: Machine, snapshot_id: str, label: str) -> Manifest:
        """Snapshot a VM under an id that nobody else has or is about to get."""
        if self._is_taken(snapshot_id):
            raise AlreadyExistsError(
                f"a snapshot '{snapshot_id}' exists already",
                vm=machine.name,
                hint="choose another id, or delete that snapshot",
            )
        with self._surroundings.quotas.new_snapshots([snapshot_id]):
            self._being_taken.add(snapshot_id)
            try:
                return await machine.snapshot(snapshot_id, label)
            finally:
                self._being_taken.discard(snapshot_id)

    def _is_taken(self, snapshot_id: str) -> bool:
        return snapshot_id in self._store.snapshots or snapshot_id in self._being_taken

    async def snapshot_create(self, params: api.SnapshotCreate, _: Call) -> api.SnapshotInfo:
        """Keep a VM as it is now."""
        machine = self._supervisor.get(params.vm)
        chosen = params.id or f"{_as_id(machine.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
        if params.id is None and self._is_taken(chosen):
            chosen += f"-{secrets.token_hex(2)}"
        manifest = await self.take(machine, chosen, params.label)
        self._events.publish("snapshot.created", machine.name, id=manifest.id)
        await self._delete_expired(manifest)
        return describe.snapshot(manifest)

    async def _delete_expired(self, newest: Manifest) -> None:
        """Delete what the settings do not keep; no failure of that is the caller's."""
        stand_on = {
            self._store.present_parent(machine.stands_on)
            for machine in self._supervisor.machines
            if machine.states.state is not VmState.STOPPED
        }
        spared = {newest.id, *filter(None, stand_on)}
        settings = self._surroundings.config.snapshots
        for one in expired(list(self._store.snapshots.values()), settings, spared):
            try:
                await trio.to_thread.run_sync(self._store.delete, one.manifest)
            except OSError as error:
                log.warning("a snapshot was not deleted", id=one.manifest.id, reason=str(error))
            else:
                log.info("snapshot deleted", id=one.manifest.id, setting=one.setting)
                self._events.publish(
                    "snapshot.deleted", one.manifest.vm, id=one.manifest.id, reason=one.setting
                )

    async def snapshot_list(self, params: api.Page, _: Call) -> api.SnapshotList:
        """List all snapshots, oldest first."""
        by_age = {f"{one.created:020.6f} {one.id}": one for one in self._store.snapshots.values()}
        snapshots, following = cut_page(by_age, params, describe.snapshot)
        return api.SnapshotList(snapshots=snapshots, next=following)

    async def snapshot_info(self, params: api.SnapshotId, _: Call) -> api.SnapshotInfo:
        """Describe one snapshot."""
        return describe.snapshot(self._store.snapshot(params.id))

    async def snapshot_delete(self, params: api.SnapshotDelete, _: Call) -> Nothing:
        """Delete a snapshot, with ``recursive`` also all that descend from it."""
        damaged = self._paths.snapshot(params.id)
        if damaged not in self._store.damaged:
            self._store.snapshot(params.id)
        doomed = [params.id]
        if params.recursive:
            for one in doomed:
                doomed += [child.id for child in self._store.children(one)]
        for one in reversed(doomed):
            if manifest := self._store.snapshots.get(one):
                await trio.to_thread.run_sync(self._store.delete, manifest)
        await trio.to_thread.run_sync(self._store.delete_damaged, damaged)
        return Nothing()


def _as_id(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())[:40].strip("-")
