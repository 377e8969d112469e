"""Where sessions begin and end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from agent_client import AgentProcess, Host
from agent_waiting import is_gone, wait_for, wait_until_gone

import arrakis_agent
from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc.errors import (
    InvalidParamsError,
    InvalidStateError,
    UnknownMethodError,
    UnsupportedError,
)
from arrakis_rpc.guest_api import ExecSpec, Health, Hello
from arrakis_rpc.operations import GUEST
from arrakis_rpc.resync import FIRST_TOKEN, make_preamble, new_token


def test_hello(agent: AgentProcess) -> None:
    """The agent answers the first call with its version and that of its Python."""
    result = agent.host.open()
    assert result.version == PROTOCOL_VERSION
    assert result.agent == f"arrakis-agent {arrakis_agent.__version__}"
    assert result.python.startswith("3.")


def test_first_call_is_hello(agent: AgentProcess) -> None:
    """Before agent.hello every other call is refused, and hello works afterwards."""
    agent.host.resync()
    with pytest.raises(InvalidStateError, match="not open"):
        agent.host.run(["true"])
    agent.host.call("agent.hello", Hello([PROTOCOL_VERSION], new_token()))
    assert agent.host.run(["true"])[0].exit_code == 0


def test_unknown_version(agent: AgentProcess) -> None:
    """A host that speaks no version of ours is refused, and the token stays what it was."""
    agent.host.resync()
    with pytest.raises(UnsupportedError, match=f"version {PROTOCOL_VERSION}"):
        agent.host.call("agent.hello", Hello([999], new_token()))
    agent.host.open()


def test_unknown_operation(host: Host) -> None:
    """A call of an operation that does not exist fails, and only it."""
    with pytest.raises(UnknownMethodError, match="walk"):
        host.call("exec.walk", {})
    assert host.run(["true"])[0].exit_code == 0


def test_bad_parameters(host: Host) -> None:
    """A wrong parameter fails the call with the name of the field."""
    with pytest.raises(InvalidParamsError, match="timeout"):
        host.call("exec.run", {"argv": ["true"], "timeout": "1"})


@pytest.mark.parametrize("method", sorted(GUEST))
def test_every_operation_is_served(host: Host, method: str) -> None:
    """Each operation of the protocol is there: it looks at its parameters."""
    with pytest.raises(InvalidParamsError, match="nonsense"):
        host.call(method, {"nonsense": 1})


def test_resync_within_a_frame(host: Host) -> None:
    """A session begins though the former one was cut in the middle of a frame."""
    _, frame = host.connection.start_call("agent.health", {})
    host.send(frame[:-3])
    host.open()
    assert host.run(["echo", "fine"])[1] == b"fine\n"


def test_resync_across_reads(agent: AgentProcess) -> None:
    """A preamble is recognised whatever the borders of the pieces in which it comes."""
    preamble, nonce = make_preamble(FIRST_TOKEN)
    for byte in b"noise" + preamble:
        agent.host.send(bytes([byte]))
        time.sleep(0.002)
    assert agent.host.receive_bytes() == nonce


def test_frame_ending_like_a_token(host: Host) -> None:
    """A frame is answered though its last bytes are those that a preamble begins with."""
    host.token = b"\x05" + new_token()[1:]
    host.call("agent.hello", Hello([PROTOCOL_VERSION], host.token))
    call_id, frame = host.connection.start_call(
        "agent.hello", {"token": new_token(), "versions": [5]}
    )
    assert frame.endswith(b"\x05")
    host.send(frame)
    with pytest.raises(UnsupportedError):
        host.wait_answer(call_id)


def test_resync_kills_and_silences(host: Host) -> None:
    """A new session kills what the former one ran, and nothing of that comes after the nonce."""
    call_id = host.start_exec(ExecSpec(shell="echo $$; exec yes"))
    host.wait(lambda: len(host.received[call_id, "stdout"]) > 500_000)
    pid = int(host.received[call_id, "stdout"].split(b"\n")[0])
    host.stalled.add(call_id)
    host.open()
    wait_until_gone(pid)
    time.sleep(0.1)
    result, output, errors = host.run(["echo", "clean"])
    assert (result.exit_code, output, errors) == (0, b"clean\n", b"")
    assert list(host.received) == [(2, "stdout"), (2, "stderr")]


def test_output_nobody_read_is_dropped(host: Host) -> None:
    """A new session does not begin with all that the former one had still to say."""
    for _ in range(4):
        host.start_exec(ExecSpec(argv=["yes"]))
    wait_for(lambda: in_the_socket(host))
    time.sleep(0.5)  # by then it is full
    preamble, nonce = make_preamble(host.token)
    host.send(preamble)
    wait_for(lambda: not host.agent.children())  # what it had to say is dropped before that
    old = in_the_socket(host)
    stale = b""
    while nonce not in stale:
        stale += host.receive_bytes()
    assert stale.index(nonce) <= old


def in_the_socket(host: Host) -> int:
    unread = bytearray(4)
    fcntl.ioctl(host.agent.socket, termios.FIONREAD, unread)
    return int.from_bytes(unread, sys.byteorder)


def test_second_preamble_at_once(agent: AgentProcess) -> None:
    """A host that gives up and begins again at once is served by the second attempt."""
    first, _ = make_preamble(FIRST_TOKEN)
    agent.host.resync(before=first + b"\0\0")
    assert agent.host.open().version == PROTOCOL_VERSION


def test_token_rotates(host: Host) -> None:
    """The token of a session opens no second one."""
    preamble, _ = make_preamble(FIRST_TOKEN)
    host.send(preamble)
    time.sleep(0.1)
    host.agent.patience(0.2)
    with pytest.raises(TimeoutError):
        host.receive_bytes()
    host.agent.patience(None)
    host.open()


def test_token_survives_the_agent(host: Host) -> None:
    """An agent that was killed and started again knows the token of the next session."""
    kept = host.agent.state_dir / "token"
    assert kept.read_bytes() == host.token
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    host.agent.kill()
    host.agent.start()
    host.open()
    assert host.run(["true"])[0].exit_code == 0


def test_token_when_memory_is_full(tmp_path: Path) -> None:
    """A guest whose memory is full can still be reached, and its agent may even die."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    subprocess.run(mount, check=True)
    try:
        with AgentProcess(tmp_path) as agent:
            agent.host.open()
            with pytest.raises(OSError, match="No space"):
                (tmp_path / "ballast").write_bytes(bytes(1_000_000))
            agent.host.open()
            agent.kill()
            agent.start()
            agent.host.open()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_health(host: Host) -> None:
    """Health tells plausible figures of this machine."""
    health = Health(**host.call("agent.health", {}))
    assert health.booted
    assert health.memory_total > health.memory_available > 0
    assert health.uptime > 0
    assert health.processes > 1


def test_end_of_the_port(host: Host) -> None:
    """An agent whose port is gone kills what it runs and exits with an error."""
    call_id = host.start_exec(ExecSpec(shell="echo $$; exec sleep 60"))
    host.wait(lambda: host.received[call_id, "stdout"].endswith(b"\n"))
    pid = int(host.received[call_id, "stdout"])
    status, logged = host.agent.end()
    assert status == 1
    assert "port is lost" in logged
    wait_until_gone(pid)


def test_crash_leaves_the_background(host: Host) -> None:
    """What was started in the background outlives the agent."""
    pid = host.run(["sleep", "60"], background=True)[0].pid
    host.agent.kill()
    assert not is_gone(pid)
    os.kill(pid, signal.SIGKILL)
