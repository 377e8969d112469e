"""The command line against real machines."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal_harness import PROGRAM, OnTerminal

from arrakis import SandboxManager

pytestmark = pytest.mark.vm


@pytest.fixture
def call(manager: SandboxManager) -> Callable[..., Any]:
    """Run the command line against the daemon."""

    def run(line: str, data: bytes = b"") -> Any:
        return subprocess.run(
            [*PROGRAM, "--socket", manager.socket, *shlex.split(line)],
            input=data,
            capture_output=True,
            timeout=120,
            check=False,
        )

    return run


def test_life_of_a_machine(call: Callable[..., Any]) -> None:
    """Start, run, snapshot, destroy, restore, fork and list work from the shell."""
    assert call("start -n box").returncode == 0
    assert call("start -n box").returncode == 4
    assert call("run -n box -c hostname").stdout == b"box\n"
    assert call("exec box --env A=1 -- sh -c 'exit 7'").returncode == 7
    assert call("snapshot -n box -i cli-test").stdout == b"cli-test\n"
    assert call("destroy box").returncode == 0
    assert call("list -n box").returncode == 3
    assert call("restore -n box --snapshot cli-test").returncode == 0
    assert call("fork box --as twin").stdout == b"twin\n"
    names = [vm["name"] for vm in json.loads(call("list-all --json").stdout)]
    assert sorted(names) == ["box", "twin"]
    assert call("destroy-all").returncode == 0
    assert call("snapshot-delete cli-test").returncode == 0


def test_files_go_both_ways(call: Callable[..., Any], tmp_path: Path) -> None:
    """cp copies directories in and out; a pipe does, too."""
    call("start box")
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "leaf").write_bytes(os.urandom(500_000))
    assert call(f"cp {tmp_path}/tree box:/root/").returncode == 0
    assert call(f"cp box:/root/tree {tmp_path}/copy").returncode == 0
    leaf = (tmp_path / "copy" / "sub" / "leaf").read_bytes()
    assert leaf == (tmp_path / "tree" / "sub" / "leaf").read_bytes()
    assert call("exec box cat", leaf).stdout == leaf
    assert call("exec box -- cat /none").returncode == 1
    assert call("cp box:/none .").returncode == 3


def test_shell_is_a_real_terminal(
    call: Callable[..., Any], manager: SandboxManager, terminal: Callable[..., OnTerminal]
) -> None:
    """In the shell there is job control, a size, and an end at exit."""
    call("start box")
    screen = terminal(Path(manager.socket), "shell", "box")
    screen.type(b"tty; stty size; sh -c 'echo be''ginning; exec sleep 100'\n")
    screen.expect(b"/dev/pts/")
    screen.expect(b"30 90")
    screen.expect(b"beginning")  # earlier, the shell would still have the terminal, and swallow ^C
    screen.type(b"\x03")
    screen.type(b"echo $((40 + 2))\n")
    screen.expect(b"42")
    screen.type(b"exit 9\n")
    assert screen.end() == 9
