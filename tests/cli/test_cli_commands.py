"""run and exec: whose options are whose, and what comes through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli_harness import Cli, Start
from scripted_daemon import Peer, answering, completed

from arrakis.cli.main import run
from arrakis_rpc.connection import CallReceived


def test_run_prints_output_and_gives_the_exit_code(arrakis: Cli) -> None:
    """run passes bytes on untouched, and its code is the command's."""

    def run_(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", b"caf\xc3\xa9\n")
        return completed(exit_code=3)

    arrakis.serve(exec_run=run_)
    assert arrakis("run", "-n", "box", "-c", "make all") == (3, "café\n", "")
    assert arrakis.asked[0][1]["args"]["shell"] == "make all"
    code, out, _ = arrakis("run", "box", "-c", "make", "--json")
    assert (code, json.loads(out)) == (1, {"output": "café\n", "error": "exit status 3"})


def test_run_in_the_background_returns_at_once(arrakis: Cli) -> None:
    """run -b only starts the command."""
    arrakis.serve(exec_run={"pid": 7})
    assert arrakis("run", "box", "-b", "-c", "sleep 9") == (
        0,
        "Command 'sleep 9' started in background\n",
        "",
    )


@pytest.mark.parametrize(
    ("line", "argv", "env"),
    [
        ("box -- ls -la /", ["ls", "-la", "/"], {}),
        ("box ls -la /", ["ls", "-la", "/"], {}),
        ("box -e A=1 -- ls -e", ["ls", "-e"], {"A": "1"}),
        ("-e A=1 box ls -n x", ["ls", "-n", "x"], {"A": "1"}),
        ("-e A=1 box -e B=2 ls", ["ls"], {"A": "1", "B": "2"}),
        ("-n box -- ls", ["ls"], {}),
        ("-n box ls", ["ls"], {}),
        ("-- box ls -l", ["ls", "-l"], {}),
        ("box -- -n", ["-n"], {}),
    ],
)
def test_exec_takes_options_on_both_sides_of_the_name(
    arrakis: Cli, line: str, argv: list[str], env: dict[str, str]
) -> None:
    """Options of ours end where the command begins, whichever way it is written."""
    arrakis.serve(exec_run=completed())
    assert arrakis("exec", *line.split())[0] == 0
    ((_, params),) = arrakis.asked
    assert params["vm"] == "box"
    assert params["args"]["argv"] == argv
    assert params["args"]["env"] == env


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (completed(exit_code=0), 0),
        (completed(exit_code=42), 42),
        (completed(exit_code=None, signal=9), 137),
        (completed(exit_code=None, signal=9, timed_out=True), 124),
    ],
)
def test_exec_exits_as_the_command_did(arrakis: Cli, result: dict[str, Any], code: int) -> None:
    """The exit code is the command's; a signal adds 128, a time limit is 124."""
    arrakis.serve(exec_run=result)
    assert arrakis("exec", "box", "true")[0] == code


def test_exec_keeps_the_streams_apart_and_untouched(
    scripted: Start, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Bytes that are no text go through, each stream to its own."""

    def run_(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", b"\xff\x00\x1b[2J")
        peer.data(call, "stderr", b"\xfe")
        return completed()

    socket = scripted(answering(exec_run=run_)).path
    assert run(["--socket", str(socket), "exec", "box", "cat"]) == 0
    assert capfdbinary.readouterr() == (b"\xff\x00\x1b[2J", b"\xfe")
