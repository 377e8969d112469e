"""The life of machines under every driver: real QEMU, verified fakes, and what else is here.

A real cloud-hypervisor or Firecracker is used where ``ARRAKIS_CLOUD_HYPERVISOR`` or
``ARRAKIS_FIRECRACKER`` names its program, and a guest boots under KVM.
"""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import trio
from attrs import frozen
from real_daemon import processes_naming
from real_rig import RealRig, real_driver
from vmm_harness import VERSIONS, Fake, Rig, Stored

from arrakis_rpc.errors import ArrakisError, VmmError
from arrakisd.host.vmm.interface import SnapshotTarget
from arrakisd.host.vmm.qemu import QemuVmm
from arrakisd.host.vmm.registry import DRIVERS

PEEK = ("peek 1", "peek 2", "peek 3", "read 5000", "read 6000")
TEMPLATE_LAYER = f"{1:032x}"


@frozen
class Machines:
    """Machines of one driver, and the template to make them of."""

    rig: Rig | RealRig
    template: Stored


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Machines]:
    """Give a real hypervisor with a template, which is booted once."""

    @functools.cache
    def boot(kind: str) -> Machines:
        rig = RealRig(tmp_path_factory.mktemp("real"), *real_driver(kind))
        rig.prepare()
        return Machines(rig, trio.run(rig.boot_template))

    return boot


@pytest.fixture(
    params=[
        *(f"fake {kind}" for kind in VERSIONS),
        *(pytest.param(kind, marks=pytest.mark.vm) for kind in DRIVERS),
    ]
)
def machines(
    request: pytest.FixtureRequest, tmp_path: Path, real: Callable[[str], Machines]
) -> Iterator[Machines]:
    """Machines of each driver in turn; in the end no process, socket or lock of them is left."""
    kind = request.param
    if kind.startswith("fake "):
        fake = Rig(tmp_path, Fake(kind.removeprefix("fake "), tmp_path / "bin"))
        fake.prepare()
        made = Machines(fake, trio.run(fake.make_template))
    else:
        try:
            booted = real(kind)
        except ArrakisError as error:
            pytest.skip(f"{error.message} (ARRAKIS_{kind.upper().replace('-', '_')} names one)")
        assert isinstance(booted.rig, RealRig)
        made = Machines(RealRig.beside(booted.rig, tmp_path), booted.template)
    yield made
    assert processes_naming(tmp_path) == set()
    left = {path.name for path in (tmp_path / "vms").rglob("*")}
    assert not {name for name in left if name.endswith((".sock", ".lock"))}
    assert not left & {"dump", "frozen.raw"}


async def test_snapshots(machines: Machines) -> None:
    """A snapshot has what was there in its pause, the machine goes on, and siblings are apart."""
    rig, template = machines.rig, machines.template
    async with rig.woken("one", template, TEMPLATE_LAYER) as one:
        assert await rig.ask(one, *PEEK) == ["11", "0", "0", "55", "0"]
        await rig.ask(one, "poke 2 22", "write 5000 56")
        first, first_layer, facts = await rig.snapshot("one", 1, one, template)
        assert facts.changed_pages > 0
        await rig.ask(one, "poke 3 33", "write 6000 66")
        second, second_layer, _ = await rig.snapshot("one", 2, one, first)
        async with (
            rig.woken("two", first, first_layer) as two,
            rig.woken("three", second, second_layer) as three,
        ):
            assert await rig.ask(two, *PEEK) == ["11", "22", "0", "56", "0"]
            assert await rig.ask(three, *PEEK) == ["11", "22", "33", "56", "66"]
            await rig.ask(two, "poke 3 99", "write 6000 9")
            third, third_layer, _ = await rig.snapshot("two", 1, two, first)
            assert await rig.ask(one, *PEEK) == ["11", "22", "33", "56", "66"]
        async with rig.woken("four", third, third_layer) as four:
            assert await rig.ask(four, *PEEK) == ["11", "22", "99", "56", "9"]


