"""Whether the daemon and what it runs are well, from what it knows already.

Nothing here waits or touches a VM: `system.health` is asked often, and by many.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import structlog
import trio

from arrakis_rpc.daemon_api import Problem

from ..machines.pool import Pool
from ..machines.supervisor import Supervisor
from ..machines.surroundings import Surroundings
from ..settings.health import LOW_DISK

_PERIOD = 10.0

log = structlog.get_logger()


class HealthWatch:
    """Gathers what is wrong. `run` looks at what cannot be told at once."""

    def __init__(self, surroundings: Surroundings, supervisor: Supervisor, pool: Pool) -> None:
        self._surroundings = surroundings
        self._supervisor = supervisor
        self._pool = pool
        self.free_bytes = shutil.disk_usage(surroundings.paths.root).free

    async def run(self) -> None:
        """Look at the disk now and then, until cancelled."""
        while True:
            root = self._surroundings.paths.root
            try:
                self.free_bytes = (await trio.to_thread.run_sync(shutil.disk_usage, root)).free
            except OSError as error:
                self.free_bytes = 0
                log.warning("the file system of the state cannot be asked", reason=str(error))
            await trio.sleep(_PERIOD)

    def problems(self) -> list[Problem]:
        """Say all that is not as it should be."""
        return [*self._of_machines(), *self._of_the_host()]

    def _of_machines(self) -> Iterator[Problem]:
        for machine in self._supervisor.machines:
            if machine.failure is not None:
                reason = machine.failure.reason.partition("\n")[0]
                yield Problem("vmm", f"VM '{machine.name}' failed: {reason}", machine.name)
            elif machine.unresponsive_since is not None:
                yield Problem("agent", f"VM '{machine.name}' does not answer", machine.name)

    def _of_the_host(self) -> Iterator[Problem]:
        state_dir = self._surroundings.config.state_dir
        if self.free_bytes < LOW_DISK:
            yield Problem("disk", f"{self.free_bytes // 2**20} MiB are free for {state_dir}")
        if (trouble := self._surroundings.network.trouble) is not None:
            yield Problem("firewall", trouble)
        if (failure := self._pool.failure) is not None:
            yield Problem("pool", f"what was made ready ahead failed: {failure}")
        for path, reason in self._surroundings.store.damaged.items():
            yield Problem("store", f"{path} is damaged: {reason}")
