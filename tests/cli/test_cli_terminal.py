"""The command line as a process: terminals, pipes, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Start
from scripted_daemon import VM, GoneError, Peer, answering, completed
from terminal_harness import PROGRAM, OnTerminal

from arrakis_rpc.connection import (
    CallCancelled,
    CallNotified,
    CallReceived,
    CreditReceived,
    DataReceived,
)
from arrakis_rpc.errors import CancelledError


def shell(peer: Peer, call: CallReceived) -> Any:
    """A shell that says what it is told, and ends at Ctrl+D."""
    pty_ = call.params["args"]["pty"]
    peer.data(call, "stdout", f"{pty_['term']} {pty_['rows']}x{pty_['cols']}$ ".encode())
    while True:
        match peer.event():
            case DataReceived(_, _, b"\x04"):
                return completed(exit_code=5)
            case DataReceived(_, _, b"die"):
                raise GoneError
            case DataReceived(_, _, data):
                peer.data(call, "stdout", b"<" + data + b">")
            case CallNotified(_, "exec.resize", params):
                peer.data(call, "stdout", b"now %dx%d" % (params["rows"], params["cols"]))
            case CreditReceived():
                pass


def test_shell_is_a_terminal_of_the_same_size(
    scripted: Start, terminal: Callable[..., OnTerminal]
) -> None:
    """Keys go through as they are typed, Ctrl+C included; sizes follow; the code comes back."""
    screen = terminal(scripted(answering(exec_run=shell)).path, "shell", "box")
    screen.expect(b"vt100 30x90$ ")
    screen.type(b"\x03")
    screen.expect(b"<\x03>")
    screen.resize(40, 100)
    screen.expect(b"now 40x100")
    screen.type(b"\x04")
    assert screen.end() == 5
    assert termios.tcgetattr(screen.slave) == screen.mode


def test_what_is_typed_ahead_is_not_lost(
    scripted: Start, terminal: Callable[..., OnTerminal]
) -> None:
    """Keys pressed before the shell is there reach it."""
    screen = terminal(scripted(answering(exec_run=shell)).path, "shell", "box")
    screen.type(b"early\n")
    screen.expect(b"<early")


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (lambda screen: screen.process.terminate(), 128 + signal.SIGTERM),
        (lambda screen: screen.process.send_signal(signal.SIGHUP), 128 + signal.SIGHUP),
        (lambda screen: screen.type(b"die"), 6),
    ],
    ids=["SIGTERM", "SIGHUP", "daemon dies"],
)
def test_terminal_is_put_right_whatever_happens(
    scripted: Start,
    terminal: Callable[..., OnTerminal],
    event: Callable[[OnTerminal], None],
    code: int,
) -> None:
    """A shell that ends badly leaves no terminal in raw mode behind."""
    screen = terminal(scripted(answering(exec_run=shell)).path, "shell", "box")
    screen.expect(b"$ ")
    assert termios.tcgetattr(screen.slave) != screen.mode
    event(screen)
    assert screen.end() == code
    assert termios.tcgetattr(screen.slave) == screen.mode
    assert b"Traceback" not in screen.seen


def test_shell_on_a_missing_machine_does_not_spoil_the_screen(
    scripted: Start, terminal: Callable[..., OnTerminal]
) -> None:
    """An error is told after the terminal has been put right."""
    screen = terminal(scripted(answering()).path, "shell", "box")
    assert screen.end() == 1
    assert b"error: exec.run\r\n" in screen.seen


def test_progress_is_drawn_on_a_terminal(
    scripted: Start, terminal: Callable[..., OnTerminal]
) -> None:
    """Steps are shown while they last, and gone afterwards; names are not markup."""

    def start(peer: Peer, call: CallReceived) -> Any:
        peer.note(call, "call.progress", text="booting [red]base", step=1, total=2)
        go_on.wait(60)
        return VM

    go_on = threading.Event()
    screen = terminal(scripted(answering(vm_start=start, vm_info=VM)).path, "start", "box")
    screen.expect(b"booting [red]base")
    go_on.set()
    assert screen.end() == 0
    assert screen.seen.endswith(b"started box at 10.20.1.2/24\r\n")


def test_ctrl_c_cancels_the_call(scripted: Start, terminal: Callable[..., OnTerminal]) -> None:
    """Ctrl+C ends the call in the daemon, says nothing, and is 130."""
    typing, gone = threading.Event(), threading.Event()

    def start(peer: Peer, call: CallReceived) -> Any:
        typing.set()
        try:
            peer.event()
        finally:
            gone.set()

    screen = terminal(scripted(answering(vm_start=start)).path, "start", "box")
    assert typing.wait(60)
    screen.type(b"\x03")
    assert screen.end() == 130
    assert gone.wait(60)
    assert b"Traceback" not in screen.seen
    assert b"error" not in screen.seen


def run_program(socket: Path, *arguments: str, **options: Any) -> Any:
    return subprocess.run(
        [*PROGRAM, "--socket", str(socket), *arguments], timeout=60, check=False, **options
    )


def copy(peer: Peer, call: CallReceived) -> Any:
    """A command like cat, if it has an input."""
    if call.params["args"]["stdin"]:
        peer.data(call, "stdout", peer.read_all(call))
    return completed()


def test_what_is_piped_in_comes_out(scripted: Start) -> None:
    """exec passes a pipe on, to its end, in whatever amounts and bytes."""
    data = os.urandom(3_000_000)
    socket = scripted(answering(exec_run=copy)).path
    done = run_program(socket, "exec", "box", "cat", input=data, capture_output=True)
    assert done.stdout == data
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-"])
def test_without_an_input_there_is_none(scripted: Start, redirection: str) -> None:
    """An empty or a closed stdin is an empty input."""
    socket = scripted(answering(exec_run=copy)).path
    line = f'"$@" {redirection}'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *PROGRAM, "--socket", socket, "exec", "box", "cat"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_reader_that_goes_away_ends_the_command(scripted: Start) -> None:
    """In front of a head that has seen enough, exec ends quietly, as SIGPIPE would."""
    gone = threading.Event()

    def yes(peer: Peer, call: CallReceived) -> Any:
        try:
            while not any(isinstance(event, CallCancelled) for event in peer.waiting):
                peer.data(call, "stdout", b"y\n" * 1000)
        finally:  # or the connection was closed, by a client that has waited for us too long
            gone.set()
        return CancelledError("cancelled")

    socket = scripted(answering(exec_run=yes)).path
    line = f'"$@" --socket {socket} exec box yes | head -c 1'
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}", "-", *PROGRAM],
        capture_output=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, b"y", b"")
    assert gone.wait(60)


def test_names_that_the_terminal_cannot_show_are_escaped(scripted: Start) -> None:
    """Where stdout has another encoding, what does not fit in it is escaped."""
    info = {**VM, "image": "caf\u00e9\u4e2d"}
    done = run_program(
        scripted(answering(vm_info=info)).path,
        "info",
        "box",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0
    assert b"caf\xe9\\u4e2d\n" in done.stdout


def test_shells_can_complete(tmp_path: Path) -> None:
    """A shell that asks what a line could go on with is told the verbs."""
    asked = {"_ARRAKIS_COMPLETE": "bash_complete", "COMP_WORDS": "arrakis sna", "COMP_CWORD": "1"}
    done = subprocess.run(PROGRAM, capture_output=True, env={**os.environ, **asked}, check=True)
    assert done.stdout.split() == [
        b"plain,snapshot",
        b"plain,snapshot-delete",
        b"plain,snapshot-diff",
        b"plain,snapshot-export",
        b"plain,snapshot-import",
        b"plain,snapshots",
    ]
