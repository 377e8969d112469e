"""Commands that run in a sandbox: started, fed, read, signalled, awaited."""

from __future__ import annotations

import signal as signals
import time
from collections.abc import Iterator
from types import TracebackType

from attrs import frozen

from arrakis_rpc.connection import MAX_CHUNK, WINDOW, DataReceived
from arrakis_rpc.errors import ArrakisError, DeadlineError, InvalidStateError
from arrakis_rpc.guest_api import ExecResult

from ._call import Call

STALL_SECONDS = 30.0


@frozen
class Completed:
    """A command that has ended: by ``exit_code``, or killed by ``signal``.

    ``stdout`` and ``stderr`` are what had not been read before. ``duration`` is in
    seconds, measured in the guest. ``timed_out`` says that its time limit killed it.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int | None
    signal: int | None = None
    timed_out: bool = False
    duration: float = 0.0

    @property
    def text(self) -> str:
        """``stdout`` as text; what is not UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether the command succeeded."""
        return self.exit_code == 0 and not self.timed_out

    @property
    def status(self) -> str:
        """How it ended, in the words of the Go program: ``exit status 2``, ``signal: killed``."""
        if self.signal is None:
            return f"exit status {self.exit_code}"
        # Go knows the names of the first fifteen only, and writes them small.
        name = (signals.strsignal(self.signal) or "") if 0 < self.signal <= 15 else ""
        return f"signal: {name.lower() or f'signal {self.signal}'}"

    def check(self) -> Completed:
        """Give the same; raise `CommandFailedError` unless the command succeeded."""
        if not self.ok:
            raise CommandFailedError(self)
        return self


class CommandFailedError(ArrakisError):
    """A command did not succeed, and its caller asked to be told so; see ``completed``."""

    def __init__(self, completed: Completed) -> None:
        how = "its time limit ended it" if completed.timed_out else completed.status
        last = (completed.stderr or completed.stdout).decode(errors="replace").strip()[-500:]
        super().__init__(f"command failed: {how}" + (f"\n{last}" if last else ""))
        self.completed = completed


class ProcessInput:
    """The standard input of a command."""

    def __init__(self, call: Call, *, is_open: bool) -> None:
        self._call = call
        self._closed = not is_open

    @property
    def room(self) -> int:
        """How many bytes can be written now without waiting for the command to read."""
        return 0 if self._closed else self._call.room("stdin")

    def write(self, data: bytes | str) -> None:
        """Write all of ``data`` (text as UTF-8); wait while the command does not read.

        Bytes for a command that has ended are dropped. What the command writes meanwhile
        is kept, up to 1 MiB of each stream. When that is full and the input is too,
        neither end can go on unless another thread reads: `DeadlineError` says so after
        30 seconds in which nothing moved, instead of waiting for ever.
        """
        if self._closed:
            raise InvalidStateError("standard input was closed, or was not asked for")
        view = memoryview(data.encode() if isinstance(data, str) else data)
        for start in range(0, len(view), MAX_CHUNK):
            self._write_chunk(bytes(view[start : start + MAX_CHUNK]))

    def close(self) -> None:
        """Let the command see the end of its input. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._call.end("stdin")

    def _write_chunk(self, chunk: bytes) -> None:
        while chunk:
            sendable = min(len(chunk), self.room)
            if sendable:
                self._call.send("stdin", chunk[:sendable])
                chunk = chunk[sendable:]
            elif self._call.is_over:
                return
            elif not self._call.wait_room("stdin", STALL_SECONDS):
                self._raise_if_stalled()

    def _raise_if_stalled(self) -> None:
        if self._call.is_full("stdout") or self._call.is_full("stderr"):
            raise DeadlineError(
                "the command reads no more input until its output is read",
                hint="read the output in another thread, or use communicate()",
            )


