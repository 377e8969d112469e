"""The programs in the documentation run, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import blocks, marked_block

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

DEADLINE = 300.0


def test_the_first_program_goes_back_in_time(manager: SandboxManager) -> None:
    """The README's program prints the note before and after it was removed, and three answers."""
    printed = run([sys.executable, "-"], marked_block("README.md", "first program"), manager)
    lines = printed.splitlines()
    assert lines.count("written by an agent") == 2
    assert [line for line in lines if line.endswith(" 42")] == [
        f"first-fork{n} 42" for n in (1, 2, 3)
    ]
    assert "again" in lines


def test_the_first_commands_do_the_same(manager: SandboxManager) -> None:
    """The README's commands succeed, and print the note before and after it was removed."""
    commands = "set -e\n" + marked_block("README.md", "first commands")
    # Not on stdin, which 'arrakis exec' would pass on to its command.
    printed = run(["bash", "-c", commands], "", manager)
    assert printed.splitlines().count("written by an agent") == 2
    assert manager.list_all() == []


def test_the_guide_of_the_sdk_runs_from_top_to_bottom(manager: SandboxManager) -> None:
    """What stands in a comment behind a print is printed, in that order."""
    program = "\n".join(blocks("docs/sdk.md", "python"))
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    assert len(expected) > 8
    printed = run([sys.executable, "-"], program, manager)
    position = 0
    for text in expected:
        position = printed.find(text, position)
        assert position >= 0, f"{text!r} was not printed, or too early:\n{printed}"


def run(command: list[str], program: str, manager: SandboxManager) -> str:
    """Run a program that is given on stdin; give what it printed."""
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        command,
        input=program,
        env={
            **os.environ,
            "ARRAKIS_SOCKET": str(manager.socket),
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
