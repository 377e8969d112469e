"""An agent that is told nonsense lives on, in bounded memory."""

from __future__ import annotations

import fcntl
import itertools
import random
import termios
import time

import msgpack
import pytest
from agent_client import DEADLINE, AgentProcess, Host
from agent_waiting import cpu_share, wait_until_gone
from hypothesis import given
from hypothesis import strategies as st
from real_daemon import shortest

from arrakis_rpc.connection import WINDOW
from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.framing import encode_frame
from arrakis_rpc.guest_api import ExecSpec

MIB = 1024 * 1024


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def works(host: Host) -> None:
    """A new session can be had, and runs a command."""
    host.open()
    assert host.run(["echo", "fine"])[1] == b"fine\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        frame(b"\xc1"),
        frame(b"\x91" * 100_000),
        frame(b"\x81\xa1a" * 50_000 + b"\x01"),
        frame(b"\xdd\xff\xff\xff\xff"),
        frame(b"\xdf\xff\xff\xff\xff"),
        frame(b""),
        frame(msgpack.packb("text")),
        frame(msgpack.packb({"jsonrpc": "1.0", "id": 9, "method": "agent.health", "params": {}})),
        encode_frame({"jsonrpc": "2.0", "id": 1, "result": None}),
        encode_frame({"jsonrpc": "2.0", "id": 2**60, "method": "agent.health", "params": {}}),
        encode_frame({"jsonrpc": "2.0", "method": "stream.data", "params": {}}),
        encode_frame(
            {
                "jsonrpc": "2.0",
                "method": "stream.credit",
                "params": {"id": 1, "channel": "x", "size": 1},
            }
        ),
        b"\0\x0f\xff\xff" + b"\xc6\x7f\xff\xff\xff" + bytes(MIB),
    ],
    ids=range(14),
)
def test_malformed(host: Host, data: bytes) -> None:
    """Whatever breaks the protocol, the next session works, and commands of this one are gone."""
    call_id = host.start_exec(ExecSpec(shell="echo $$; exec sleep 60"))
    host.wait(lambda: host.received[call_id, "stdout"].endswith(b"\n"))
    host.send(data + bytes(100))
    wait_until_gone(int(host.received[call_id, "stdout"]))
    works(host)


def test_refusals_are_not_fatal(host: Host) -> None:
    """A malformed call that keeps to the protocol fails alone."""
    running = host.start_exec(ExecSpec(argv=["cat"], stdin=True))
    refused: list[dict[str, object]] = [
        {},
        {"argv": []},
        {"argv": "ls"},
        {"argv": ["a\0"]},
        {"shell": 1},
        {"shell": "a", "x": {}},
    ]
    for params in refused:
        with pytest.raises(InvalidParamsError):
            host.call("exec.run", params)
    host.upload(running, "stdin", b"still here")
    host.wait_answer(running)
    assert host.received[running, "stdout"] == b"still here"


def test_streams_nobody_asked_for(host: Host) -> None:
    """Data on channels that an operation does not take is ignored."""
    call_id = host.start_exec(ExecSpec(argv=["sleep", "0.2"]))
    host.send(host.connection.send_data(call_id, "nonsense", b"x" * 1000))
    host.send(host.connection.send_data(call_id, "stdin", b"x" * 1000))
    host.send(host.connection.end_stream(call_id, "stdout"))
    assert host.exec_result(call_id).exit_code == 0


def test_overdrawn_credit(host: Host) -> None:
    """A host that sends more than it has credit for is not listened to."""
    call_id = host.start_exec(ExecSpec(argv=["sleep", "60"], stdin=True))
    params = {"id": call_id, "channel": "stdin", "data": bytes(100_000)}
    data = encode_frame({"jsonrpc": "2.0", "method": "stream.data", "params": params})
    for _ in range(WINDOW // 100_000 + 2):
        host.send(data)
    works(host)


def test_answers_nobody_reads(host: Host) -> None:
    """A host that calls and calls and reads nothing is not answered without end."""
    host.agent.patience(1.0)
    before = host.agent.memory()
    with pytest.raises(TimeoutError):
        call_many(host, 500_000)
    assert host.agent.memory() - before < 16 * MIB
    hear_out(host)
    host.agent.patience(None)
    works(host)


def call_many(host: Host, count: int) -> None:
    numbers = iter(range(10, count))
    while batch := list(itertools.islice(numbers, 1000)):
        calls = ({"jsonrpc": "2.0", "id": id_, "method": "x", "params": {}} for id_ in batch)
        host.send(b"".join(map(encode_frame, calls)))


def hear_out(host: Host) -> None:
    """Listen until the agent has nothing to say, and has taken all that it was told."""
    deadline, untaken = time.monotonic() + DEADLINE, bytearray(4)
    while True:
        try:
            host.receive_bytes()
        except TimeoutError:
            fcntl.ioctl(host.agent.socket, termios.TIOCOUTQ, untaken)
            if not any(untaken):
                return
            assert time.monotonic() < deadline, "it listens no more"


def test_garbage_between_sessions(host: Host) -> None:
    """Megabytes of noise before a preamble cost no memory and do not hide it."""
    before = host.agent.memory()
    host.send(random.Random(1).randbytes(20 * MIB))
    host.open()
    assert host.agent.memory() - before < 4 * MIB


@pytest.fixture(scope="module")
def veteran(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host whose agent has seen all that was tried before."""
    agent = AgentProcess(tmp_path_factory.mktemp("veteran"))
    return agent.host


wire = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9)
    | st.binary(max_size=9) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)  # fmt: skip
methods = st.sampled_from(
    ["exec.run", "file.read", "file.list", "agent.health", "agent.hello", "stream.data",
     "stream.end", "stream.credit", "call.cancel", "exec.signal", "exec.resize"]
)  # fmt: skip
messages = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": methods, "params": st.dictionaries(
        st.sampled_from(["id", "channel", "size", "data", "path", "versions", "token", "signal"]),
        wire | st.integers(1, 9) | st.just("stdin") | st.binary(min_size=32, max_size=32),
    )},
    optional={"id": st.integers(1, 9)},
)  # fmt: skip


@given(
    pieces=st.lists(
        st.binary(max_size=200) | st.binary(max_size=200).map(frame) | messages.map(encode_frame),
        max_size=6,
    ),
    greeted=st.booleans(),
)
def test_random_frames(veteran: Host, pieces: list[bytes], greeted: bool) -> None:
    """No sequence of random bytes, frames and messages keeps the next session from working."""
    if greeted:
        veteran.open()
    else:
        veteran.resync()
    for piece in pieces:
        veteran.send(piece)
    open_with_any_token(veteran)
    assert veteran.call("agent.health", {})["booted"]
    assert veteran.agent.descriptors() < 20


def open_with_any_token(host: Host) -> None:
    """Begin a session, though a random greeting may have changed the token, or is about to."""
    kept = host.agent.state_dir / "token"
    host.agent.patience(0.5)
    for _ in range(20):
        host.token = kept.read_bytes()
        try:
            host.open()
        except TimeoutError:
            continue
        host.agent.patience(None)
        return
    raise AssertionError("no token opens a session")


def test_veteran_is_well(veteran: Host) -> None:
    """After all that, the agent is idle, small, and runs commands."""
    works(veteran)
    assert shortest(lambda: cpu_share(veteran.agent.pid), 0.06) < 0.06
    assert veteran.agent.memory() < 80 * MIB
    status, logged = veteran.agent.end()
    assert status == 1
    assert "Traceback" not in logged
