"""Templates: a shape is booted once, and from then on restored."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio
from attrs import asdict, evolve, frozen

from arrakis_kernel import KernelFiles, find_kernel
from arrakis_rootfs.store import ImageStore
from arrakis_rpc.daemon_api import VmStart
from arrakis_rpc.errors import (
    ArrakisError,
    ExhaustedError,
    InvalidParamsError,
    NotFoundError,
    UnsupportedError,
    VmmError,
)
from arrakis_rpc.guest_api import Health, Nothing
from arrakis_rpc.network_api import Egress
from arrakis_rpc.resync import FIRST_TOKEN

from ..deadlines import deadline
from ..guest.agent import GuestAgent
from ..guest.exercise import exercise
from ..host.checksums import file_digest
from ..host.disks import active_layer, make_blank_disk, make_empty_layer
from ..host.files import is_nearly_full, no_room, room_needed
from ..host.net.interface import Nic
from ..host.vmm.hypervisors import AUTO, Hypervisors
from ..host.vmm.interface import Boot, LaunchSpec, Vmm
from ..settings.config import Config, host_memory_mib
from ..storage.images import translated
from ..storage.manifest import DEVICE_STATE, EMPTY_LAYER, MEMORY, Manifest, Shape, new_layer_id
from ..storage.store import Store
from .admission import Need
from .surroundings import Surroundings

# IPv6 on the loopback only: the network drops it, and without it a start is shorter.
COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet reboot=t tsc=reliable no_timer_check "
    "sysctl.net.ipv6.conf.default.disable_ipv6=1"
)
_HEALTH_PERIOD = 1.0
_CONNECTED_TO_NOTHING = Egress("none")

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
        hypervisors: Hypervisors,
    ) -> None:
        self._surroundings = surroundings
        self._store = surroundings.store
        self._network = surroundings.network
        self._images = images
        self._hypervisors = hypervisors
        self._booting: list[str] = []
        self._building: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    @property
    def _config(self) -> Config:
        return self._surroundings.config

    async def plan(self, request: VmStart) -> Plan:
        """Decide on the shape of a VM: what was asked for, defaults for the rest.

        A default is no less memory than the image needs.
        Raises `NotFoundError` for a missing image, file or hypervisor, `ExhaustedError` for more
        memory than the host has, `UnsupportedError` for a hypervisor that cannot be used here.
        """
        hypervisor = await self._hypervisors.get(request.vmm)
        image, digest, path, least_mib = await self._root_image(request)
        memory_mib = request.memory_mib or max(self._config.memory_mib, least_mib)
        if memory_mib > host_memory_mib():
            raise ExhaustedError(
                f"{memory_mib} MiB of memory were asked for, this host has {host_memory_mib()}",
                hint="ask for less with memory_mib",
            )
        kernel, initramfs, kernel_digest = await self._kernel(request)
        shape = Shape(
            image=image,
            image_digest=digest,
            root_image=str(path),
            kernel_digest=kernel_digest,
            vcpus=request.vcpus or self._config.vcpus,
            memory_mib=memory_mib,
            disk_mib=request.disk_mib or self._config.disk_mib,
            vmm=hypervisor.name,
            vmm_version=hypervisor.version,
            accelerator=hypervisor.verdict.accelerator,
            network=self._network.kind,
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

    async def _root_image(self, request: VmStart) -> tuple[str, str, Path, int]:
        """Give name, digest, path, and how much memory it needs at least."""
        if request.rootfs is not None:
            path = _existing(request.rootfs, "rootfs")
            return path.name, await trio.to_thread.run_sync(file_digest, path), path, 0
        with translated():
            image = await trio.to_thread.run_sync(
                self._images.resolve, request.image or self._config.image
            )
        least_mib = image.details.memory_mib or 0
        return image.name or image.digest, image.digest, image.path, least_mib

    async def find_image(self, shape: Shape) -> Path:
        """Give the root image that is here of what another daemon saved; `UnsupportedError`."""
        for one in (*self._store.templates.values(), *self._store.snapshots.values()):
            if one.shape.image_digest == shape.image_digest:
                return Path(one.shape.root_image)
        try:
            with translated():
                image = await trio.to_thread.run_sync(self._images.resolve, shape.image_digest)
        except (NotFoundError, InvalidParamsError) as error:
            raise UnsupportedError(
                f"its image '{shape.image}' ({shape.image_digest[:12]}) is not here",
                hint="archives have no images: copy or build the same one on this host",
            ) from error
        return image.path

    async def check_compatible(self, manifest: Manifest, vmm: str | None = None) -> None:
        """Raise `UnsupportedError` where this daemon cannot wake a saved guest.

        ``vmm`` is the hypervisor that the caller wants it to be woken by, if any.
        """
        shape, network = manifest.shape, self._network.kind
        if shape.network != network:
            raise UnsupportedError(
                f"'{manifest.id}' was saved with network '{shape.network}', this daemon has "
                f"'{network}'",
                hint="a guest cannot change its network card: set mode in [network]",
            )
        saved = f"{shape.vmm} {shape.vmm_version} ({shape.accelerator})"
        if vmm not in (None, AUTO, shape.vmm):
            raise _other_hypervisor(manifest.id, saved, f"{vmm} was asked for", vmm)
        try:
            hypervisor = await self._hypervisors.get(shape.vmm)
        except ArrakisError as error:
            problem = f"that cannot be used here: {error.message}"
            raise _other_hypervisor(manifest.id, saved, problem, "none", error.hint) from error
        if str(hypervisor) != saved:
            raise _other_hypervisor(
                manifest.id, saved, f"this host has {hypervisor}", str(hypervisor)
            )

    @property
    def image_digests(self) -> set[str]:
        """The images that something stands on which is stored, or is being booted."""
        stored = (*self._store.templates.values(), *self._store.snapshots.values())
        return {one.shape.image_digest for one in stored} | set(self._booting)

    async def keep_images(self) -> None:
        """Tell the image store, which others share, what is needed here; raises `OSError`."""
        digests = self.image_digests
        root = self._surroundings.paths.root
        await trio.to_thread.run_sync(self._images.keep, root, digests)

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
            self._booting.append(plan.shape.image_digest)
            try:
                with room_needed(self._surroundings.paths.root):
                    await self.keep_images()
                with structlog.contextvars.bound_contextvars(template=plan.id):
                    return await self._build_in_room(plan, progress)
            finally:
                self._booting.remove(plan.shape.image_digest)

    async def _build_in_room(self, plan: Plan, progress: Progress) -> Manifest:
        async with self._surroundings.quotas.disk(plan.shape.memory_mib):
            needed = Need.of(plan.shape)
            room = await self._surroundings.admission.room("template", needed, progress)
            try:
                return await self._build(plan, progress)
            finally:
                room.give_back()

    async def _build(self, plan: Plan, progress: Progress) -> Manifest:
        began = trio.current_time()
        shape, layer_id = plan.shape, new_layer_id()
        await trio.to_thread.run_sync(self._store.verify_image, shape)
        async with _room_to_grow(self._store) as work, self._store.scratch() as parts:
            await progress(f"booting image '{shape.image}' once, for all later starts")
            layer = active_layer(work, layer_id)
            memory = work / MEMORY
            await make_blank_disk(layer, shape.disk_mib)
            with memory.open("wb") as file:
                file.truncate(shape.memory_mib * 2**20)
            for path in (work, layer, memory):
                self._config.give_to_vmm(path)
            async with (
                self._network.card(_CONNECTED_TO_NOTHING) as nic,
                self._surroundings.groups.group(shape) as groups,
            ):
                spec = evolve(_launch_spec(plan, work, layer, nic, self._config), groups=groups)
                async with self._hypervisors.made(shape.vmm).driver.launch(spec) as vmm:
                    token, halted = await self._boot(vmm, work / DEVICE_STATE, progress)
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
                    halted=halted,
                    resync_token=token.hex(),
                    boot=boot,
                )
                published = await trio.to_thread.run_sync(
                    self._store.publish, parts, manifest, [], [layer_id]
                )
            log.info("template built", image=shape.image, boot=round(boot, 1))
            return published

    async def _boot(self, vmm: Vmm, device_state: Path, progress: Progress) -> tuple[bytes, float]:
        limit = self._config.boot_timeout
        with deadline(limit, "the boot of the template"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, vmm)
                await vmm.wait_ready()
                agent = GuestAgent("template", vmm.open_channel, FIRST_TOKEN)
                nursery.start_soon(agent.run, limit)
                await agent.wait_ready(limit)
                await progress("guest agent answers, waiting for the system to settle")
                while not (await _health(agent)).booted:  # noqa: ASYNC110 -- the guest is asked
                    await trio.sleep(_HEALTH_PERIOD)
                await exercise(agent, self._network.trial)
                async with agent.quiet():
                    token = agent.resync_token
                    halted = await vmm.save_template(device_state)
                nursery.cancel_scope.cancel()
        return token, halted


def _launch_spec(
    plan: Plan, work: Path, layer: Path, nic: Nic | None, config: Config
) -> LaunchSpec:
    return LaunchSpec(
        directory=work,
        vcpus=plan.shape.vcpus,
        memory_mib=plan.shape.memory_mib,
        disk_mib=plan.shape.disk_mib,
        memory_file=work / MEMORY,
        root_image=Path(plan.shape.root_image),
        accelerator=plan.shape.accelerator,
        identity=config.vmm_identity(),
        nic=nic,
        boot=Boot(plan.kernel, plan.initramfs, COMMAND_LINE, layer),
    )


def _other_hypervisor(
    saved_id: str, saved: str, problem: str, state: str | None, hint: str | None = None
) -> UnsupportedError:
    return UnsupportedError(
        f"'{saved_id}' was saved by {saved}, and {problem}",
        state=state,
        required=saved,
        hint=hint or "a saved guest can only be woken by the hypervisor that saved it",
    )


@asynccontextmanager
async def _room_to_grow(store: Store) -> AsyncIterator[Path]:
    """Say what a VMM cannot say: it is killed where its memory file has no room to grow."""
    async with store.scratch() as work:
        try:
            yield work
        except Exception as error:
            if is_nearly_full(work):
                raise no_room(work) from error
            raise


async def _watch(vmm: Vmm) -> None:
    end = await vmm.wait()
    raise VmmError("\n".join([f"while the template booted, {end.how}", *vmm.last_words()]))


async def _health(agent: GuestAgent) -> Health:
    health: Health = await agent.call("agent.health", Nothing())
    return health


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
