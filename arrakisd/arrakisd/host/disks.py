"""Writable disks: qcow2 layers, each on top of the one below.

The bottom is a template's layer: a freshly made ext4 on which one guest has booted. A VM
writes to a layer of its own, ``vms/ID/LAYER.qcow2``. A snapshot freezes it, which moves it
to ``layers/ID/disk.qcow2``, and the VM goes on with a new one. Both places have the same
depth, so the name of the backing file is the same relative path in either.

The content of layers comes from VMMs, one of which a guest may have taken over. A file that it
names as backing file or data file must not be read with more rights than the VMM has.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import trio

from arrakis_rpc.errors import ExhaustedError, IntegrityError, UnsupportedError, VmmError

from .processes import owned, spawn

FROZEN = "disk.qcow2"

# Magic, version, offset and length of the backing file's name (docs/interop/qcow2.txt in QEMU).
_HEADER = struct.Struct(">4sIQI")
# The same, and the features that who does not know them must not open it.
_LONG_HEADER = struct.Struct(">4sIQI52xQ")
_LONGEST_NAME = 100
_MAGIC = b"QFI\xfb"
_BACKING = re.compile(rb"\.\./\.\./layers/[0-9a-f]{32}/disk\.qcow2")


def active_layer(vm_directory: Path, layer_id: str) -> Path:
    """Where a VM's own writable layer is."""
    return vm_directory / f"{layer_id}.qcow2"


async def make_blank_disk(target: Path, size_mib: int) -> None:
    """Make a qcow2 disk that holds an empty ext4 file system."""
    raw = target.with_suffix(".raw")
    try:
        with raw.open("wb") as file:
            file.truncate(size_mib * 2**20)
        await _run("mkfs.ext4", "-q", "-F", "-m0", "-Elazy_itable_init=1", str(raw))
        await _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target))
    finally:
        raw.unlink(missing_ok=True)


async def make_empty_layer(target: Path, below: str, size_mib: int) -> None:
    """Make an empty layer on top of the layer ``below``, which need not be frozen yet."""
    await _run(
        *("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2"),
        *("-b", _backing_name(below), str(target), f"{size_mib}M"),
    )


def copy_empty_layer(empty: Path, target: Path, below: str) -> None:
    """Make an empty layer on top of the layer ``below`` out of one that lies on another. Blocks.

    Takes a millisecond, where ``qemu-img`` takes thirty.
    """
    shutil.copyfile(empty, target)
    name_backing(target, below)


async def sink_layer(
    layer: Path, below: str, output: Path, identity: tuple[int, int] | None
) -> None:
    """Put a layer on top of another one further down, with all that lies between in it.

    ``identity`` are the uid and gid of the program that does it, below normal priority; it may
    write to the layer. Its messages go to ``output``.
    """
    argv = ["qemu-img", "rebase", "-q", "-f", "qcow2", "-F", "qcow2"]
    argv += ["-b", _backing_name(below), str(layer)]
    patient = ["nice", "-n", "10", "ionice", "-c", "3"]
    async with owned(spawn([*patient, *argv], output=output, identity=identity)) as child:
        status = await child.wait()
    if status != 0:  # not above: the nursery would make a group of the error
        _fail(argv, output.read_text(errors="replace"))


def name_backing(layer: Path, below: str) -> None:
    """Write into a frozen layer's header that it lies on another layer of the same content.

    A VMM that has it open does not notice. Raises `IntegrityError` for a header that names no
    layer by now. Blocks.
    """
    name = _backing_name(below).encode()
    fd = os.open(layer, os.O_RDWR | os.O_NOFOLLOW)
    try:
        magic, _, offset, length = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        if (
            magic != _MAGIC
            or length != len(name)
            or not _BACKING.fullmatch(os.pread(fd, length, offset))
        ):
            raise IntegrityError(f"{layer} does not lie on another layer")
        os.pwrite(fd, name, offset)
    except (struct.error, OverflowError, OSError) as error:
        raise IntegrityError(f"{layer} has no header that can be read: {error}") from error
    finally:
        os.close(fd)


def layer_below(layer: Path) -> str | None:
    """Give the id of the layer that a layer lies on; None if it lies on none. Blocks.

    Raises `IntegrityError` for a file that names anything else, or is no plain qcow2.
    """
    with layer.open("rb") as file:
        header = file.read(_LONG_HEADER.size)
        try:
            magic, version, offset, length, features = _LONG_HEADER.unpack(header)
            file.seek(offset)
        except (struct.error, OverflowError, OSError) as error:
            raise IntegrityError(f"{layer.name} has no header that can be read") from error
        name = file.read(min(length, _LONGEST_NAME)) if offset else None
    if magic != _MAGIC or version != 3 or features:  # one of these is a file with the data
        raise IntegrityError(f"{layer.name} is no plain qcow2 file")
    if name is None:
        return None
    if len(name) != length or not _BACKING.fullmatch(name):
        raise IntegrityError(f"{layer.name} lies on something that is no layer")
    return name.split(b"/")[3].decode()


def _backing_name(below: str) -> str:
    return f"../../layers/{below}/{FROZEN}"


async def _run(*argv: str) -> None:
    try:
        await trio.run_process(
            argv,
            capture_stdout=True,
            capture_stderr=True,
            env={**os.environ, "LC_ALL": "C"},  # what is said is looked into below
        )
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"{argv[0]} is not installed",
            hint="apt-get install --no-install-recommends qemu-utils e2fsprogs",
        ) from error
    except subprocess.CalledProcessError as error:
        _fail(argv, error.stderr.decode(errors="replace"))


def _fail(argv: Sequence[str], output: str) -> NoReturn:
    message = f"command failed: {' '.join(argv)}\n{output.strip()}"
    if "No space left" in output:
        raise ExhaustedError(message, hint="make room, then try again")
    raise VmmError(message)
