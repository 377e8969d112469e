"""The daemon's session with a real agent, through a hypervisor's vsock socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from vmm_harness import Rig

from arrakis_rpc.errors import GuestError
from arrakis_rpc.guest_api import ExecSpec
from arrakis_rpc.resync import FIRST_TOKEN
from arrakisd.guest.agent import _HANDSHAKE_DEADLINE, GuestAgent
from arrakisd.host.vmm import vsock_channel

DEADLINE = 20.0


@pytest.fixture
def agent_socket(tmp_path: Path) -> Iterator[Path]:
    """Run an agent as in a guest, but for what it listens on: its path is given."""
    path = tmp_path / "guest"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        arguments = [
            f"--listen-fd={listener.fileno()}",
            f"--state-dir={tmp_path / 'agent-state'}",
            f"--work-dir={tmp_path / 'agent-work'}",
            f"--environment={tmp_path / 'agent-environment'}",
        ]
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "arrakis_agent", *arguments],
            pass_fds=[listener.fileno()],
        )
    yield path
    process.terminate()
    process.wait(DEADLINE)


async def run(agent: GuestAgent, *argv: str) -> int:
    """Run a command in the guest, again if its session breaks in the middle."""
    with trio.fail_after(DEADLINE):
        while True:
            await agent.wait_ready(DEADLINE)
            try:
                result = await agent.call("exec.run", ExecSpec(argv=list(argv)))
            except GuestError:
                continue
            return int(result.exit_code)


async def test_first_call(rig: Rig, agent_socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call into a woken guest succeeds although nobody answers the first connection."""
    monkeypatch.setattr(vsock_channel, "_GREETING_DEADLINE", 0.5)
    template = await rig.make_template()
    rig.fake.set(agent=str(agent_socket), stale="1")
    async with rig.woken("one", template, f"{1:032x}") as vmm, trio.open_nursery() as nursery:
        agent = GuestAgent("one", vmm.open_channel, FIRST_TOKEN)
        nursery.start_soon(agent.run)
        spec = ExecSpec(argv=["sh", "-c", "exit 3"])
        assert (await agent.call_first("exec.run", spec, DEADLINE)).exit_code == 3
        nursery.cancel_scope.cancel()


async def test_late_agent(rig: Rig, agent_socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that never reached the guest does not cost the next one its token."""
    monkeypatch.setattr(vsock_channel, "_GREETING_DEADLINE", 0.1)
    template = await rig.make_template()
    rig.fake.set(agent=str(agent_socket), stale=str(vsock_channel._TRIES))
    async with rig.woken("one", template, f"{1:032x}") as vmm, trio.open_nursery() as nursery:
        agent = GuestAgent("one", vmm.open_channel, FIRST_TOKEN)
        nursery.start_soon(agent.run, 1.0)
        await agent.wait_ready(_HANDSHAKE_DEADLINE - 1)
        nursery.cancel_scope.cancel()


async def test_session(rig: Rig, agent_socket: Path) -> None:
    """The session goes on after a snapshot, and begins anew where that wakes, with its token."""
    template = await rig.make_template()
    rig.fake.set(agent=str(agent_socket))
    async with rig.woken("one", template, f"{1:032x}") as vmm, trio.open_nursery() as nursery:
        agent = GuestAgent("one", vmm.open_channel, FIRST_TOKEN)
        nursery.start_soon(agent.run)
        assert await run(agent, "sh", "-c", "exit 3") == 3
        async with agent.quiet():
            stored, layer, _ = await rig.snapshot("one", 1, vmm, template)
        assert await run(agent, "sh", "-c", "exit 4") == 4
        # The agent is the same process in both; so it knows this token, and not an earlier one.
        token = agent.resync_token
        nursery.cancel_scope.cancel()
    async with rig.woken("two", stored, layer) as vmm, trio.open_nursery() as nursery:
        agent = GuestAgent("two", vmm.open_channel, token)
        nursery.start_soon(agent.run)
        assert await run(agent, "sh", "-c", "exit 5") == 5
        nursery.cancel_scope.cancel()
