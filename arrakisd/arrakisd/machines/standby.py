"""VMM processes that saved guests are woken in.

Most of what waking a guest takes is the start of its VMM process. A *standby* is one that was
launched ahead, on a template's memory file: it can take any guest that was saved on top of
this template.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import structlog
import trio

from arrakis_rpc.errors import VmmError
from arrakis_rpc.network_api import Egress

from ..host.files import fill_holes_in_memory, remove_tree
from ..host.net.interface import Nic
from ..host.vmm.hypervisors import Hypervisors
from ..host.vmm.interface import LaunchSpec, Vmm
from ..storage.manifest import Manifest
from .admission import PROCESS_MIB
from .pool import Pool, Ready, Stock
from .surroundings import Surroundings

_CLEANUP_DEADLINE = 10.0

log = structlog.get_logger()


class Standby(Ready):
    """A VMM process without a guest, with a network card and a directory of its own."""

    vmm: Vmm
    nic: Nic | None

    def __init__(self, template: Manifest, egress: Egress, directory: Path, *, ahead: bool) -> None:
        super().__init__(template)
        self.egress = egress
        self.directory = directory
        self.ahead = ahead

    @property
    def pid(self) -> int:
        """The process."""
        return self.vmm.pid


class Standbys(Stock[Standby]):
    """All VMM processes that saved guests are woken in, or may be."""

    def __init__(
        self,
        nursery: trio.Nursery,
        pool: Pool,
        surroundings: Surroundings,
        hypervisors: Hypervisors,
    ) -> None:
        super().__init__(nursery, pool, surroundings.config.pool.standby)
        self._config = surroundings.config
        self._paths = surroundings.paths
        self._store = surroundings.store
        self._network = surroundings.network
        self._hypervisors = hypervisors
        self._groups = surroundings.groups

    def memory_mib(self, _: Manifest) -> int:
        """As much as a process without a guest."""
        return PROCESS_MIB

    def prepare(self, template: Manifest) -> Standby:
        """Launch a process for whoever may come."""
        return self._launch(template, self._config.network.default_egress, ahead=True)

    @asynccontextmanager
    async def take(self, source: Manifest, egress: Egress) -> AsyncIterator[Standby]:
        """Give a process for a guest that was saved as ``source``, for the length of a block.

        Raises what makes it fail, inside of the block too.
        """
        template = self._store.template(source.template)
        self._pool.note_use(template)
        picked = self.pick(template, lambda one: self._network.suits(one.nic, egress))
        async with self.lend(picked or self._launch(template, egress, ahead=False)) as standby:
            log.info("VMM taken", pid=standby.pid, ahead=standby.ahead)
            yield standby

    def _launch(self, template: Manifest, egress: Egress, *, ahead: bool) -> Standby:
        directory = self._paths.vm(uuid4().hex)
        return self.launch(Standby(template, egress, directory, ahead=ahead), ahead=ahead)

    async def keep(self, standby: Standby, usable: Callable[[], None]) -> None:
        """Run the process; once it is taken, its end is its taker's affair."""
        driver = self._hypervisors.made(standby.template.shape.vmm).driver
        async with (
            self._files(standby),
            self._network.card(standby.egress) as nic,
            self._groups.group(standby.template.shape) as groups,
            driver.launch(self._launch_spec(standby, nic, groups)) as vmm,
        ):
            standby.vmm, standby.nic = vmm, nic
            if standby.ahead:
                await vmm.wait_ready()
                log.info("VMM launched ahead", pid=vmm.pid)
            usable()
            end = await vmm.wait()
            if standby not in self.waiting:
                await trio.sleep_forever()  # its taker knows, and may have questions
            raise VmmError("\n".join([end.how, *vmm.last_words()]))

    @asynccontextmanager
    async def _files(self, standby: Standby) -> AsyncIterator[None]:
        directory = standby.directory

        def make() -> None:
            fill_holes_in_memory(self._store.memory_file(standby.template))
            directory.mkdir(mode=0o700, parents=True)
            self._config.give_to_vmm(directory)

        try:
            await trio.to_thread.run_sync(make)
            yield
        finally:
            with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                await trio.to_thread.run_sync(remove_tree, directory)

    def _launch_spec(self, standby: Standby, nic: Nic | None, groups: Sequence[Path]) -> LaunchSpec:
        shape = standby.template.shape
        return LaunchSpec(
            directory=standby.directory,
            vcpus=shape.vcpus,
            memory_mib=shape.memory_mib,
            disk_mib=shape.disk_mib,
            memory_file=self._store.memory_file(standby.template),
            root_image=Path(shape.root_image),
            accelerator=shape.accelerator,
            identity=self._config.vmm_identity(),
            nic=nic,
            groups=groups,
        )
