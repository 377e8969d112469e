"""Tools inside of a sandbox: its commands and its files.

The docstring of a tool is what the model is told of it.
"""

from __future__ import annotations

import base64
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field

from arrakis_rpc.connection import WINDOW
from arrakis_rpc.errors import InvalidParamsError

from .bounds import Excerpt, as_text
from .jobs import Job
from .machine_tools import VmName, sandbox
from .results import CommandOutput, Execution, FileContent, FileEntry, FileWritten, Listing

OUTPUT_BYTES = 64 * 1024
FILE_BYTES = 128 * 1024
MOST_BYTES = 1024 * 1024
MOST_ENTRIES = 500

Path = Annotated[str, Field(description="relative paths are below /tmp/server_files")]
Encoding = Literal["utf-8", "base64"]


def run_command(
    job: Job,
    vm_name: VmName,
    cmd: Annotated[str, Field(description="text for bash -c")],
) -> CommandOutput:
    """Run a command in a running sandbox, as root in /tmp/server_files, and wait for its end.

    A command that fails is no failure of the tool: see error. Of output above 64 KiB the
    middle is left out. There is no time limit; use exec for one, and for servers write
    'nohup PROGRAM >log 2>&1 &'.
    """
    output = Excerpt(OUTPUT_BYTES)
    with sandbox(job, vm_name).exec(cmd, merge_output=True) as process:
        for _, data in process:
            output.add(data)
        done = process.wait()
    return CommandOutput(
        output=output.text,
        error="" if done.ok else done.status,
        omitted_bytes=output.omitted,
    )


def exec_command(
    job: Job,
    vm_name: VmName,
    command: Annotated[str, Field(description="text for bash -c")],
    timeout: Annotated[
        float, Field(gt=0, le=86_400, description="seconds, after which it is killed")
    ] = 120.0,
    stdin: Annotated[
        str, Field(description="its standard input: a program for 'python3 -', for instance")
    ] = "",
    cwd: Annotated[str, Field(description="'' is /tmp/server_files")] = "",
    user: Annotated[str, Field(description="'' is root")] = "",
    env: Annotated[dict[str, str], Field(description="added to its environment")] = {},  # noqa: B006
    max_bytes: Annotated[
        int, Field(ge=1024, le=MOST_BYTES, description="of each stream, the rest is left out")
    ] = OUTPUT_BYTES,
) -> Execution:
    """Run a command in a running sandbox with a time limit; stdout and stderr stay apart.

    A command that fails is no failure of the tool: see exit_code, signal and timed_out. When
    its time is up, it and all that it started is killed, and what it wrote until then is
    given. Of long streams the middle is left out.
    """
    data = stdin.encode()
    if len(data) > WINDOW:
        raise InvalidParamsError(
            f"stdin has {len(data)} bytes, and more than {WINDOW} are not taken",
            hint="use upload_file, and redirect from that file",
        )
    kept = {"stdout": Excerpt(max_bytes), "stderr": Excerpt(max_bytes)}
    with sandbox(job, vm_name).exec(
        command,
        stdin=bool(data),
        cwd=cwd or None,
        env=env,
        user=user or None,
        timeout=timeout,
    ) as process:
        process.stdin.write(data) if data else None
        process.stdin.close()
        for stream, chunk in process:
            kept[stream].add(chunk)
        done = process.wait()
    return Execution(
        stdout=kept["stdout"].text,
        stderr=kept["stderr"].text,
        exit_code=done.exit_code,
        signal=done.signal,
        timed_out=done.timed_out,
        duration=done.duration,
        omitted_bytes=kept["stdout"].omitted + kept["stderr"].omitted,
    )


def upload_file(
    job: Job,
    vm_name: VmName,
    path: Path,
    content: Annotated[str, Field(description="all of the file")],
    encoding: Annotated[Encoding, Field(description="base64 for what is not text")] = "utf-8",
) -> FileWritten:
    """Write a file in a running sandbox, in place of what is there, whole or not at all.

    Missing directories are made.
    """
    stat = sandbox(job, vm_name).files.write(path, _decoded(content, encoding))
    return FileWritten(path=path, size=stat.size)


def download_file(
    job: Job,
    vm_name: VmName,
    path: Path,
    offset: Annotated[int, Field(ge=0, description="where to begin, in bytes")] = 0,
    max_bytes: Annotated[int, Field(ge=16, le=MOST_BYTES)] = FILE_BYTES,
) -> FileContent:
    """Read a file of a running sandbox: text as it is, anything else as base64.

    Longer files come in parts: when next_offset is not null, call again with it.
    """
    # One byte more tells whether there is more.
    data = sandbox(job, vm_name).files.read(path, offset, max_bytes + 1)
    is_cut = len(data) > max_bytes
    content, encoding, size = as_text(data[:max_bytes], is_cut=is_cut)
    return FileContent(
        path=path,
        content=content,
        encoding="utf-8" if encoding == "utf-8" else "base64",
        offset=offset,
        size=size,
        next_offset=offset + size if is_cut else None,
    )


def list_files(job: Job, vm_name: VmName, path: Path = ".") -> Listing:
    """List a directory of a running sandbox, in the order of names; not what is below it."""
    entries = [*islice(sandbox(job, vm_name).files.iterate(path), MOST_ENTRIES + 1)]
    note = ""
    if len(entries) > MOST_ENTRIES:
        note = f"There are more than these {MOST_ENTRIES}; run 'find' or 'ls' to see the others."
    return Listing(
        path=path,
        entries=[
            FileEntry(
                name=entry.name,
                kind=entry.kind,
                size=entry.size,
                mode=f"{entry.mode:o}",
                mtime=entry.mtime,
                target=entry.target,
            )
            for entry in entries[:MOST_ENTRIES]
        ],
        note=note,
    )


def _decoded(content: str, encoding: Encoding) -> bytes:
    try:
        return content.encode() if encoding == "utf-8" else base64.b64decode(content, validate=True)
    except ValueError as error:
        raise InvalidParamsError(f"content is not {encoding}: {error}") from error
