from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_client import AgentProcess, Host
from agent_waiting import wait_for


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """Start an agent that has heard nothing yet and is the test's own."""
    with AgentProcess(tmp_path) as agent:
        yield agent


@pytest.fixture(scope="module")
def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """Start an agent that serves a module's tests one after the other, as it should."""
    with AgentProcess(tmp_path_factory.mktemp("agent")) as agent:
        yield agent


@pytest.fixture
def host(shared_agent: AgentProcess) -> Host:
    """Open a session, without a work directory and with nothing left of the former test."""
    if shared_agent.popen.poll() is not None:
        shared_agent.let_go()
        shared_agent.start()
    shared_agent.patience(None)
    shutil.rmtree(shared_agent.work_dir, ignore_errors=True)
    shared_agent.host.open()
    wait_for(lambda: not shared_agent.children())
    return shared_agent.host