class Process:
    """A command that runs in a sandbox.

    Iterating gives ``(stream, data)`` as the command writes, until it ends; ``stream`` is
    ``"stdout"`` or ``"stderr"``. A command whose output is not read is held up when 1 MiB
    of it waits. Errors of starting it (`NotFoundError` for an unknown program, user or
    sandbox) are raised by what is called first of iteration, `wait` and `communicate`.

    As a context manager it cancels the command at the end of the block, if it still runs,
    with all that it started in its session. So does dropping the last reference.
    """

    def __init__(self, call: Call, *, stdin: bool) -> None:
        self._call = call
        self._kept: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._completed: Completed | None = None
        self.stdin = ProcessInput(call, is_open=stdin)

    @property
    def is_running(self) -> bool:
        """Whether the command has not been seen to end; its last output may wait to be read."""
        return not self._call.is_over

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while (chunk := self._take(None)) is not None:
            yield chunk

    def stdout_lines(self) -> Iterator[str]:
        """Give the lines of stdout without their ends, as text; what is not UTF-8 is replaced.

        A line above 1 MiB comes in pieces. What comes on stderr is kept for `wait`.
        """
        rest = bytearray()
        while (chunk := self._take(None)) is not None:
            stream, data = chunk
            if stream != "stdout":
                self._kept[stream] += data
                continue
            rest += data
            *lines, rest = rest.split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            if len(rest) > WINDOW:
                yield rest.decode(errors="replace")
                rest = bytearray()
        if rest:
            yield rest.decode(errors="replace")

    def wait(self, timeout: float | None = None) -> Completed:
        """Wait for the end, reading all output; ``timeout`` is in seconds.

        Raises `DeadlineError` when the command still runs then; what it wrote is kept for
        the next `wait`. Raises what ended the call when that was not the command.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while (chunk := self._take(until)) is not None:
                self._kept[chunk[0]] += chunk[1]
        except TimeoutError:
            raise DeadlineError(f"the command still runs after {timeout:g} s") from None
        return self._result()

    def communicate(self, data: bytes | str = b"", timeout: float | None = None) -> Completed:
        """Write ``data`` to stdin while reading all output, close stdin, wait for the end.

        Raises as `wait` does. After a `DeadlineError` part of the data may be written.
        """
        until = None if timeout is None else time.monotonic() + timeout
        view = memoryview(data.encode() if isinstance(data, str) else data)
        while view and self.is_running:
            size = min(len(view), self.stdin.room, MAX_CHUNK)
            self.stdin.write(bytes(view[:size]))
            view = view[size:]
            remaining = None if until is None else max(0.0, until - time.monotonic())
            if not size and not self._call.wait_room("stdin", remaining, or_item=True):
                raise DeadlineError(f"the command still runs after {timeout:g} s")
            for stream, output in self.pump():
                self._kept[stream] += output
        self.stdin.close()
        return self.wait(None if until is None else max(0.0, until - time.monotonic()))

    def signal(self, number: int) -> None:
        """Send a signal to the command, for instance ``signal.SIGINT``; none if it has ended."""
        self._call.notify("exec.signal", {"signal": int(number)})

    def kill(self) -> None:
        """Send SIGKILL to the command."""
        self.signal(signals.SIGKILL)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its new size in characters."""
        self._call.notify("exec.resize", {"rows": rows, "cols": cols})

    def fileno(self) -> int:
        """Give a descriptor for `select`: when it is readable, `pump` may have something.

        Valid while `is_running`.
        """
        return self._call.fileno()

    def pump(self) -> list[tuple[str, bytes]]:
        """Give the output that is there now, without waiting."""
        chunks = []
        while (item := self._call.take_nowait()) is not None:
            if isinstance(item, DataReceived):
                chunks.append((item.channel, item.data))
        return chunks

    def cancel(self) -> None:
        """Kill the command and all that it started.

        Returns when the guest has sent the signals; processes are gone a moment later. Output
        that was not read is dropped. Does nothing when the command has ended.
        """
        self._call.cancel()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Someone who presses Ctrl+C does not want to wait for an answer.
        if error is None or isinstance(error, Exception):
            self.cancel()
        self._call.close()

    def _take(self, until: float | None) -> tuple[str, bytes] | None:
        while True:
            item = self._call.take(None if until is None else max(0.0, until - time.monotonic()))
            if item is None:
                return None
            if isinstance(item, DataReceived):
                return item.channel, item.data

    def _result(self) -> Completed:
        if self._completed is None:
            result: ExecResult = self._call.result()
            self._completed = Completed(
                bytes(self._kept["stdout"]),
                bytes(self._kept["stderr"]),
                result.exit_code,
                result.signal,
                result.timed_out,
                result.duration,
            )
        return self._completed
