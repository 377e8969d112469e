"""``arrakis ssh`` into a machine without a network."""

from __future__ import annotations

import os
import pty
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from in_guest import ask
from real_daemon import SLACK, Daemon, shortest, wait_until

from arrakis import Sandbox, SandboxManager

pytestmark = pytest.mark.vm

_ARRAKIS = str(Path(sys.executable).with_name("arrakis"))
_DEADLINE = SLACK * 60


class Ssh:
    """The verb, run as a program whose temporary files can be seen."""

    def __init__(self, sandbox: Sandbox, daemon: Daemon, temporary: Path) -> None:
        self.sandbox = sandbox
        self.temporary = temporary
        self._socket = f"--socket={daemon.socket}"
        self._environment = {**os.environ, "TMPDIR": str(temporary)}
        self._environment.pop("ARRAKIS_SOCKET", None)

    @contextmanager
    def start(self, *words: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
        argv = [_ARRAKIS, self._socket, "ssh", *words]
        with subprocess.Popen(argv, env=self._environment, **how) as process:
            try:
                yield process
            finally:
                process.kill()

    def __call__(self, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.start(*words, **pipes) as process:
            output, errors = process.communicate(stdin, timeout=_DEADLINE)
        return process.returncode, output, errors

    def servers(self) -> str:
        return ask(self.sandbox, "pgrep -x sshd || true")

    def keys(self) -> str:
        return ask(self.sandbox, "ls --ignore=identity /run/arrakis 2>/dev/null || true")


@pytest.fixture
def ssh(manager: SandboxManager, daemon: Daemon, tmp_path: Path) -> Iterator[Ssh]:
    # All that a name and a path may have in them.
    temporary = tmp_path / "50% of $PATH 'tmp'"
    temporary.mkdir()
    ssh = Ssh(manager.start_sandbox("Far.away_box"), daemon, temporary)
    yield ssh
    assert [*temporary.iterdir()] == []
    wait_until(lambda: ssh.servers() == "", 10)
    assert ssh.keys() == ""


def test_command_in_a_machine(ssh: Ssh) -> None:
    """Streams, exit code and user are those of the command, and nothing is added to them."""
    assert ssh("Far.away_box", "--", "id -un; echo wrong >&2; exit 7") == (
        7,
        b"elara\n",
        b"wrong\n",
    )
    assert ssh("Far.away_box", "-u", "root", "printf", "%s.", "-v", "%%") == (0, b"-v.%%.", b"")
    assert ssh("-l", "elara", "-t", "Far.away_box", "tty")[:2] == (0, b"/dev/pts/0\r\n")


def test_much_data_in_both_directions(ssh: Ssh) -> None:
    """10 MiB of any bytes come back as they went."""
    data = secrets.token_bytes(10 * 2**20)
    code, output, errors = ssh("Far.away_box", "cat", stdin=data)
    assert (code, errors) == (0, b"")
    assert output == data


def test_login_on_a_terminal(ssh: Ssh) -> None:
    """Without a command one gets a login shell, with job control and the end by its exit code."""
    ours, theirs = pty.openpty()
    with ssh.start("Far.away_box", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, b"shopt login_shell; echo $USER; exit 5\n")
        seen = b""
        while b"elara\r\n" not in seen:
            seen += os.read(ours, 4096)
        assert process.wait(_DEADLINE) == 5
    os.close(ours)
    assert re.search(rb"login_shell\s+on\r\n", seen)


def test_without_an_answer_from_name_servers(ssh: Ssh) -> None:
    """A login does not wait for name servers that never answer, as those of a cut-off machine."""
    deaf = "import socket, time; s = socket.socket(type=2); s.bind(('127.0.0.1', 53))"
    ssh.sandbox.run_cmd(f'exec python3 -S -c "{deaf}; time.sleep(1000)"', blocking=False)
    wait_until(lambda: "127.0.0.1:53" in ask(ssh.sandbox, "ss -Huln"), 10)
    ssh.sandbox.files.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")

    def log_in() -> float:
        began = time.monotonic()
        assert ssh("Far.away_box", "true")[0] == 0
        return time.monotonic() - began

    assert shortest(log_in, 9) < 9


def test_machines_are_told_apart(ssh: Ssh, manager: SandboxManager) -> None:
    """A fork has another host key, and is known by that one; the original is as before."""
    (fork,) = ssh.sandbox.fork(1, ["fork"])
    for name in ("fork", "Far.away_box"):
        code, output, _ = ssh(name, "cat /etc/ssh/ssh_host_ed25519_key.pub")
        assert code == 0
        assert output.decode() == manager.get(name).files.read_text(
            "/etc/ssh/ssh_host_ed25519_key.pub"
        )
    fork.destroy()


def test_host_key_that_is_none(ssh: Ssh) -> None:
    """What a guest calls its host key is not believed blindly: it would end up in known_hosts."""
    key = "/etc/ssh/ssh_host_ed25519_key.pub"
    text = ssh.sandbox.files.read(key)
    for wrong in (b"", b"* " + text, text + text, b"@cert-authority * " + text):
        ssh.sandbox.files.write(key, wrong)
        code, _, errors = ssh("Far.away_box", "true")
        assert code == 7
        assert b"is not an SSH host key" in errors
    other = re.sub(rb"AAAAI.{20}", lambda found: found[0][:-4] + b"AAAA", text)
    ssh.sandbox.files.write(key, other)
    assert ssh("Far.away_box", "true")[0] == 255


def test_no_such_machine(ssh: Ssh) -> None:
    """A wrong name is told as with every verb, not in the words of ssh."""
    code, output, errors = ssh("nowhere", "true")
    assert (code, output) == (3, b"")
    assert b"nowhere" in errors
    assert b"ssh" not in errors


def test_ended_from_outside(ssh: Ssh) -> None:
    """When the verb is asked to end, the session ends and the keys go."""
    with ssh.start("Far.away_box", "echo up; exec sleep 1000", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert ssh.keys() != ""
        assert [*ssh.temporary.iterdir()] != []
        process.terminate()
        assert process.wait(_DEADLINE) in (143, 255)


def test_machine_that_goes_away(ssh: Ssh, manager: SandboxManager) -> None:
    """When the machine ends, so does ssh, and leaves nothing here."""
    manager.start_sandbox("brief")
    with ssh.start("brief", "echo up; exec sleep 1000", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        manager.get("brief").destroy()
        assert process.wait(_DEADLINE) == 255
