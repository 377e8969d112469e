"""Running the few external programs that preparing a kernel needs."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from arrakis_kernel.errors import KernelToolError

_LAST_LINES = 20


def run_tool(
    command: Sequence[str], *, package: str, directory: Path | None = None, stdin: bytes = b""
) -> bytes:
    """Run a program to its end and return what it wrote to its standard output.

    `package` is what an administrator installs when the program is missing. It speaks English,
    whatever the caller's language: what it says may be looked into.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, input=stdin, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise KernelToolError(
            f"the program {command[0]!r} is not installed; try: apt-get install {package}"
        ) from None
    if done.returncode != 0:
        output = (done.stderr or done.stdout).decode(errors="replace")
        tail = "\n".join(output.splitlines()[-_LAST_LINES:])
        place = f"(cd {shlex.quote(str(directory))} && " if directory else ""
        line = f"{place}{shlex.join(command)}{')' if directory else ''}"
        raise KernelToolError(f"exit status {done.returncode} from: {line}\n{tail}".rstrip())
    return done.stdout
