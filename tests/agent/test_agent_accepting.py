"""An agent that the host connects to, as it does by vsock; here by a Unix socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_client import DEADLINE, AgentProcess
from agent_waiting import wait_until_gone

from arrakis_agent.accepting_port import listen
from arrakis_rpc.guest_api import ExecSpec


class AcceptingAgent(AgentProcess):
    """An agent that listens; `connect` takes the place of its socket pair."""

    def start(self) -> None:
        path = self.state_dir.parent / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            self.popen = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-m", "arrakis_agent"),
                    f"--listen-fd={listener.fileno()}",
                    f"--state-dir={self.state_dir}",
                    f"--work-dir={self.work_dir}",
                    f"--environment={self.environment}",
                ],
                pass_fds=[listener.fileno()],
                stderr=subprocess.PIPE,
            )
        self.path = path
        self.connect()

    def connect(self) -> None:
        """Connect anew; the former connection stays as it is."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(self.path))
        self.patience(None)

    def end(self) -> tuple[int, str]:
        """End it, which it never does by itself; give the exit status and what was logged."""
        self.socket.close()
        self.popen.terminate()
        _, logged = self.popen.communicate(timeout=DEADLINE)
        return self.popen.returncode, logged.decode()


@pytest.fixture
def accepting(tmp_path: Path) -> Iterator[AcceptingAgent]:
    with AcceptingAgent(tmp_path) as agent:
        yield agent


def test_connections(accepting: AcceptingAgent) -> None:
    """One connection after the other is served, each with the token of the one before."""
    host = accepting.host
    for number in range(3):
        host.open()
        assert host.run(["echo", str(number)])[1] == f"{number}\n".encode()
        accepting.socket.close()
        accepting.connect()


def test_lost_connection(accepting: AcceptingAgent) -> None:
    """What a lost connection ran is killed, and what it was still owed does not come any more."""
    host = accepting.host
    host.open()
    call_id = host.start_exec(ExecSpec(shell="echo $$; exec yes"))
    host.wait(lambda: len(host.received[call_id, "stdout"]) > 500_000)
    pid = int(host.received[call_id, "stdout"].split(b"\n")[0])
    accepting.socket.close()
    wait_until_gone(pid)
    accepting.connect()
    assert host.resync() == b""


def test_unnoticed_loss(accepting: AcceptingAgent) -> None:
    """A new connection is served although the end of the former one was never seen."""
    host = accepting.host
    host.open()
    former = accepting.socket
    accepting.connect()
    with former:
        host.open()
        assert host.run(["echo", "new"])[1] == b"new\n"
        former.settimeout(DEADLINE)
        assert former.recv(1) == b""


def test_descriptors(accepting: AcceptingAgent) -> None:
    """A connection that has gone leaves no descriptor."""
    accepting.host.open()
    before = accepting.descriptors()
    for _ in range(5):
        accepting.socket.close()
        accepting.connect()
        accepting.host.open()
    assert accepting.descriptors() == before


def test_vsock() -> None:
    """On vsock it listens for everybody, on the port that it is given."""
    try:
        listener = listen(5000)
    except OSError as error:
        pytest.skip(f"this kernel has no vsock: {error}")
    with listener:
        assert listener.getsockname() == (socket.VMADDR_CID_ANY, 5000)
