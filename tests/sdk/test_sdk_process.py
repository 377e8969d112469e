"""Commands: their output, input, signals, ends; and a daemon that misbehaves meanwhile."""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from scripted_daemon import HEALTH, GoneError, Peer, Script, Server, answering, completed

import arrakis._call
import arrakis.process
from arrakis import (
    CancelledError,
    CommandFailedError,
    Completed,
    ConnectionLostError,
    DeadlineError,
    ExhaustedError,
    InvalidStateError,
    NotFoundError,
    ProtocolError,
    Pty,
    Sandbox,
)
from arrakis_rpc.connection import (
    WINDOW,
    CallCancelled,
    CallNotified,
    CallReceived,
    CreditReceived,
    DataReceived,
)
from arrakis_rpc.envelope import Notification
from arrakis_rpc.framing import encode_frame

Start = Callable[[Script], Server]


def running(scripted: Start, run: Callable[[Peer, CallReceived], Any]) -> Sandbox:
    return scripted(answering(exec_run=run, system_health=HEALTH)).sandbox


def echo(peer: Peer, call: CallReceived) -> Any:
    """A command like cat: it writes what it reads, piece by piece."""
    while True:
        match peer.event():
            case DataReceived(_, channel, data):
                peer.send(peer.connection.consumed(call.call_id, channel, len(data)))
                peer.data(call, "stdout", data)
            case CreditReceived():
                pass
            case _:
                return completed()


def receive(peer: Peer, size: int) -> None:
    """Take input off the wire without consuming it."""
    while size:
        event = peer.event()
        assert isinstance(event, DataReceived)
        size -= len(event.data)


def test_run_gives_output_and_exit_code(scripted: Start) -> None:
    """A command's streams come apart, with how it ended and how long it took."""

    def run(peer: Peer, call: CallReceived) -> Any:
        assert call.params == {
            "vm": "box",
            "args": {
                "argv": ["make", "-j"],
                "cwd": "/src",
                "env": {"A": "1"},
                "user": "elara",
                "timeout": 5.0,
                "stdin": False,
                "merge_output": False,
                "background": False,
            },
        }
        peer.data(call, "stdout", b"out")
        peer.data(call, "stderr", b"err")
        return completed(exit_code=3, duration=1.5)

    done = running(scripted, run).run(
        ("make", "-j"), cwd="/src", env={"A": "1"}, user="elara", timeout=5.0
    )
    assert done == Completed(b"out", b"err", 3, None, False, 1.5)
    assert not done.ok


def test_check_raises_with_the_last_words(scripted: Start) -> None:
    """With check, a failure carries the end of stderr and the whole result."""

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stderr", b"no rule\xff to make target")
        return completed(exit_code=2)

    with pytest.raises(CommandFailedError, match=r"exit status 2\nno rule. to make") as caught:
        running(scripted, run).run("make", check=True)
    assert caught.value.completed.exit_code == 2


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Completed(b"", b"", 0), "exit status 0"),
        (Completed(b"", b"", None, 9), "signal: killed"),
        (Completed(b"", b"", None, 11), "signal: segmentation fault"),
        (Completed(b"", b"", None, 15), "signal: terminated"),
        (Completed(b"", b"", None, 10), "signal: user defined signal 1"),
        (Completed(b"", b"", None, 5), "signal: trace/breakpoint trap"),
        (Completed(b"", b"", None, 40), "signal: signal 40"),
    ],
)
def test_status_is_in_the_words_of_the_go_program(result: Completed, status: str) -> None:
    """How a command ended is said as Go's os/exec says it."""
    assert result.status == status


def test_more_input_than_any_window_arrives_whole(scripted: Start) -> None:
    """Input of many windows is sent as fast as it is consumed, and in order."""
    data = os.urandom(5 * WINDOW + 17)

    def run(peer: Peer, call: CallReceived) -> Any:
        assert peer.read_all(call) == data
        return completed()

    assert running(scripted, run).run("cat >/dev/null", input=data).ok


def test_communicate_reads_while_it_writes(scripted: Start) -> None:
    """A command that answers its input with as much output does not lock up."""
    data = os.urandom(4 * WINDOW)
    assert running(scripted, echo).run("cat", input=data).stdout == data


def test_text_input_is_utf8(scripted: Start) -> None:
    """Text goes in and comes out as UTF-8."""
    assert running(scripted, echo).run("cat", input="Grüße").text == "Grüße"


