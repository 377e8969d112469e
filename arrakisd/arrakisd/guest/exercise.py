"""What guests do before anybody needs them, so that it is quick when somebody does."""

from __future__ import annotations

from arrakis_rpc.guest_api import ExecSpec, Network

from .agent import GuestAgent
from .identity import make_identity


async def exercise(agent: GuestAgent, network: Network | None) -> None:
    """Do once what every guest does first, so that its code is in memory."""
    await agent.call("identity.apply", make_identity("template", network))
    await agent.set_clock()
    for command in (["true"], ["python3", "-c", "pass"], ["sync"]):
        await agent.call("exec.run", ExecSpec(argv=command))
