"""Writable disks: qcow2 layers, each on top of the one below.

The bottom is a template's layer: a freshly made ext4 on which one guest has booted. A VM
writes to a layer of its own, ``vms/NAME/ID.qcow2``. A snapshot freezes it, which moves it
to ``layers/ID/disk.qcow2``, and the VM goes on with a new one. Both places have the same
depth, so the name of the backing file is the same relative path in either.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import trio

from arrakis_rpc.errors import ExhaustedError, UnsupportedError, VmmError

FROZEN = "disk.qcow2"


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
        *("-b", f"../../layers/{below}/{FROZEN}", str(target), f"{size_mib}M"),
    )


async def _run(*argv: str) -> None:
    try:
        await trio.run_process(argv, capture_stdout=True, capture_stderr=True)
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"{argv[0]} is not installed",
            hint="apt-get install --no-install-recommends qemu-utils e2fsprogs",
        ) from error
    except subprocess.CalledProcessError as error:
        output = error.stderr.decode(errors="replace").strip()
        kind = ExhaustedError if "No space left" in output else VmmError
        raise kind(f"command failed: {' '.join(argv)}\n{output}") from error
