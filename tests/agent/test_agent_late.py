"""An agent that is not there yet, or not any more, when the daemon begins to speak to it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio
from agent_client import DEADLINE, AgentProcess

from arrakis_rpc.guest_api import ExecSpec
from arrakis_rpc.resync import FIRST_TOKEN
from arrakisd.guest.agent import GuestAgent
from arrakisd.host.vmm.channel import Channel


@pytest.mark.parametrize("unheard", range(5))
async def test_attempts_that_nobody_heard(tmp_path: Path, unheard: int) -> None:
    """However often the daemon has begun in vain, the agent that comes at last is met."""
    attempts = 0
    with AgentProcess(tmp_path) as process, process.socket as end:

        def open_channel() -> Channel:
            nonlocal attempts
            attempts += 1
            return Channel(end.dup())

        agent = GuestAgent("late", open_channel, FIRST_TOKEN)
        for _ in range(2):  # the first time with the first token, then with another
            process.popen.send_signal(signal.SIGSTOP)
            begun = attempts
            with trio.fail_after(DEADLINE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(agent.run, 0.2)  # seconds, for the first attempt
                    while attempts <= begun + unheard:
                        await trio.sleep(0.01)
                    process.popen.send_signal(signal.SIGCONT)
                    await agent.wait_ready(DEADLINE / 2)
                    result = await agent.call("exec.run", ExecSpec(argv=["true"]))
                    assert result.exit_code == 0
                    nursery.cancel_scope.cancel()
