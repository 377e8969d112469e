"""A start that is cancelled at any of its checkpoints leaves nothing behind."""

from __future__ import annotations

import gc
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from emulation import emulating
from real_daemon import files_below

from arrakis_rpc.guest_api import ExecSpec
from arrakisd.host.net.registry import open_network
from arrakisd.machines.events import Events
from arrakisd.machines.pool import Pool
from arrakisd.machines.standby import Standbys
from arrakisd.machines.supervisor import Supervisor
from arrakisd.machines.surroundings import Surroundings
from arrakisd.machines.warm import WarmGuests
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig
from arrakisd.settings.paths import StatePaths
from arrakisd.storage.merging import Merger
from arrakisd.storage.store import Store

pytestmark = pytest.mark.vm

_NAME = "cancelled"
_NAMESPACE = f"arrakis-test-cancel-{os.getpid()}"
_MOST_STEPS = 2000


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task takes since the start began."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._step = step
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self._step:
            self._scope.cancel()


def leftovers(paths: StatePaths) -> dict[str, Any]:
    """What a VM of this process could leave: processes, descriptors, files, taps, rules."""
    pid = os.getpid()
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            children += (task / "children").read_text().split()
    qemus = [child for child in children if is_qemu(child)]
    return {
        "processes": qemus,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "files": sorted(files_below(paths.root, "vms", "scratch", "layers", "network")),
        "links": inside("ip", "-o", "link").count("\n"),
        "rules": inside("nft", "list", "ruleset"),
    }


def is_qemu(pid: str) -> bool:
    """Whether a child that is still there is a VMM."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def inside(*command: str) -> str:
    """Run a command in the namespace of the test."""
    argv = ["ip", "netns", "exec", _NAMESPACE, *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


async def settled(paths: StatePaths, before: dict[str, Any]) -> dict[str, Any]:
    """What is left when the pool of taps, which works in the background, is full again."""
    with trio.move_on_after(30):
        while (found := leftovers(paths)) != before:
            await trio.sleep(0.01)
    return found  # not looked at once more: the pool may be at work again


async def steady(paths: StatePaths) -> dict[str, Any]:
    """What there is when nothing of it changes any more."""
    gc.collect()  # what former tests have dropped may hold descriptors until then
    while True:
        before = leftovers(paths)
        await trio.sleep(1)
        if leftovers(paths) == before:
            return before


async def start_cancelled_at(supervisor: Supervisor, store: Store, step: int) -> tuple[bool, bool]:
    """Start a VM, cancel the caller at a step; tell if it was cancelled, and if the VM came up."""
    template = min(store.templates.values(), key=lambda one: one.created)
    came_up = False
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            with supervisor.reserve([_NAME]):
                await supervisor.wake(_NAME, template)
                came_up = True
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.steps >= step, came_up


async def test_a_start_cancelled_at_any_checkpoint_leaves_nothing(template_state: Path) -> None:
    """Wherever the caller is cancelled: no process, no file, no descriptor, and a free name."""
    paths = StatePaths(template_state)
    config = Config(state_dir=str(template_state), network=NetworkConfig(namespace=_NAMESPACE))
    identity = config.vmm_identity()
    store = Store(paths, identity[1] if identity else None)
    store.load()
    paths.vms.mkdir(exist_ok=True)
    hypervisors = emulating(config)
    async with (
        open_network(config.network, paths.network, "test") as network,
        trio.open_nursery() as nursery,
    ):
        surroundings = Surroundings(config, paths, store, network, Merger(config, store))
        pool = Pool(config.pool, store, hypervisors, surroundings.admission)
        standbys = Standbys(nursery, pool, surroundings, hypervisors)
        guests = WarmGuests(nursery, pool, surroundings, standbys)
        supervisor = Supervisor(nursery, surroundings, guests, pool, Events())
        await start_cancelled_at(supervisor, store, 1)  # threads and sockets of trio's own
        await supervisor.destroy_all()
        before = await steady(paths)
        for step in range(1, _MOST_STEPS):
            cancelled, came_up = await start_cancelled_at(supervisor, store, step)
            # Cancelled in its very last step a start may still succeed; its caller knows.
            assert bool(supervisor.machines) == came_up, f"cancelled at step {step}"
            await supervisor.destroy_all()
            assert await settled(paths, before) == before, f"cancelled at step {step}"
            if not cancelled:
                break
        else:
            pytest.fail(f"no start came up within {_MOST_STEPS} steps")
        assert step > 50, "the instrument saw too little of the start"

        with supervisor.reserve([_NAME]):
            machine = await supervisor.wake(_NAME, next(iter(store.templates.values())))
        result = await machine.agent.call("exec.run", ExecSpec(argv=["true"]))
        assert result.exit_code == 0
        await supervisor.destroy_all()
        nursery.cancel_scope.cancel()