async def test_template(machines: Machines) -> None:
    """What a machine writes is its own: its template stays what it was."""
    rig, template = machines.rig, machines.template
    async with rig.woken("one", template, TEMPLATE_LAYER) as one:
        assert await rig.ask(one, "poke 1 77", "write 5000 77") == ["done", "done"]
        assert await rig.ask(one, "peek 1", "read 5000") == ["77", "77"]
    async with rig.woken("two", template, TEMPLATE_LAYER) as two:
        assert await rig.ask(two, "peek 1", "read 5000") == ["11", "55"]


async def test_pause(machines: Machines) -> None:
    """A paused machine stays paused through a snapshot, and goes on when it is told to.

    Its snapshot's disk layer lies on the one that the machine was given it on, as all do.
    """
    rig, template = machines.rig, machines.template
    async with rig.woken("one", template, TEMPLATE_LAYER) as one:
        await rig.ask(one, "poke 2 22")
        await one.pause()
        stored, layer, _ = await rig.snapshot("one", 1, one, template)
        async with rig.woken("two", stored, layer) as two:
            assert await rig.ask(two, "peek 1", "peek 2") == ["11", "22"]
        await one.resume()
        assert await rig.ask(one, "peek 1", "peek 2") == ["11", "22"]
    argv = ["qemu-img", "info", "--output=json", str(rig.root / "layers" / layer / "disk.qcow2")]
    described = json.loads((await trio.run_process(argv, capture_stdout=True)).stdout)
    assert described["backing-filename"] == f"../../layers/{TEMPLATE_LAYER}/disk.qcow2"


async def test_death(machines: Machines) -> None:
    """A process that is killed is known to have ended so, and its machine wakes in another."""
    rig, template = machines.rig, machines.template
    async with rig.woken("one", template, TEMPLATE_LAYER) as one:
        one.kill()
        with trio.fail_after(30):
            end = await one.wait()
        assert not end.orderly
        assert "killed by signal 9" in end.how
    async with rig.woken("two", template, TEMPLATE_LAYER) as two:
        assert await rig.ask(two, "peek 1") == ["11"]


@pytest.mark.parametrize("machines", [pytest.param("qemu", marks=pytest.mark.vm)], indirect=True)
async def test_halt_that_nobody_asked_for(machines: Machines) -> None:
    """A guest that QEMU halts by itself, as it does where KVM cannot go on with it, is ended."""
    rig, template = machines.rig, machines.template
    async with rig.woken("one", template, TEMPLATE_LAYER) as one:
        assert isinstance(one, QemuVmm)
        await one.pause()
        await one.resume()
        assert await rig.ask(one, "peek 1") == ["11"]
        with suppress(VmmError):
            await one.qmp.execute("stop")
        with trio.fail_after(30):
            end = await one.wait()
        assert (end.orderly, end.how) == (False, "QEMU halted the guest, which cannot go on")


@pytest.mark.parametrize("machines", [pytest.param("qemu", marks=pytest.mark.vm)], indirect=True)
async def test_refused_snapshot(machines: Machines) -> None:
    """A snapshot that fails before its pause closes what it opened, and the machine goes on."""
    rig, template = machines.rig, machines.template
    async with rig.woken("one", template, TEMPLATE_LAYER) as one:
        directory = rig.directory("one")
        target = SnapshotTarget(
            directory / "state", directory / "pages", template.pages, directory / "no/layer"
        )
        gc.collect()
        gc.disable()  # it would close what nobody else does
        try:
            before = len(list(Path("/proc/self/fd").iterdir()))
            with pytest.raises(VmmError, match="no/layer"):
                await one.snapshot(target, nullcontext())
            assert len(list(Path("/proc/self/fd").iterdir())) == before
        finally:
            gc.enable()
        assert await rig.ask(one, *PEEK) == ["11", "0", "0", "55", "0"]
