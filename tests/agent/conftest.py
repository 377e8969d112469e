from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_client import AgentProcess, Host


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path) as agent:
        yield agent


@pytest.fixture
def host(agent: AgentProcess) -> Host:
    agent.host.open()
    return agent.host
