"""How machines fail under the drivers that talk HTTP: clearly, and leaving nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from vmm_harness import Rig, Stored, ask

from arrakis_rpc.errors import DeadlineError, ExhaustedError, UnsupportedError, VmmError
from arrakis_rpc.guest_api import ExecSpec
from arrakisd.host.net.interface import UserNic
from arrakisd.host.vmm import api_vmm, vsock_channel
from arrakisd.host.vmm.errands import copy_sparse
from arrakisd.machines.machine import Machine
from arrakisd.wire.peer import domain_error_in

SAVE = {
    "cloud-hypervisor": ["PUT /vm.pause", "PUT /vm.snapshot"],
    "firecracker": ["PATCH /vm", "PUT /snapshot/create"],
}
SLOW = {
    "cloud-hypervisor": ["GET /vmm.ping", "PUT /vm.boot", "PUT /vm.restore", "PUT /vm.snapshot"],
    "firecracker": ["GET /version", "PUT /actions", "PUT /snapshot/load", "PUT /snapshot/create"],
}


async def failure(act: Any, *arguments: Any) -> VmmError:
    """Give the error that something ends with."""
    with pytest.RaisesGroup(VmmError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        await act(*arguments)
    error = domain_error_in(caught.value)
    assert isinstance(error, VmmError)
    return error


def steps(rig: Rig, since: int) -> list[str]:
    """Give the requests since the n-th, each once."""
    return list(dict.fromkeys(call.name for call in rig.fake.calls()[since:]))


async def test_full_disk_in_another_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a disk is full is understood whatever language the host's programs speak."""
    program = tmp_path / "cp"
    program.write_text(
        '#!/bin/sh\n[ "$LC_ALL" = C ] && echo "cp: No space left on device" >&2 ||\n'
        'echo "cp: Auf dem Gerät ist kein Speicherplatz mehr verfügbar" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(ExhaustedError, match="No space left"):
        await copy_sparse(tmp_path / "from", tmp_path / "to", None)


async def test_death_at_every_step(rig: Rig) -> None:
    """Whatever request it dies at, that is an error with its last words, and nothing is left."""
    template = await rig.make_template()
    boot = steps(rig, 0)
    number = len(rig.fake.calls())
    async with rig.woken("whole", template, f"{1:032x}"):
        wake = steps(rig, number)
    for step in boot:
        shutil.rmtree(rig.directory("boot"))
        await dies(rig, "die_at", step, rig.make_template)
        assert sockets(rig) == [], step
    shutil.rmtree(rig.directory("boot"))
    await dies(rig, "die_after", boot[1], rig.make_template)
    for at, step in enumerate(wake):
        await dies(rig, "die_at", step, wake_up, rig, f"wake{at}", template)
        assert sockets(rig) == [], step
    for at, step in enumerate(SAVE[rig.fake.kind]):
        async with rig.woken(f"save{at}", template, f"{1:032x}") as vmm:
            await dies(rig, "die_at", step, rig.snapshot, f"save{at}", 1, vmm, template)
            assert not (await vmm.wait()).orderly
            assert vmm.last_words()[-1] == "fake: dying as told"
            assert sockets(rig) != []
        assert sockets(rig) == [], step
    await wake_up(rig, "again", template)


def sockets(rig: Rig) -> list[Path]:
    """Give the sockets of machines, and what locks them."""
    return list((rig.root / "vms").rglob("*.sock*"))


async def dies(rig: Rig, how: str, step: str, act: Any, *arguments: Any) -> None:
    """Let the VMM die in the middle of something, and check what is said of it."""
    rig.fake.set(**{how: step})
    error = await failure(act, *arguments)
    assert "was killed by signal 9" in error.message, step
    assert "fake: dying" in error.message, step
    rig.fake.set()


async def wake_up(rig: Rig, name: str, template: Stored) -> None:
    async with rig.woken(name, template, f"{1:032x}") as vmm:
        await ask(vmm, "peek 1")


async def test_death_at_the_start(rig: Rig) -> None:
    """A VMM that ends before it can be called is an error with its last words."""
    rig.fake.set(die_at="start")
    error = await failure(rig.make_template)
    assert "exited with status 1" in error.message
    assert "fake: dying at the start" in error.message


@pytest.mark.parametrize("number", range(2))
async def test_refused_snapshot(rig: Rig, number: int) -> None:
    """After a snapshot that the VMM refused the machine goes on, and the next one succeeds."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        rig.fake.set(refuse_at=SAVE[rig.fake.kind][number])
        error = await failure(rig.snapshot, "one", 1, vmm, template)
        assert "refused as told" in error.message
        rig.fake.set()
        assert await ask(vmm, "poke 2 22", "write 6000 66") == ["done", "done"]
        (rig.directory("one") / "1.qcow2").unlink()
        stored, layer, facts = await rig.snapshot("one", 1, vmm, template)
        assert facts.changed_pages == 1
    async with rig.woken("two", stored, layer) as vmm:
        assert await ask(vmm, "peek 2", "read 6000") == ["22", "66"]


@pytest.mark.parametrize("number", range(4))
async def test_silence(rig: Rig, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VMM that does not answer is ended when its time is up, and the error says so."""
    template = await rig.make_template()
    monkeypatch.setattr(api_vmm, "_ANSWER_DEADLINE", 2.0)
    monkeypatch.setattr(api_vmm, "_START_DEADLINE", 2.0)
    step = SLOW[rig.fake.kind][number]

    async def live() -> None:
        if number < 2:
            shutil.rmtree(rig.directory("boot"))
            await rig.make_template()
        async with rig.woken("one", template, f"{1:032x}") as vmm:
            await rig.snapshot("one", 1, vmm, template)

    rig.fake.set(silent_at=step)
    with pytest.RaisesGroup(DeadlineError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        await live()
    error = domain_error_in(caught.value)
    # On a busy host it may be an earlier request that is not answered in so little time.
    assert "did not answer P" in str(error) or "the start of" in str(error)
    assert sockets(rig) == []


async def test_power_off(rig: Rig) -> None:
    """A guest that powers itself off ends its VMM in order."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm, vmm.open_channel() as channel:
        await channel.send_all(b"exit 0\n")
        assert (await vmm.wait()).orderly


async def test_farewell(rig: Rig) -> None:
    """What a guest is told when its machine is stopped ends its VMM, whichever that is."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm, vmm.open_channel() as channel:

        async def obey(_: str, command: ExecSpec) -> None:
            assert command.argv[0] == "systemctl"
            await channel.send_all(f"{command.argv[1]}\n".encode())

        machine: Any = SimpleNamespace(
            name="one",
            agent=SimpleNamespace(call=obey),
            ended=vmm,
            _present=SimpleNamespace(vmm=vmm),
        )
        with trio.fail_after(10):
            await Machine._power_off(machine)
        assert (await vmm.wait()).orderly


@pytest.mark.parametrize(("stale", "reached"), [(1, True), (2, True), (3, False)])
async def test_stale_connection(
    rig: Rig, stale: int, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel whose number a woken guest takes for another's is opened with the next one."""
    monkeypatch.setattr(vsock_channel, "_GREETING_DEADLINE", 0.5)
    template = await rig.make_template()
    rig.fake.set(stale=str(stale))
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        if reached:
            assert await ask(vmm, "peek 1") == ["11"]
            return
        async with vmm.open_channel() as channel:
            with trio.move_on_after(3):  # the last try takes as long as its caller waits
                await channel.receive_some()
            assert not channel.has_reached


async def test_hang_up_while_connecting(rig: Rig) -> None:
    """A channel that is closed before the guest has answered stays so."""
    template = await rig.make_template()
    rig.fake.set(stale="1")
    async with (
        rig.woken("one", template, f"{1:032x}") as vmm,
        vmm.open_channel() as channel,
        trio.open_nursery() as nursery,
    ):

        async def hang_up() -> None:
            await trio.testing.wait_all_tasks_blocked()
            channel.hang_up()

        nursery.start_soon(hang_up)
        with trio.fail_after(2), pytest.raises(trio.ClosedResourceError):
            await channel.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await channel.send_all(b"peek 1\n")


async def test_nobody_in_the_guest(rig: Rig) -> None:
    """A channel to a guest where nobody listens breaks, and does not hang."""
    template = await rig.make_template()
    rig.fake.set(agent=str(rig.root / "nobody"))
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        for _ in range(2):
            async with vmm.open_channel() as channel:
                with pytest.raises(trio.BrokenResourceError, match="nobody listens"):
                    await channel.receive_some()


async def test_network_stack(rig: Rig) -> None:
    """A network card on a network stack of the VMM's own is refused: there is none."""
    template = await rig.make_template()
    with pytest.raises(UnsupportedError, match="network stack"):
        async with rig.woken("one", template, f"{1:032x}", nic=UserNic(restricted=True)):
            pass
    async with rig.woken("two", template, f"{1:032x}") as vmm:
        with pytest.raises(UnsupportedError, match="cannot lead"):
            await vmm.forward_port("127.0.0.1", 8080, 80)


async def test_long_name(rig: Rig) -> None:
    """A directory whose path is too long for a socket is refused, with what to do."""
    template = await rig.make_template()
    with pytest.raises(UnsupportedError, match="too long for a socket"):
        async with rig.woken("x" * 100, template, f"{1:032x}"):
            pass
