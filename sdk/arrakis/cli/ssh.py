"""The system's ssh, led into a machine through the daemon, without a network."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from arrakis_rpc.errors import ArrakisError, GuestError, UnsupportedError

if TYPE_CHECKING:
    from arrakis import Sandbox

_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
_KEY = re.compile(rb"(ssh-ed25519 [A-Za-z0-9+/]+={0,2})(?: [^\n]*)?\n?")
_LONGEST_KEY = 1024
# Only root may write there, and sshd wants it so.
_KEYS_IN_GUEST = "/run/arrakis"

_OPTIONS = (
    # What the user has set for the hosts of the world does not hold for this one.
    "BatchMode=yes",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "PreferredAuthentications=publickey",
    "StrictHostKeyChecking=yes",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "HostKeyAlgorithms=ssh-ed25519",
)


def log_in(
    machine: Sandbox,
    argv: Sequence[str],
    *,
    user: str,
    options: Sequence[str],
    environment: Mapping[str, str],
) -> int:
    """Run ssh as it is called with ``argv`` after the host; give its exit code.

    ``environment`` is what makes another ``arrakis`` reach the machine's daemon. Raises
    `UnsupportedError` when there is no ssh here, and what `Files` raises.
    """
    program, keygen = _find("ssh"), _find("ssh-keygen")
    with ExitStack() as stack:
        signals = stack.enter_context(_Signals())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arrakis-ssh-")))
        public = _make_key(keygen, directory)
        _note_host_key(machine, directory)
        admitted = stack.enter_context(_admitting(machine, public))
        own = (*_OPTIONS, *_own_options(machine.name, directory, admitted), *options)
        words = [program, "-F", "none"]
        for option in own:
            words += ("-o", option)
        words += ("-l", user, "--", machine.name, *argv)
        return signals.run(words, {**os.environ, **environment})


def _find(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UnsupportedError(
            f"the program {name} is not installed here",
            hint="apt-get install openssh-client, or use 'arrakis shell' and 'arrakis exec'",
        )
    return path


def _make_key(keygen: str, directory: Path) -> bytes:
    key = directory / "key"
    words = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "arrakis ssh", "-f", str(key)]
    subprocess.run(words, stdin=subprocess.DEVNULL, check=True)
    return key.with_suffix(".pub").read_bytes()


def _note_host_key(machine: Sandbox, directory: Path) -> None:
    """Have ssh know the machine by the key that it has at this moment."""
    found = _KEY.fullmatch(machine.files.read(_HOST_KEY, length=_LONGEST_KEY))
    if found is None:
        raise GuestError(f"{_HOST_KEY} in the machine is not an SSH host key", vm=machine.name)
    line = machine.name.lower().encode() + b" " + found[1] + b"\n"
    (directory / "known_hosts").write_bytes(line)


@contextmanager
def _admitting(machine: Sandbox, public: bytes) -> Iterator[str]:
    """Keep the public key in the machine for the length of a block; give the file's path."""
    path = f"{_KEYS_IN_GUEST}/ssh-{secrets.token_hex(16)}"
    machine.files.write(path, public, mode=0o644)
    try:
        yield path
    finally:
        # The machine may have ended before ssh. A key whose other half is gone opens nothing.
        with suppress(ArrakisError):
            machine.files.remove(path)


def _own_options(name: str, directory: Path, admitted: str) -> Iterator[str]:
    yield f"IdentityFile={_quoted(directory / 'key')}"
    yield f"UserKnownHostsFile={_quoted(directory / 'known_hosts')}"
    # ssh compares it with a pattern that it has made small.
    yield f"HostKeyAlias={name.lower()}"
    yield f"ProxyCommand={_proxy_command(name, admitted)}"


def _quoted(path: Path) -> str:
    return f'"{path}"'.replace("%", "%%")


def _proxy_command(name: str, admitted: str) -> str:
    """Give the line that runs a server for one connection on the guest's end of a pipe."""
    # Without RES_OPTIONS, PAM would ask the name servers for the address of "UNKNOWN", which is
    # what sshd calls the other end of a pipe: ten seconds, if the machine can reach none.
    server = (
        "mkdir -p -m 755 /run/sshd && RES_OPTIONS=attempts:0 exec /usr/sbin/sshd -i -e"
        f" -o LogLevel=ERROR -o AuthorizedKeysFile={admitted}"
    )
    ours = [sys.executable, "-P", "-c", "from arrakis.cli.main import main; main()"]
    words = [*ours, "exec", "-i", "-n", name, "-u", "root", "--", "sh", "-c", server]
    return shlex.join(words).replace("%", "%%")


class _Signals:
    """While ssh runs, signals are its to die of: we have keys to remove afterwards."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Signals:
        self._former = {
            number: signal.signal(number, self._pass_on)
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def run(self, words: list[str], environment: dict[str, str]) -> int:
        self._child = subprocess.Popen(words, env=environment)
        status = self._child.wait()
        return 128 - status if status < 0 else status

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if self._child is None:
            raise SystemExit(128 + number)
        # Ctrl+C and its like reach ssh from the terminal.
        if number in (signal.SIGTERM, signal.SIGHUP):
            self._child.send_signal(number)
