"""Running an external program under trio: streamed, cancellable, and leaving nothing behind."""

import os
import shutil
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from signal import SIGKILL, SIGTERM, Signals

import trio

from arrakis_rootfs.errors import CommandError, ImageError, ImageSpaceError, ToolMissingError

_PACKAGES = {
    "buildah": "buildah",
    "mkfs.erofs": "erofs-utils",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "umount": "mount",
    "unshare": "util-linux",
}
_LAST_LINES = 20
_KEPT_LINES = 200
_CHUNK = 65536
_TERM_SECONDS = 3.0
_KILL_SECONDS = 5.0
_NO_SPACE = "no space left on device"

# Everything the program starts, its children's children too, ends with it: they live in a process
# namespace of their own whose first process it is. Its mounts vanish the same way.
PRIVATE_NAMESPACES = (
    "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--",
)  # fmt: skip


def require_tools(*programs: str) -> None:
    """Raise ToolMissingError, naming what to install, unless every program is on PATH."""
    for program in programs:
        if shutil.which(program) is None:
            package = _PACKAGES.get(program, program)
            raise ToolMissingError(
                f"the program {program!r} is not installed; try:"
                f" apt-get install --no-install-recommends {package}"
            )


async def run_command(
    command: Sequence[str],
    *,
    on_line: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Run a program to its end and return the last lines of its standard output.

    `on_line` gets each line of both its outputs as it comes. The program gets a process group of
    its own, so a Ctrl+C at the terminal does not reach it; when this call is cancelled the group
    is asked to end, and killed if it does not, before the cancellation goes on.

    Raises CommandError when the program fails, ToolMissingError when there is none, and
    ImageSpaceError when it failed because the disk is full.
    """
    require_tools(command[0])
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
    )
    # Each with the place at which it came. Kept apart: what one output has much of must not
    # push out the one line of the other that says what is wrong.
    places = count()
    output: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)
    errors: deque[tuple[int, str]] = deque(maxlen=_LAST_LINES)

    async def collect(stream: trio.abc.ReceiveStream | None, kept: deque[tuple[int, str]]) -> None:
        assert stream is not None
        async for line in _lines(stream):
            kept.append((next(places), line))
            if on_line is not None:
                on_line(line)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, process.stdout, output)
            nursery.start_soon(collect, process.stderr, errors)
        await process.wait()
    except BaseException:
        with trio.move_on_after(_TERM_SECONDS + _KILL_SECONDS, shield=True):
            await _end_group(process)
        raise
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)
    if process.returncode:
        last = sorted([*list(output)[-_LAST_LINES:], *errors])
        raise _failure(process.returncode, command, [line for _, line in last])
    return [line for _, line in output]


async def _end_group(process: trio.Process) -> None:
    """End the program and all that it started: SIGTERM, then SIGKILL, each with a deadline."""
    for signal, seconds in ((SIGTERM, _TERM_SECONDS), (SIGKILL, _KILL_SECONDS)):
        # Also when the program itself has ended: its children may not have.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal)
        with trio.move_on_after(seconds):
            await process.wait()


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    rest = b""
    while chunk := await stream.receive_some(_CHUNK):
        # A carriage return is how progress bars rewrite their line.
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        # A line without end is handed on in pieces: memory stays bounded whatever is written.
        if len(rest) > _CHUNK:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if line.strip():
                yield line.decode(errors="replace").rstrip()
    if rest.strip():
        yield rest.decode(errors="replace").rstrip()


def _failure(status: int, command: Sequence[str], tail: Sequence[str]) -> ImageError:
    if any(_NO_SPACE in line.lower() for line in tail):
        return ImageSpaceError(str(CommandError("the disk is full", command, tail)))
    reason = f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
    return CommandError(reason, command, tail)
