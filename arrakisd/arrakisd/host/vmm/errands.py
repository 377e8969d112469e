"""Programs that do something in a VM's directory on the daemon's behalf.

They run as the user of the VMM, because the directory is that user's: whatever a VMM that a
guest has taken over puts there, links for instance, leads nowhere that it could not go itself.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import trio

from arrakis_rpc.errors import ExhaustedError, UnsupportedError, VmmError

from ..processes import as_user

Identity = tuple[int, int] | None

_LAST_LINES = 5


async def copy_sparse(source: Path, target: Path, identity: Identity) -> None:
    """Copy a file with its holes; where the file system can, without copying its content."""
    await _run(["cp", "--reflink=auto", "--sparse=auto", str(source), str(target)], identity)


async def unfold_layer(layer: Path, raw: Path, identity: Identity) -> None:
    """Make a raw disk of a qcow2 layer and all that it stands on."""
    await _run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(layer), str(raw)], identity)


async def fold_disk(raw: Path, layer: Path, identity: Identity) -> None:
    """Put all that a raw disk has into a qcow2 layer, whatever is in it and below it.

    A VMM may have the disk yet, if its guest stands still: one locks it until its own end.
    """
    name = str(raw).replace(",", ",,")
    source = f"driver=raw,file.driver=file,file.locking=off,file.filename={name}"
    options = ["-O", "qcow2", "--image-opts"]
    await _run(["qemu-img", "convert", "-n", *options, source, str(layer)], identity)


async def _run(argv: Sequence[str], identity: Identity) -> None:
    try:
        await trio.run_process(
            ["setpriv", "--no-new-privs", *as_user(identity), "--", *argv],
            capture_stdout=True,
            capture_stderr=True,
            env={**os.environ, "LC_ALL": "C"},  # what is said is looked into below
        )
    except FileNotFoundError as error:
        raise UnsupportedError("setpriv is not installed", hint="apt-get install util-linux") from (
            error
        )
    except subprocess.CalledProcessError as error:
        output = error.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        message = "\n".join([f"command failed: {shlex.join(argv)}", *output])
        if any("No space left" in line for line in output):
            raise ExhaustedError(message, hint="make room, then try again") from error
        raise VmmError(message) from error
