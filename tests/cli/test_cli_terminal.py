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
from scripted_guest import Guest
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


@pytest.mark.parametrize("image", ["[red]base", "\\[/red]base", "base\\"])
def test_progress_is_drawn_on_a_terminal(
    scripted: Start, terminal: Callable[..., OnTerminal], image: str
) -> None:
    """Steps are shown while they last, and gone afterwards; names are not markup."""

    def start(peer: Peer, call: CallReceived) -> Any:
        peer.note(call, "call.progress", text=f"booting {image}", step=1, total=2)
        go_on.wait(60)
        return VM

    go_on = threading.Event()
    screen = terminal(scripted(answering(vm_start=start, vm_info=VM)).path, "start", "box")
    screen.expect(f"booting {image}".encode())
    go_on.set()
    assert screen.end() == 0
    assert screen.seen.endswith(b"started box at 10.20.1.2/24\r\n")


def test_copy_of_a_name_with_markup_is_drawn_on_a_terminal(
    scripted: Start, terminal: Callable[..., OnTerminal], tmp_path: Path
) -> None:
    """Names that a guest chose are shown as they are, and fail no copy."""
    guest = Guest()
    guest.add_directory("/d/\\[")
    guest.add("/d/\\[/red]", b"x")
    target = tmp_path / "down"
    screen = terminal(scripted(guest.script).path, "cp", "box:/d", str(target))
    screen.expect(b"/d/\\[/red]")
    assert screen.end() == 0
    assert screen.seen.endswith(b"copied 1 file, 1 B\r\n")
    assert (target / "\\[" / "red]").read_bytes() == b"x"


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


def run_redirected(redirection: str, socket: Path, *arguments: str) -> Any:
    """Run the command line with what a shell does to its streams before."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *PROGRAM, "--socket", socket, *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # buffers are what can fail twice
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
    done = run_redirected(redirection, socket, "exec", "box", "cat")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def loud(peer: Peer, call: CallReceived) -> Any:
    """A command that writes to both of its streams."""
    peer.data(call, "stdout", b"out")
    peer.data(call, "stderr", b"err")
    return completed(exit_code=3)


def begin(peer: Peer, call: CallReceived) -> Any:
    """A start that tells what it does."""
    peer.note(call, "call.progress", text="booting", step=1, total=2)
    return VM


@pytest.mark.parametrize(
    ("redirection", "line", "code", "out", "err"),
    [
        (">&-", "--version", 0, b"", b""),
        (">&-", "list", 0, b"", b""),
        (">&- </dev/null", "exec box x", 3, b"", b"err"),
        (">&-", "start box", 0, b"", b"[1/2] booting\n"),
        ("2>&- </dev/null", "exec box x", 3, b"out", b""),
        ("2>&-", "start box", 0, b"started box at 10.20.1.2/24\n", b""),
        ("2>&- >&-", "list nothing else", 2, b"", b""),
    ],
)
def test_streams_that_are_closed_take_nothing(
    scripted: Start, redirection: str, line: str, code: int, out: bytes, err: bytes
) -> None:
    """What is printed there is lost, and nothing else: the exit code is that of the work."""
    script = answering(vm_list={"vms": [VM]}, vm_start=begin, vm_info=VM, exec_run=loud)
    done = run_redirected(redirection, scripted(script).path, *line.split())
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


@pytest.mark.parametrize("line", ["--version", "list", "exec box x </dev/null"])
def test_output_that_cannot_be_written_is_an_error(scripted: Start, line: str) -> None:
    """On a full disk the exit code is not 0, and one line says why."""
    words, _, redirection = line.partition(" <")
    script = answering(vm_list={"vms": [VM]}, exec_run=loud)
    redirected = f">/dev/full {'<' + redirection if redirection else ''}"
    done = run_redirected(redirected, scripted(script).path, *words.split())
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


@pytest.mark.parametrize("line", ["cp box:/d/leaf", "snapshot-export before"])
def test_file_that_goes_to_stdout_is_all_that_is_there(
    scripted: Start, tmp_path: Path, line: str
) -> None:
    """A target that leads to our stdout gets the bytes, and no report of them."""

    def export(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "data", b"x")
        return {}

    guest = Guest()
    guest.add("/d/leaf", b"x")
    script = guest.script if line.startswith("cp") else answering(snapshot_export=export)
    # Not that itself, which is what would be replaced if this went wrong.
    (tmp_path / "out").symlink_to("/dev/stdout")
    target = str(tmp_path / "out")
    done = run_program(scripted(script).path, *line.split(), target, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x", b"")


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
