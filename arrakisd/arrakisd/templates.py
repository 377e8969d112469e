"""Templates: a shape is booted once, and from then on restored."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio
from attrs import asdict, evolve, frozen

from arrakis_kernel import KernelFiles, find_kernel
from arrakis_rootfs.store import ImageStore
from arrakis_rpc.daemon_api import VmStart
from arrakis_rpc.errors import ExhaustedError, NotFoundError, UnsupportedError, VmmError
from arrakis_rpc.guest_api import ExecSpec, Health, Nothing
from arrakis_rpc.resync import FIRST_TOKEN

from .agent import GuestAgent
from .config import host_memory_mib
from .deadlines import deadline
from .host.checksums import file_digest
from .host.disks import active_layer, make_blank_disk, make_empty_layer
from .host.vmm.interface import Boot, Driver, LaunchSpec, Vmm
from .identity import make_identity
from .image_service import translated
from .machine import Surroundings, new_layer_id
from .manifest import DEVICE_STATE, EMPTY_LAYER, MEMORY, Manifest, Shape

COMMAND_LINE = "console=ttyS0 panic=-1 quiet reboot=t tsc=reliable no_timer_check"
_HEALTH_PERIOD = 1.0

Progress = Callable[[str], Awaitable[None]]

log = structlog.get_logger()


@frozen
class Plan:
    """A shape, and the kernel to boot it with."""

    shape: Shape
    kernel: Path
    initramfs: Path

    @property
    def id(self) -> str:
        """Id of the template of this shape."""
        # Not by what it is called and where it lies, which may differ for the same content.
        decisive = evolve(self.shape, image="", root_image="")
        text = repr(sorted(asdict(decisive).items()))
        return hashlib.sha256(text.encode()).hexdigest()[:20]


class Templates:
    """Finds the template of a shape, or makes it."""

    def __init__(
        self,
        surroundings: Surroundings,
        images: ImageStore,
        driver: Driver,
        accelerator: str,
    ) -> None:
        self._surroundings = surroundings
        self._config = surroundings.config
        self._store = surroundings.store
        self._images = images
        self._driver = driver
        self._accelerator = accelerator
        self._building: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def plan(self, request: VmStart) -> Plan:
        """Decide on the shape of a VM: what was asked for, defaults for the rest.

        Raises `NotFoundError` for a missing image or file, `ExhaustedError` for more memory
        than the host has.
        """
        memory_mib = request.memory_mib or self._config.memory_mib
        if memory_mib > host_memory_mib():
            raise ExhaustedError(
                f"{memory_mib} MiB of memory were asked for, this host has {host_memory_mib()}",
                hint="ask for less with memory_mib",
            )
        kernel, initramfs, kernel_digest = await self._kernel(request)
        image, digest, path = await self._root_image(request)
        shape = Shape(
            image=image,
            image_digest=digest,
            root_image=str(path),
            kernel_digest=kernel_digest,
            vcpus=request.vcpus or self._config.vcpus,
            memory_mib=memory_mib,
            disk_mib=request.disk_mib or self._config.disk_mib,
            vmm=self._driver.name,
            vmm_version=self._driver.version(),
            accelerator=self._accelerator,
        )
        return Plan(shape, kernel, initramfs)

    async def _kernel(self, request: VmStart) -> tuple[Path, Path, str]:
        built = find_kernel(Path(self._config.cache_dir))
        kernel = request.kernel or self._config.kernel
        initramfs = request.initramfs or self._config.initramfs
        if built is None and not (kernel and initramfs):
            raise NotFoundError(
                f"there is no guest kernel in {self._config.cache_dir}",
                hint="scripts/setup fetches it; or set 'kernel' and 'initramfs'",
            )
        kernel_path, kernel_digest = await _chosen(kernel, "kernel", built, "vmlinux")
        initramfs_path, initramfs_digest = await _chosen(initramfs, "initramfs", built, "initramfs")
        parts = f"{kernel_digest} {initramfs_digest} {COMMAND_LINE}"
        return kernel_path, initramfs_path, hashlib.sha256(parts.encode()).hexdigest()

    async def _root_image(self, request: VmStart) -> tuple[str, str, Path]:
        if request.rootfs is not None:
            path = _existing(request.rootfs, "rootfs")
            return path.name, await trio.to_thread.run_sync(file_digest, path), path
        with translated():
            image = await trio.to_thread.run_sync(
                self._images.resolve, request.image or self._config.image
            )
        return image.name or image.digest, image.digest, image.path

    def check_compatible(self, manifest: Manifest) -> None:
        """Raise `UnsupportedError` where this daemon cannot wake a saved guest."""
        saved = (manifest.shape.vmm, manifest.shape.vmm_version, manifest.shape.accelerator)
        here = (self._driver.name, self._driver.version(), self._accelerator)
        if saved != here:
            raise UnsupportedError(
                f"'{manifest.id}' was saved under {' '.join(saved)}, this daemon runs "
                f"{' '.join(here)}",
                hint="a saved guest can only be woken by the hypervisor that saved it",
            )

    async def ensure(self, plan: Plan, progress: Progress) -> Manifest:
        """Give the template of a plan, booting it first if there is none.

        Callers that need the same one wait for one build; if that is cancelled or fails, the
        next of them builds.
        """
        if found := self._store.templates.get(plan.id):
            return found
        async with self._building[plan.id]:
            if found := self._store.templates.get(plan.id):
                return found
            self._store.require_undamaged(self._surroundings.paths.template(plan.id))
            return await self._build(plan, progress)

    async def _build(self, plan: Plan, progress: Progress) -> Manifest:
        began = trio.current_time()
        shape, layer_id = plan.shape, new_layer_id()
        with self._store.scratch() as work, self._store.scratch() as parts:
            await progress(f"booting image '{shape.image}' once, for all later starts")
            layer = active_layer(work, layer_id)
            memory = work / MEMORY
            await make_blank_disk(layer, shape.disk_mib)
            with memory.open("wb") as file:
                file.truncate(shape.memory_mib * 2**20)
            for path in (work, layer, memory):
                self._config.give_to_vmm(path)
            spec = LaunchSpec(
                name="template",
                directory=work,
                vcpus=shape.vcpus,
                memory_mib=shape.memory_mib,
                memory_file=memory,
                root_image=Path(shape.root_image),
                disk=layer,
                accelerator=shape.accelerator,
                source=Boot(plan.kernel, plan.initramfs, COMMAND_LINE),
                identity=self._config.vmm_identity(),
            )
            async with self._driver.launch(spec) as vmm:
                token = await self._boot(vmm, work / DEVICE_STATE, progress)
            boot = trio.current_time() - began
            await progress("storing the template")
            with self._store.hold([layer_id]):
                self._store.freeze_layer(layer_id, layer)
                await make_empty_layer(parts / EMPTY_LAYER, layer_id, shape.disk_mib)
                for name in (MEMORY, DEVICE_STATE):
                    shutil.move(work / name, parts / name)
                manifest = Manifest(
                    id=plan.id,
                    template=plan.id,
                    parent=None,
                    shape=shape,
                    created=time.time(),
                    resync_token=token.hex(),
                    boot=boot,
                )
                published = await trio.to_thread.run_sync(
                    self._store.publish, parts, manifest, [], [layer_id]
                )
            log.info("template built", template=plan.id, image=shape.image, boot=round(boot, 1))
            return published

    async def _boot(self, vmm: Vmm, device_state: Path, progress: Progress) -> bytes:
        limit = self._config.boot_timeout
        with deadline(limit, "the boot of the template"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, vmm)
                await vmm.start()
                agent = GuestAgent("template", vmm.open_channel, FIRST_TOKEN)
                nursery.start_soon(agent.run, limit)
                await agent.wait_ready(limit)
                await progress("guest agent answers, waiting for the system to settle")
                while not (await _health(agent)).booted:  # noqa: ASYNC110 -- the guest is asked
                    await trio.sleep(_HEALTH_PERIOD)
                await _exercise(agent)
                async with agent.quiet():
                    token = agent.resync_token
                    await vmm.save_template(device_state)
                nursery.cancel_scope.cancel()
        return token


async def _watch(vmm: Vmm) -> None:
    end = await vmm.wait()
    raise VmmError("\n".join([f"while the template booted, {end.how}", *vmm.last_words()]))


async def _health(agent: GuestAgent) -> Health:
    health: Health = await agent.call("agent.health", Nothing())
    return health


async def _exercise(agent: GuestAgent) -> None:
    """Do once what every restored VM will do first, so that its code is in memory."""
    await agent.call("identity.apply", make_identity("template"))
    await agent.set_clock()
    for command in (["true"], ["python3", "-c", "pass"], ["sync"]):
        await agent.call("exec.run", ExecSpec(argv=command))


async def _chosen(
    asked: str | None, kind: str, built: KernelFiles | None, attribute: str
) -> tuple[Path, str]:
    if asked is None:
        assert built is not None
        return getattr(built, attribute), built.digest
    path = _existing(asked, kind)
    return path, await trio.to_thread.run_sync(file_digest, path)


def _existing(path: str, kind: str) -> Path:
    if not Path(path).is_file():
        raise NotFoundError(
            f"there is no {kind} at {path}", hint="paths are those of the daemon's host"
        )
    return Path(path).resolve()
