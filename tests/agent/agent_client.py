"""The host's end of a conversation with a real agent process, blocking and simple."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc.connection import (
    MAX_CHUNK,
    CallFailed,
    CallSucceeded,
    Connection,
    DataReceived,
    Event,
    Role,
)
from arrakis_rpc.converter import structure, unstructure
from arrakis_rpc.guest_api import ExecResult, ExecSpec, Hello, HelloResult
from arrakis_rpc.resync import FIRST_TOKEN, MarkerScanner, make_preamble, new_token

DEADLINE = 60.0


class AgentProcess:
    """An agent on one end of a socket pair, with a state and a work directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "state"
        self.work_dir = directory / "work"
        self.environment = directory / "environment.json"
        self.host = Host(self)
        self.start()

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.popen = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-m",
                    "arrakis_agent",
                    f"--fd={theirs.fileno()}",
                    f"--state-dir={self.state_dir}",
                    f"--work-dir={self.work_dir}",
                    f"--environment={self.environment}",
                ],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        self.socket = ours
        self.patience(None)

    def patience(self, seconds: float | None) -> None:
        """Set how long to wait for the agent to say or to take something."""
        self.socket.settimeout(seconds or DEADLINE)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def end(self) -> tuple[int, str]:
        """Close the connection; give the exit status and what was logged."""
        self.socket.close()
        _, logged = self.popen.communicate(timeout=DEADLINE)
        return self.popen.returncode, logged.decode()

    def let_go(self) -> None:
        """Close what leads to a process that has ended, however it did."""
        self.socket.close()
        assert self.popen.stderr is not None
        self.popen.stderr.close()

    def kill(self) -> None:
        self.popen.kill()
        self.end()

    def memory(self) -> int:
        """Give the resident bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.popen.poll() is None:
            _, logged = self.end()
            assert "Traceback" not in logged, logged
        self.let_go()


class Host:
    """Speaks to an agent. What streams of a call bring is collected in ``received``."""

    def __init__(self, agent: AgentProcess) -> None:
        self.agent = agent
        self.token = FIRST_TOKEN
        self.forget()

    def forget(self) -> None:
        self.connection = Connection(Role.CALLER)
        self.received: dict[tuple[int, str], bytearray] = defaultdict(bytearray)
        self.answers: dict[int, Event] = {}
        self.stalled: set[int] = set()

    def send(self, data: bytes) -> None:
        self.agent.socket.sendall(data)

    def resync(self, before: bytes = b"") -> bytes:
        """Begin a session after some last bytes; give what the agent said before the nonce."""
        preamble, nonce = make_preamble(self.token)
        self.send(before + preamble)
        scanner = MarkerScanner(nonce)
        stale = b""
        while True:
            data, rest = scanner.feed(self.receive_bytes())
            stale += data
            if rest is not None:
                self.forget()
                self._take(rest)
                return stale

    def open(self) -> HelloResult:
        """Begin a session and greet."""
        self.resync()
        token = new_token()
        result = self.call("agent.hello", Hello(versions=[PROTOCOL_VERSION], token=token))
        self.token = token
        return structure(result, HelloResult)

    def receive_bytes(self) -> bytes:
        data = self.agent.socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the agent closed the connection")
        return data

    def start_call(self, method: str, params: object) -> int:
        wire = params if isinstance(params, dict) else unstructure(params)
        call_id, data = self.connection.start_call(method, wire)
        self.send(data)
        return call_id

    def call(self, method: str, params: object) -> Any:
        return self.wait_answer(self.start_call(method, params))

    def wait_answer(self, call_id: int) -> Any:
        """Wait for the answer; give the typed result or raise the error."""
        method_result = self.wait(lambda: self.answers.get(call_id))
        if isinstance(method_result, CallFailed):
            raise method_result.error
        return method_result.result

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Receive until the condition holds; give its value."""
        deadline = time.monotonic() + DEADLINE
        while not (value := condition()):
            assert time.monotonic() < deadline, "nothing came of it"
            self.take()
        return value

    def take(self) -> None:
        """Receive once."""
        self._take(self.receive_bytes())

    def _take(self, data: bytes) -> None:
        for event in self.connection.receive(data):
            if isinstance(event, DataReceived):
                self.received[event.call_id, event.channel] += event.data
                if event.call_id not in self.stalled:
                    self.consume(event.call_id, event.channel, len(event.data))
            elif isinstance(event, CallSucceeded | CallFailed):
                self.answers[event.call_id] = event

    def consume(self, call_id: int, channel: str, size: int) -> None:
        if credit := self.connection.consumed(call_id, channel, size):
            self.send(credit)

    def note(self, call_id: int, method: str, **params: object) -> None:
        self.send(self.connection.notify(call_id, method, params))

    def cancel(self, call_id: int) -> None:
        self.send(self.connection.cancel_call(call_id))

    def upload(self, call_id: int, channel: str, data: bytes) -> None:
        """Send a whole stream, as the agent takes it, unless it answers before."""
        rest = memoryview(data)
        while rest:
            self.wait(
                lambda: self.connection.send_window(call_id, channel) or call_id in self.answers
            )
            if call_id in self.answers:
                return
            size = min(self.connection.send_window(call_id, channel), MAX_CHUNK)
            self.send(self.connection.send_data(call_id, channel, bytes(rest[:size])))
            rest = rest[size:]
        self.send(self.connection.end_stream(call_id, channel))

    def start_exec(self, spec: ExecSpec) -> int:
        return self.start_call("exec.run", spec)

    def exec_result(self, call_id: int) -> ExecResult:
        return structure(self.wait_answer(call_id), ExecResult)

    def run(self, argv: Sequence[str] | str, **options: Any) -> tuple[ExecResult, bytes, bytes]:
        """Run a command to its end; give its result and its output."""
        if isinstance(argv, str):
            spec = ExecSpec(shell=argv, **options)
        else:
            spec = ExecSpec(argv=list(argv), **options)
        call_id = self.start_exec(spec)
        result = self.exec_result(call_id)
        return (
            result,
            bytes(self.received[call_id, "stdout"]),
            bytes(self.received[call_id, "stderr"]),
        )