def test_one_thread_reads_while_another_writes(scripted: Start) -> None:
    """A process may be read by one thread, written by a second and signalled by a third."""
    data = os.urandom(6 * WINDOW)
    signals: list[Any] = []

    def run(peer: Peer, call: CallReceived) -> Any:
        while True:
            match peer.event():
                case DataReceived(_, channel, chunk):
                    peer.send(peer.connection.consumed(call.call_id, channel, len(chunk)))
                    peer.data(call, "stdout", chunk)
                case CallNotified(_, method, params):
                    signals.append((method, params["signal"]))
                case CreditReceived():
                    pass
                case _:
                    return completed()

    with running(scripted, run).exec("cat", stdin=True) as process:

        def write() -> None:
            process.stdin.write(data)
            process.stdin.close()

        def send_signals() -> None:
            for _ in range(20):
                process.signal(signal.SIGUSR1)

        threads = [threading.Thread(target=write), threading.Thread(target=send_signals)]
        for thread in threads:
            thread.start()
        received = b"".join(chunk for _, chunk in process)
        for thread in threads:
            thread.join()
        assert process.wait().ok
    assert received == data
    assert signals == [("exec.signal", signal.SIGUSR1)] * 20


def test_writer_does_not_depend_on_the_reader(scripted: Start) -> None:
    """What one thread writes is sent whole while another one waits for output in vain."""

    def run(peer: Peer, call: CallReceived) -> Any:
        receive(peer, WINDOW)  # more than a socket's buffer; nothing is said before it is there
        return completed()

    with running(scripted, run).exec("cat", stdin=True) as process:
        reader = threading.Thread(target=process.wait)
        reader.start()
        time.sleep(0.1)  # until it reads
        process.stdin.write(bytes(WINDOW))
        reader.join(60)
        assert not reader.is_alive()


def test_last_words_of_a_daemon_are_heard(scripted: Start) -> None:
    """What the daemon said before it hung up is the error, not that it could not be written to."""
    told = threading.Event()

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.answer(call, ExhaustedError("too much"))
        told.set()
        raise GoneError

    process = running(scripted, run).exec("cat", stdin=True)
    assert told.wait(60)
    process.stdin.write(bytes(WINDOW))
    with pytest.raises(ExhaustedError, match="too much"):
        process.wait()


def test_write_that_can_never_go_on_says_so(
    scripted: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When input and output are both full and nobody reads, writing fails instead of hanging."""
    monkeypatch.setattr(arrakis.process, "STALL_SECONDS", 0.2)

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", bytes(WINDOW))
        while not isinstance(peer.event(), CallCancelled):
            pass  # it takes the input off the wire, and consumes none of it
        return CancelledError("cancelled")

    with (
        running(scripted, run).exec("cat", stdin=True) as process,
        pytest.raises(DeadlineError, match="until its output is read") as caught,
    ):
        process.stdin.write(bytes(2 * WINDOW))
    assert "communicate" in str(caught.value.hint)


def test_slow_command_is_waited_for(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that reads late is no lock-up, as long as its output is not full."""
    monkeypatch.setattr(arrakis.process, "STALL_SECONDS", 0.05)

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", b"one moment")
        receive(peer, WINDOW)
        time.sleep(0.3)
        peer.send(peer.connection.consumed(call.call_id, "stdin", WINDOW))
        assert len(peer.read_all(call)) == WINDOW
        return completed()

    with running(scripted, run).exec("sleep 1; cat", stdin=True) as process:
        process.stdin.write(bytes(2 * WINDOW))
        process.stdin.close()
        assert process.wait().stdout == b"one moment"


def test_output_that_is_not_read_is_bounded(scripted: Start) -> None:
    """A reader that stalls holds the command up after one window, and loses nothing."""
    total = 3 * WINDOW
    sent = 0

    def run(peer: Peer, call: CallReceived) -> Any:
        nonlocal sent
        received = 0
        while sent < total:
            size = min(peer.connection.send_window(call.call_id, "stdout"), 65536)
            if size:
                peer.data(call, "stdout", bytes(size))
                sent += size
                continue
            event = peer.event()
            if isinstance(event, DataReceived):
                received += len(event.data)
                if received == WINDOW:
                    peer.send(peer.connection.consumed(call.call_id, "stdin", WINDOW))
        return completed()

    with running(scripted, run).exec("yes", stdin=True) as process:
        # Returns when the peer has filled its window and then gives credit for the input.
        process.stdin.write(bytes(WINDOW + 1))
        assert sent == WINDOW
        assert sum(len(data) for _, data in process) == total


def test_peer_that_overdraws_its_window_is_cut_off(scripted: Start) -> None:
    """Data beyond the window breaks the protocol; what came before it can still be read."""

    def run(peer: Peer, call: CallReceived) -> Any:
        frame = Notification(
            "stream.data", {"id": call.call_id, "channel": "stdout", "data": bytes(WINDOW // 2)}
        )
        for _ in range(3):
            peer.send(encode_frame(frame.to_wire()))
        raise GoneError

    process = running(scripted, run).exec("yes", stdin=True)
    process.stdin.write(bytes(2 * WINDOW))  # which receives, but does not read
    received = 0
    with pytest.raises(ProtocolError, match="overdraw"):  # noqa: PT012 -- until it breaks
        for _, data in process:
            received += len(data)
    assert received == WINDOW


def test_data_on_an_unknown_channel_is_a_breach(scripted: Start) -> None:
    """A stream that the operation does not have ends the connection."""

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "gossip", b"x")
        raise GoneError

    with pytest.raises(ProtocolError, match="gossip"):
        running(scripted, run).run("true")


def test_daemon_that_dies_takes_no_output_with_it(scripted: Start) -> None:
    """What came before the connection broke is delivered before the error."""

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", b"last words")
        raise GoneError

    chunks = iter(running(scripted, run).exec("true"))
    assert next(chunks) == ("stdout", b"last words")
    with pytest.raises(ConnectionLostError):
        next(chunks)


def test_write_to_a_dying_daemon_fails(scripted: Start) -> None:
    """Writing does not hang when the other end closes in the middle of it."""

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.event()
        raise GoneError

    process = running(scripted, run).exec("cat", stdin=True)
    process.stdin.write(bytes(4 * WINDOW))
    with pytest.raises(ConnectionLostError):
        process.wait()


def test_errors_of_starting_come_with_the_first_use(scripted: Start) -> None:
    """An unknown program is what wait, iteration and run raise."""
    sandbox = running(scripted, lambda _, __: NotFoundError("no program 'frob'"))
    with pytest.raises(NotFoundError, match="frob"):
        sandbox.run(["frob"])
    with pytest.raises(NotFoundError, match="frob"):
        sandbox.exec(["frob"], stdin=True).communicate(b"data")


def test_wait_with_a_timeout_keeps_the_output(scripted: Start) -> None:
    """A wait that ran out of time can be repeated, and nothing is lost by it."""
    go_on = threading.Event()

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", b"one ")
        go_on.wait(60)
        peer.data(call, "stdout", b"two")
        return completed()

    with running(scripted, run).exec("sleep 1") as process:
        with pytest.raises(DeadlineError, match="still runs"):
            process.wait(0.1)
        go_on.set()
        assert process.wait(60).stdout == b"one two"
        assert process.wait() is process.wait()


def test_block_ends_the_command(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the block cancels the command, waits for that, and keeps the connection."""
    monkeypatch.setattr(arrakis._call, "CANCEL_SECONDS", 60)  # on a busy machine, too
    ended = []

    def run(peer: Peer, call: CallReceived) -> Any:
        while not isinstance(peer.event(), CallCancelled):
            pass
        time.sleep(0.1)
        ended.append(call.call_id)
        return CancelledError("cancelled")

    server = scripted(answering(exec_run=run, system_health=HEALTH))
    sandbox = server.sandbox
    with sandbox.exec("sleep infinity"):
        pass
    assert len(ended) == 1
    with sandbox.exec("sleep infinity"):
        pass
    assert server.connections == 1


def test_interrupted_block_does_not_wait(scripted: Start) -> None:
    """Ctrl+C in the block closes the connection, which cancels the command."""
    started, gone = threading.Event(), threading.Event()

    def run(peer: Peer, call: CallReceived) -> Any:
        started.set()
        try:
            event = peer.event()
        except GoneError:
            gone.set()
            raise
        pytest.fail(f"it was asked nicely: {event}")

    process = running(scripted, run).exec("sleep infinity")
    assert started.wait(60)
    with pytest.raises(KeyboardInterrupt), process:
        raise KeyboardInterrupt
    assert gone.wait(60)


def test_dropped_process_is_cancelled(scripted: Start) -> None:
    """A process that nobody refers to any more does not go on."""
    started, gone = threading.Event(), threading.Event()

    def run(peer: Peer, call: CallReceived) -> Any:
        started.set()
        try:
            peer.event()
        finally:
            gone.set()

    process = running(scripted, run).exec("sleep infinity")
    assert started.wait(60)
    del process
    gc.collect()
    assert gone.wait(60)


def test_close_from_another_thread_wakes_the_reader(scripted: Start) -> None:
    """Whoever waits for a process learns that another thread has closed it."""

    def run(peer: Peer, call: CallReceived) -> Any:
        while True:
            peer.event()

    process = running(scripted, run).exec("sleep infinity")
    closing = threading.Timer(0.1, process._call.close)
    closing.start()
    with pytest.raises(InvalidStateError, match="closed"):
        process.wait()
    closing.join()


def test_lines_of_stdout(scripted: Start) -> None:
    """Lines come whole across chunks, without their ends; stderr is kept for wait."""

    def run(peer: Peer, call: CallReceived) -> Any:
        for data in (b"fir", b"st\n\nsec\xff", b"ond\n", b"50%\r60%\nunfinished"):
            peer.data(call, "stdout", data)
            peer.data(call, "stderr", b"!")
        return completed()

    with running(scripted, run).exec("cat file") as process:
        assert [*process.stdout_lines()] == [
            "first",
            "",
            "sec\ufffdond",
            "50%\r60%",
            "unfinished",
        ]
        assert process.wait().stderr == b"!!!!"


def test_line_without_an_end_comes_in_pieces(scripted: Start) -> None:
    """A command that never ends its line does not fill the memory."""

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", b"x" * (3 * WINDOW))
        return completed()

    lines = [*running(scripted, run).exec("yes | tr -d '\\n'").stdout_lines()]
    assert len(lines) > 1
    assert sum(map(len, lines)) == 3 * WINDOW


def test_pump_and_fileno_serve_a_loop_of_ones_own(scripted: Start) -> None:
    """pump gives what is there without waiting, and fileno tells when to call it again."""
    speak = threading.Event()

    def run(peer: Peer, call: CallReceived) -> Any:
        speak.wait(60)
        peer.data(call, "stdout", b"now")
        return completed(exit_code=4)

    process = running(scripted, run).exec("sleep 1")
    assert process.pump() == []
    assert process.is_running
    speak.set()
    seen = []
    while process.is_running:
        select.select([process.fileno()], [], [], 5)
        seen += process.pump()
    assert seen == [("stdout", b"now")]
    assert process.wait().exit_code == 4


def test_terminal_is_asked_for_and_resized(scripted: Start) -> None:
    """A terminal's size goes with the call, and later sizes follow as notifications."""

    def run(peer: Peer, call: CallReceived) -> Any:
        assert call.params["args"]["pty"] == {"rows": 30, "cols": 90, "term": "vt100"}
        event = peer.event()
        assert isinstance(event, CallNotified)
        assert (event.method, event.params) == ("exec.resize", {"rows": 40, "cols": 100})
        return completed()

    with running(scripted, run).exec("bash", pty=Pty(30, 90, "vt100")) as process:
        process.resize(40, 100)
        assert process.wait().ok


def test_input_must_have_been_asked_for(scripted: Start) -> None:
    """Writing to a command without stdin, or after closing it, is refused."""

    def run(peer: Peer, call: CallReceived) -> Any:
        if call.params["args"]["stdin"]:
            assert peer.read_all(call) == b""
        return completed()

    sandbox = running(scripted, run)
    with sandbox.exec("true") as process, pytest.raises(InvalidStateError):
        process.communicate(b"data")
    with sandbox.exec("true", stdin=True) as process:
        process.stdin.close()
        process.stdin.close()
        with pytest.raises(InvalidStateError):
            process.stdin.write(b"data")


def test_what_comes_after_the_end_is_ignored(scripted: Start) -> None:
    """Signals, sizes and input for a command that has ended do nothing."""
    with running(scripted, lambda _, __: completed()).exec("true", stdin=True) as process:
        assert [*process] == []
        process.stdin.write(b"late")
        process.stdin.close()
        process.kill()
        process.resize(1, 1)
        assert process.wait().ok
